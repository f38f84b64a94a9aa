"""The script of a kit: builds the engines of some models on a Jetson, and measures them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from tcompile.targets.backends.jetson_texts import (
    BOARD,
    BOARD_FILE,
    FIND,
    LOCATE,
    MEASURE,
    number,
    version_test,
)
from tcompile.targets.versions import TENSORRT, parse_version

SCRIPT, RESULT, KIT = "measure.sh", "measured.json", "kit.json"
ROUNDS = 3


def measure_script(
    names: Sequence[str], arguments: Sequence[str], shapes: Sequence[str], head: str
) -> str:
    """The script, which needs trtexec and no Python.

    Engines are built one after another and measured in turn, round after round, so that a device
    that slows down does so for all of them alike.

    Args:
        names: of the models' files, without the ending.
        arguments: for trtexec where it builds.
        shapes: the same where it measures.
        head: the first line of the result: what tells of the kit, as JSON without an end.
    """
    oldest = TENSORRT.strongly_typed.since
    only_since = parse_version(TENSORRT.strongly_typed.only_since)[0]
    built = " ".join(shlex.quote(each) for each in arguments)
    run = "".join(f"{shlex.quote(each)} " for each in shapes)
    return f"""\
#!/bin/sh
# Builds an engine of each model here with the TensorRT of this Jetson, measures them in {ROUNDS}
# rounds, and writes {RESULT}, for `tcompile profile MODEL --import {RESULT}`.
# Each is measured for SECONDS_EACH=2 in a round. TRTEXEC=/path/to/trtexec chooses another trtexec.
# Lock the clocks before: sudo nvpmodel -m 0; sudo jetson_clocks
set -eu
{LOCATE}cd "$(dirname "$0")"

{FIND}
if [ "$number" -lt {number(oldest)} ]; then
    echo "this needs TensorRT {oldest} or newer; $trtexec is of TensorRT v$number" >&2
    exit 2
fi
{version_test()}measure=
if [ "$major" -lt {only_since} ]; then measure="{" ".join(MEASURE)}"; fi

names="{" ".join(names)}"
{BOARD.format(BOARD_FILE, "engine/*")}mkdir -p times
trap 'rm -f engine/*.part {RESULT}.part' EXIT
trap 'exit 130' INT TERM HUP

# Engines of this kind of board that are there stay, so that a run that was stopped goes on.
for name in $names; do
    engine=engine/$name.trt$major.$minor.engine
    if [ -f "$engine" ]; then continue; fi
    echo "building $name"
    if ! "$trtexec" --onnx=$name.onnx {built} --saveEngine="$engine.part" \\
        --timingCacheFile="engine/timing.trt$major.$minor.cache" $typed --skipInference \\
        > times/$name.log 2>&1; then
        tail -n 5 times/$name.log >&2
        echo "$name cannot be built: all of it is in times/$name.log" >&2
        exit 1
    fi
    mv "$engine.part" "$engine"
done
round=1
while [ $round -le {ROUNDS} ]; do
    for name in $names; do
        echo "measuring $name, round $round of {ROUNDS}"
        if ! "$trtexec" --loadEngine=engine/$name.trt$major.$minor.engine $measure \\
            {run}--duration=${{SECONDS_EACH:-2}} --exportTimes=times/$name.$round.json \\
            > times/$name.log 2>&1; then
            tail -n 5 times/$name.log >&2
            echo "$name cannot be run: all of it is in times/$name.log" >&2
            exit 1
        fi
    done
    round=$((round + 1))
done

plain() {{ tr -d '\\000-\\037"\\\\'; }}
model=$(cat /proc/device-tree/model 2> /dev/null | plain || true)
power=$(nvpmodel -q 2> /dev/null | sed -n 's/^NV Power Mode: //p' | plain || true)
{{
    printf '%s' '{head}'
    cat {KIT}
    printf ', "tensorrt": "%s", "board": "%s", "power_mode": "%s", "date": "%s", "rounds": {{' \\
        "$number" "$model" "$power" "$(date -u +%Y-%m-%dT%H:%M:%S+00:00)"
    comma=
    for name in $names; do
        printf '%s\\n"%s": [' "$comma" $name
        comma=,
        between=
        round=1
        while [ $round -le {ROUNDS} ]; do
            times=$(sed -n 's/.*"latencyMs" : \\([0-9.e+-]*\\).*/\\1/p' times/$name.$round.json |
                paste -s -d , -)
            printf '%s[%s]' "$between" "$times"
            between=,
            round=$((round + 1))
        done
        printf ']'
    done
    printf '\\n}}}}\\n'
}} > {RESULT}.part
mv {RESULT}.part {RESULT}
echo "wrote {RESULT}"
"""
