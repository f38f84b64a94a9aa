"""Every preset and `auto` on trained weights, judged on photos; scenes against photos.

`python -m benchmarks.real -o docs/benchmarks` brings in what it needs, answers, times, and writes
real.md and real.json. What was measured stays in the data folder: stopped, the same command goes on
where it was. Answers do not depend on what else the machine does, times and plans do: `--answer`
does the first part only.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.real.fetch import default_cache, digest
from benchmarks.real.measure import (
    KEEP,
    LATENCY,
    ON_PHOTOS,
    ON_SCENES,
    PRIOR,
    Cell,
    Dense,
    Row,
    answer,
    timed,
)
from benchmarks.real.page import page, published
from benchmarks.real.readme import METHODS as SHOWN
from benchmarks.real.readme import write_section
from benchmarks.real.subjects import LABELLED, NOISE, OWN, SCENES, Subject, subjects
from benchmarks.state import State
from tcompile import __version__
from tcompile.core.errors import TcompileError
from tcompile.core.machine import usable_cores
from tcompile.methods.presets import PRESETS
from tcompile.planning.request import AUTO
from tcompile.runtime.timing import machine_name
from tcompile.targets.backends.ort import version

KEEPS, CURVE, SHARES = (0.6, 0.4), (0.8, 0.5, 0.3), (0.85, 0.72, 0.6)
METHODS = (*(preset.name for preset in PRESETS), "resolution")
_QUICK = ("topk", "evit", "tome", "tofu", "random")


@dataclass(frozen=True)
class Settings:
    """Settings that figures depend on; those of others are not looked at."""

    photos: int = 20
    scenes: int = 24
    profile: str | None = None
    version: str = __version__


def cells(
    subject: Subject,
    methods: Sequence[str],
    auto: Sequence[str],
    keeps: Sequence[float],
    curve: Sequence[float],
) -> list[Cell]:
    """All that is asked on a model, what matters most first.

    Args:
        curve: at which those that the README shows are looked at besides, so that each has one
            within each latency.
    """
    if not subject.photos:
        return [Cell(subject.name, m, KEEP, keep) for keep in keeps for m in methods]
    found = [Cell(subject.name, m, KEEP, keep) for keep in keeps for m in methods]
    found += [Cell(subject.name, m, KEEP, keep) for keep in curve for m in methods if m in SHOWN]
    for data in auto:
        found += [Cell(subject.name, AUTO, KEEP, keep, data) for keep in keeps]
        found += [Cell(subject.name, AUTO, LATENCY, share, data) for share in SHARES]
    return found


def kinds_of(cell: Cell, subject: Subject, keeps: Sequence[float]) -> list[str]:
    """The kinds of images that a cell answers: each takes its time."""
    shown = cell.method == AUTO or cell.share in keeps
    ranked = cell.method != AUTO and cell.share in keeps
    return [
        kind
        for kind in subject.images
        if kind == OWN or (kind == LABELLED and shown) or (kind in (SCENES, NOISE) and ranked)
    ]


def answered(
    subject: Subject,
    asked: Sequence[Cell],
    keeps: Sequence[float],
    settings: Settings,
    state: State,
) -> list[Row]:
    """The rows of a subject without their times; what `state` has is taken from there.

    Args:
        keeps: at which presets are ranked by all kinds of images.
    """
    model, dense, found = digest(subject.path), Dense(subject), list[Row]()
    of = {"what": "answer", "model": model, **asdict(settings)}

    def make(cell: Cell, kinds: Sequence[str]) -> dict[str, Any]:
        return answer(cell, dense, kinds, settings.profile).to_json()

    for number, cell in enumerate(asked, 1):
        kinds = kinds_of(cell, subject, keeps)
        images = {kind: subject.digests[kind] for kind in kinds}
        key = {**of, "cell": asdict(cell), "images": images}
        known = state.has(key)
        found.append(row := Row.from_json(state.get(key, partial(make, cell, kinds))))
        if not known:
            _say(f"{subject.name} {number} of {len(asked)}: {line(row)}")
    return found


def with_times(
    subject: Subject, rows: Sequence[Row], rounds: int, machine: str, state: State
) -> list[Row]:
    """The rows with their latencies, of the mean of both where a row has two schedules."""
    model = digest(subject.path)

    def key(schedule: Any) -> dict[str, Any]:
        graph = {n: v for n, v in schedule.items() if n not in ("method", "notes")}
        what = {"what": "time", "model": model, "machine": machine, "rounds": rounds}
        return {**what, "schedule": graph}

    asked = {json.dumps(s, sort_keys=True): s for row in rows for s in row.schedules}
    todo = [s for s in asked.values() if not state.has(key(s))]
    for number, (schedule, times) in enumerate(timed(subject, todo, rounds), 1):
        state.get(key(schedule), lambda times=times: times)  # type: ignore[misc]
        _say(f"{subject.name} {number} of {len(todo)} timed: {times['ratio']:.2f} ×")
    found = []
    for row in rows:
        each = [state.get(key(s), dict) for s in row.schedules]
        mean = {n: sum(t[n] for t in each) / len(each) for n in each[0]} if each else None
        found.append(replace(row, times=mean))
    return found


def line(row: Row) -> str:
    """For a log."""
    cell, means = row.cell, []
    for name, kinds in row.figures.items():
        values = kinds["own"]
        means.append(f"{name} {sum(values) / len(values):.4f} (worst {min(values):.3f})")
    said = row.missing or f"{', '.join(means)}, {row.flops:.2f} × fewer FLOPs"
    return f"{cell.label} at {cell.budget} {cell.share:g}: {said}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real", description=__doc__)
    parser.add_argument("--data", type=Path, help="where packages, models and the state lie")
    parser.add_argument("--models", nargs="+", help="saliency, features, glyphs [default: all]")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--auto", nargs="*", default=[ON_SCENES, ON_PHOTOS, PRIOR])
    parser.add_argument("--keeps", nargs="+", type=float, default=list(KEEPS))
    parser.add_argument("--curve", nargs="*", type=float, default=list(CURVE), help="more keeps")
    parser.add_argument("--photos", type=int, default=20)
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=30, help="in which every model is timed")
    parser.add_argument("--profile", help="where the planner has latencies from: measure, model")
    parser.add_argument("--no-labels", action="store_true", help="without stamps from Debian")
    parser.add_argument("--quick", action="store_true", help="4 photos, 5 presets, keep 0.6")
    parser.add_argument("--answer", action="store_true", help="answers only, nothing is timed")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    parser.add_argument("--readme", type=Path, help="write the section of a README, from real.json")
    parser.add_argument("-o", "--output", type=Path, help="a folder for real.md and real.json")
    given = parser.parse_args()
    if given.quick:
        given.photos, given.scenes, given.rounds, given.no_labels = 4, 4, 5, True
        given.keeps, given.curve = [0.6], []
        given.methods = [m for m in given.methods if m in _QUICK]
    return given


def main() -> None:
    """Measure what is missing, print the page."""
    given = _arguments()
    if given.readme is not None:
        folder = given.output or Path("docs/benchmarks")
        write_section(given.readme, json.loads((folder / "real.json").read_text(encoding="utf-8")))
        return
    cache = (given.data or default_cache()).resolve()
    cache.mkdir(parents=True, exist_ok=True)
    if given.fresh:
        (cache / "real.state.jsonl").unlink(missing_ok=True)
    state = State(cache / "real.state.jsonl")
    settings = Settings(given.photos, given.scenes, given.profile)
    machine = f"{machine_name()}, ONNX Runtime {version()}"
    rows: list[Row] = []
    for subject in subjects(cache, given.photos, given.scenes, not given.no_labels):
        if given.models and subject.name not in given.models:
            continue
        asked = cells(subject, given.methods, given.auto, given.keeps, given.curve)
        found = answered(subject, asked, given.keeps, settings, state)
        if subject.photos and not given.answer:
            found = with_times(subject, found, given.rounds, machine, state)
        rows += found
    conditions = {"rounds": given.rounds, "machine": machine, "cores": usable_cores()}
    made = published(rows, {**asdict(settings), "keeps": given.keeps, **conditions})
    print(page(made))
    if given.output is not None:
        (given.output / "real.md").write_text(page(made), encoding="utf-8")
        (given.output / "real.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    if any("BUG" in row.missing for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    try:
        main()
    except TcompileError as error:  # such as a package that cannot be downloaded
        raise SystemExit(error.one_line()) from error
