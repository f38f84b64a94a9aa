"""Planned schedules against every method's own, at equal measured latency.

`python -m benchmarks.planner --work DIR -o docs/benchmarks`: for each model with trained weights
(random ones do not show which tokens had better stay), schedules are solved for a row of latency
budgets (method `auto`, calibrated on images of their own), and every preset follows its own
published schedule at one or more keeps. All answer the same held-out images, and all are timed in
the same rounds. A method is then compared with the planned model that loses least of those that
took no longer than it did.

What was answered and timed stays in DIR: stopped, the same command goes on; `--fresh` begins again.
Answers do not depend on what else the machine does; times and plans do. `--answer` does the first
part only, `--time` the second, so that it can have a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from benchmarks.methods_given import prepare
from benchmarks.planner_page import page, plot
from benchmarks.profiles import timed, together_of
from benchmarks.real.fetch import digest
from benchmarks.real.measure import planned_dense_ms
from benchmarks.state import State
from benchmarks.subjects import HELD_OUT, TRAINED, Subject, calibration, export, find, images
from tcompile import __version__
from tcompile.core.errors import TcompileError
from tcompile.methods.composition import find_method
from tcompile.methods.presets import PRESETS
from tcompile.pipeline import price, read, reduce
from tcompile.profiling.runtimes import CpuRuntime
from tcompile.runtime.metrics import correlation, cosine
from tcompile.runtime.samples import Samples, run_all, run_graph
from tcompile.runtime.timing import machine_name
from tcompile.targets import load_target

#: Budgets of the planned schedules, as shares of the dense model's latency.
BUDGETS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4)
METHODS = (*(preset.name for preset in PRESETS), "resolution")
CALIBRATE = {"glyphs": 128}


@dataclass(frozen=True)
class Point:
    """One model: what it answers, and what it takes.

    Attributes:
        name: the method, or `planned`.
        ask: its keep, or its budget as a share of the dense latency.
        schedule: as JSON; None where the method has none for the model, and `why`.
        cosine: of its output to the dense model's, the mean over the images.
        correlation: of maps, in place of it.
        top1: share of right answers, where there are labels.
        share: of the dense model's latency, measured beside it.
    """

    name: str
    ask: str
    schedule: dict[str, Any] | None
    why: str = ""
    method: str = ""
    cosine: float | None = None
    correlation: float | None = None
    top1: float | None = None
    share: float | None = None


def asked_of(subject: Subject) -> list[tuple[str, str]]:
    """All models of a subject: (name, ask)."""
    own = [(name, keep) for name in METHODS for keep in subject.keeps]
    return [*(("planned", str(share)) for share in BUDGETS), *own]


def scheduled(subject: Subject, name: str, ask: str, path: Path, folder: Path) -> Point:
    """A model of a subject, without its answers."""
    data = calibration(subject, path, folder, CALIBRATE.get(subject.name, 32))
    asked: dict[str, Any] = {"target": "cpu", "outputs": subject.outputs}
    try:
        if name == "planned":
            asked |= {"calibration": data}
            budget = float(ask) * planned_dense_ms(path, subject.outputs)
            made = price(path, latency=budget, **asked).schedule
        else:
            text, options = name, dict[str, Any]()
            if subject.name == "glyphs":
                text, options = prepare(name, ask, path, folder)
            elif find_method(name).scheduler.observes:
                options = {"calibration": data}
            made = reduce(path, keep=ask, method=text, **{**asked, **options}).schedule
    except TcompileError as error:
        return Point(name, ask, None, error.one_line().replace(str(folder), "…"))
    return Point(name, ask, made.to_json(), method=made.method if name == "planned" else name)


def answered(subject: Subject, path: Path, folder: Path, state: State) -> list[Point]:
    """All points of a subject with what they answer."""
    given = images(subject, path, HELD_OUT, subject.scenes)
    labels = given.pop("labels", None)
    samples = Samples(given, "held-out images", real=True)
    model = digest(path)
    dense: list[Any] = []

    def score(found: Any) -> dict[str, Any]:
        if not dense:  # Only where something is left to be answered.
            dense.append(first_output(run_all(path, samples)))
        if subject.photos:
            return {"correlation": float(correlation(dense[0], found).mean())}
        top1 = None if labels is None else float((found.argmax(-1) == labels).mean())
        return {"cosine": float(cosine(dense[0], found).mean()), "top1": top1}

    def make(name: str, ask: str) -> dict[str, Any]:
        if name == "dense":
            found = first_output(run_all(path, samples))
            return asdict(replace(Point("dense", "1", None), **score(found)))
        made = scheduled(subject, name, ask, path, folder)
        if made.schedule is not None:
            try:
                graph = reduced(subject, path, made.schedule)
                made = replace(made, **score(first_output(run_graph(graph, samples))))
            except TcompileError as error:
                made = replace(made, schedule=None, why=error.one_line())
        return asdict(made)

    points = []
    for name, ask in [("dense", "1"), *asked_of(subject)]:
        key = {"what": "planner", "model": model, "name": name, "ask": ask, "version": __version__}
        point = Point(**state.get(key, partial(make, name, ask)))
        figures = (point.correlation, point.cosine, point.top1)
        _say(subject.name, name, ask, *(f for f in figures if f is not None), point.why[:80])
        points.append(point)
    return points


def first_output(outputs: Mapping[str, Any]) -> Any:
    """The model's first output, [images, …]."""
    return next(iter(outputs.values()))


def reduced(subject: Subject, path: Path, schedule: Mapping[str, Any]) -> gs.Graph:
    """The graph of a schedule."""
    return reduce(path, target="cpu", schedule=schedule, outputs=subject.outputs).graph


def timed_points(
    subject: Subject, path: Path, points: Sequence[Point], rounds: int, state: State
) -> list[Point]:
    """The points with their share of the dense model's latency, measured in the same rounds."""
    model, runtime, file = read(path), CpuRuntime(load_target("cpu")), digest(path)

    def key(point: Point) -> dict[str, Any]:
        what = {"what": "time", "model": file, "rounds": rounds, "machine": machine_name()}
        return {**what, "schedule": point.schedule}

    todo = [p for p in points if p.schedule is not None and not state.has(key(p))]
    with tempfile.TemporaryDirectory(prefix="tcompile-bench-") as folder:
        part = Path(folder) / "model.onnx"
        together = together_of(path)
        for start in range(0, len(todo), together):
            some = todo[start : start + together]
            calls = [runtime.open(model.graph, part)]
            for point in some:
                assert point.schedule is not None
                calls.append(runtime.open(reduced(subject, path, point.schedule), part))
            dense, *times = timed(calls, rounds, start)
            for point, ms in zip(some, times, strict=True):
                state.get(key(point), partial(float, ms / dense))
            _say(subject.name, f"{start + len(some)} of {len(todo)} timed")
            del calls
    return [
        p if p.schedule is None else replace(p, share=state.get(key(p), lambda: None))
        for p in points
    ]


def _say(*what: object) -> None:
    print(*what, file=sys.stderr, flush=True)


def main() -> None:
    """Answer, time, write planner.{md,json} and a picture a model."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planner", description=__doc__)
    parser.add_argument("--models", nargs="+", default=[s.name for s in TRAINED])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    parser.add_argument("--answer", action="store_true", help="answers only")
    parser.add_argument("--time", action="store_true", help="times only")
    parser.add_argument("--work", type=Path, required=True, help="where models and answers lie")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    conditions = CpuRuntime(load_target("cpu")).conditions()
    found: dict[str, Any] = {
        "machine": machine_name(),
        "runtime": f"ONNX Runtime {conditions.software['onnxruntime']}",
        "threads": conditions.threads,
        "date": conditions.date[:10],
        "models": {},
    }
    if given.fresh:
        (given.work / "planner.state.jsonl").unlink(missing_ok=True)
    state = State(given.work / "planner.state.jsonl")
    for name in given.models:
        subject, kept = find(name), given.work / f"{name}.planner.json"
        path = export(subject, given.work)
        if given.time:
            points = [Point(**p) for p in json.loads(kept.read_text())]
        else:
            points = answered(subject, path, given.work, state)
            kept.write_text(json.dumps([asdict(p) for p in points]))
        if given.answer:
            continue
        points = timed_points(subject, path, points, given.rounds, state)
        kept.write_text(json.dumps([asdict(p) for p in points]))
    if given.answer:
        return
    # All that were ever timed in this folder, so that a page can be made piece by piece.
    for name in (s.name for s in TRAINED):
        kept = given.work / f"{name}.planner.json"
        points = [Point(**p) for p in json.loads(kept.read_text())] if kept.exists() else []
        if any(p.share is not None for p in points):
            found["models"][name] = [
                {
                    **{k: v for k, v in asdict(p).items() if k != "schedule"},
                    "there": p.schedule is not None,
                }
                for p in points
            ]
    print(page(found))
    if given.output is not None:
        (given.output / "planner.md").write_text(page(found))
        (given.output / "planner.json").write_text(json.dumps(found, indent=1) + "\n")
        plot(found, given.output)


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    main()
