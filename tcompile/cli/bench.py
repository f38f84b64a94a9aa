"""`tcompile bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tcompile.cli.common import AGAINST, JSON, THREADS, common_options, print_json
from tcompile.cli.progress import progress
from tcompile.cli.tables import print_fidelity, print_table
from tcompile.cli.text import echo

if TYPE_CHECKING:
    from tcompile.planning.memory import Memory
    from tcompile.runtime.timing import Benchmark


@click.command(short_help="Measure dense against reduced on this machine.")
@click.argument("artifact", type=click.Path(path_type=Path))
@AGAINST
@click.option(
    "--rounds",
    type=click.IntRange(min=5),
    default=50,
    show_default=True,
    help="Timed runs of each model.",
)
@THREADS
@JSON
@common_options
def bench(
    artifact: Path, against: Path | None, rounds: int, threads: int | None, as_json: bool
) -> None:
    """Measure the dense and the reduced model on this machine, interleaved; and the memory that
    each takes in a process of its own.

    Both run in the runtime that the artifact is for, OpenVINO or ONNX Runtime; what is for a GPU in
    ONNX Runtime.

    A dense model that computes in fp16 is compared in fp32, as the compiler reads it, and as it
    came: the first is what fewer tokens gain, the second what replacing the file gains. An artifact
    in int8 or bf16 is compared with the dense model in fp32, and in its own precision apart from
    that.

    \b
    Example:
      taskset -c 0,1 tcompile bench vit-cpu --rounds 100
    """
    from tcompile.api.bench import bench as run_bench
    from tcompile.artifact.directory import load_artifact
    from tcompile.core.decode import encode

    with progress() as say:
        result = run_bench(artifact, against=against, rounds=rounds, threads=threads, progress=say)
    manifest = load_artifact(artifact).manifest
    fidelity = manifest.fidelity
    if as_json:
        predicted = encode(manifest.memory)
        print_json(
            {**result.to_json(), "memory_predicted": predicted, "fidelity": encode(fidelity)}
        )
    else:
        print_benchmark(result)
        print_memory(result, manifest.memory)
        if fidelity:
            print_fidelity(fidelity)


def print_memory(result: Benchmark, predicted: Memory | None) -> None:
    """What each model took in a process of its own, beside what was predicted at least."""
    from tcompile.analysis.memory import size_words

    if not result.memory:
        return
    needs = {}
    if predicted is not None and predicted.batch == result.batch:
        needs = {"reduced": predicted.reduced}
        needs |= {"dense" if result.precision == "fp32" else "rival": predicted.dense}
    names = {"rival": f"dense {result.precision}"}
    rows = [
        (
            names.get(name, name),
            size_words(found.running),
            size_words(found.peak),
            size_words(needs[name].total) if name in needs else "",
        )
        for name, found in result.memory.items()
    ]
    head = ("model", "memory when it ran", "most of the process", "predicted at least")
    print_table(head, rows)


def print_benchmark(result: Benchmark) -> None:
    """The figures as a table, and under which conditions they hold."""
    from tcompile.artifact.page import milliseconds
    from tcompile.runtime.timing import EMULATED, dense_in

    dense = "dense" if result.source is None else "dense, fp32 normal form"
    timed = [
        (dense, result.dense),
        ("reduced", result.reduced),
        *([("dense, fp16 as it came", result.source)] if result.source else []),
        *([(f"dense {result.precision}", result.rival)] if result.rival else []),
    ]
    rows = [
        (name, milliseconds(t.median), f"{milliseconds(t.lower)} to {milliseconds(t.upper)}")
        for name, t in timed
    ]
    print_table(("model", "median", "quartiles"), rows)
    s = result.speedup
    ideal = f"; by FLOPs alone {result.flop_ideal:.2f}" if result.flop_ideal else ""
    echo(
        f"speed-up {s.ratio:.2f} [{s.lower:.2f}, {s.upper:.2f}] (95 %) of the reduced model "
        f"over {result.compared}{ideal}"
    )
    if result.source_speedup is not None:
        s = result.source_speedup
        echo(f"speed-up {s.ratio:.2f} [{s.lower:.2f}, {s.upper:.2f}] (95 %) over {EMULATED}")
    if result.rival_speedup is not None:
        s = result.rival_speedup
        over = dense_in(result.precision)
        echo(f"speed-up {s.ratio:.2f} [{s.lower:.2f}, {s.upper:.2f}] (95 %) over {over}")
    echo(
        f"measured: batch {result.batch}, {result.rounds} interleaved rounds, "
        f"{result.threads} threads, {result.runtime}, {result.machine}"
    )
    if result.note:
        echo(f"note: {result.note}")
