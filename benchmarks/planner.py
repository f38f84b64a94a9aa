"""Planned schedules against every method's own, at equal measured latency.

`python -m benchmarks.planner --work DIR -o docs/benchmarks`: for each model, schedules are solved
for a row of latency budgets (method `auto`, calibrated on images of their own), and every preset
follows its own published schedule at one or more keeps. All answer the same held-out images, and
all are timed in the same rounds. A method is then compared with the planned model that loses least
of those that took no longer than it did.

Answers do not depend on what else the machine does; times do. `--answer` does the first part only,
`--time` the second, so that it can have a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from benchmarks.methods_given import prepare
from benchmarks.planner_page import page, plot
from benchmarks.profiles import timed, together_of
from benchmarks.subjects import HELD_OUT, SUBJECTS, Subject, calibration, export, find, images
from tcompile.core.errors import TcompileError
from tcompile.core.schedule import Schedule
from tcompile.methods.presets import PRESETS
from tcompile.passes.reduce import reduce_graph
from tcompile.passes.stages import Analysed
from tcompile.pipeline import read
from tcompile.planning.method_schedule import schedule_for
from tcompile.planning.request import Request
from tcompile.planning.solve.latencies import measured
from tcompile.planning.solve.method_tables import methods_for
from tcompile.planning.solve.solve import solve_request
from tcompile.profiling.runtimes import OrtRuntime
from tcompile.runtime.metrics import cosine
from tcompile.runtime.samples import Samples, run_graph
from tcompile.runtime.timing import machine_name
from tcompile.targets import load_target

#: Budgets of the planned schedules, as shares of the dense model's latency.
BUDGETS = tuple(round(1 - 0.04 * i, 2) for i in range(1, 18))
CALIBRATE = {"glyphs": 128}


@dataclass(frozen=True)
class Point:
    """One model: what it answers, and what it takes.

    Attributes:
        name: the method, or `planned`.
        ask: its keep, or its budget as a share of the dense latency.
        schedule: as JSON; None where the method has none for the model, and `why`.
        cosine: of its output to the dense model's, the mean over the images.
        top1: share of right answers, where there are labels.
        share: of the dense model's latency, measured beside it.
    """

    name: str
    ask: str
    schedule: dict[str, Any] | None
    why: str = ""
    method: str = ""
    cosine: float | None = None
    top1: float | None = None
    share: float | None = None


def answers(graph: gs.Graph, samples: Samples) -> Any:
    """The model's first output, [images, …]."""
    return next(iter(run_graph(graph, samples).values()))


def wanted(subject: Subject, path: Path, model: Analysed, folder: Path) -> Iterator[Point]:
    """All models of a subject, without their answers."""
    count = CALIBRATE.get(subject.name, 32)
    data = calibration(subject, path, folder, count)
    target = load_target("cpu")
    for share in BUDGETS:
        request = Request(latency=1.0, calibration=data, images=count // 2)
        methods = methods_for(model, request)
        profile = measured(model, methods, target, request, lambda text: None)
        assert profile.dense is not None
        # The budget is of the profile's own dense model: shares are what is compared.
        asked = replace(request, latency=share * profile.dense.ms)
        try:
            planned = solve_request(model, asked, methods, profile, lambda text: None)
            made = planned.schedule
            yield Point("planned", str(share), made.to_json(), method=made.method)
        except TcompileError as error:
            yield Point("planned", str(share), None, error.one_line())
    for preset in PRESETS:
        for keep in subject.keeps:
            try:
                text, options = preset.name, {}
                if subject.name == "glyphs":
                    text, options = prepare(preset.name, keep, path, folder)
                elif preset.scheduler.observes:
                    options = {"calibration": data}
                schedule = schedule_for(model, keep, text, **options)
            except TcompileError as error:
                yield Point(preset.name, keep, None, error.one_line().replace(str(folder), "…"))
                continue
            yield Point(preset.name, keep, schedule.to_json(), method=preset.name)


def answered(subject: Subject, path: Path, folder: Path) -> list[Point]:
    """All points of a subject with what they answer."""
    model = read(path)
    given = images(subject, path, HELD_OUT, subject.scenes)
    labels = given.pop("labels", None)
    samples = Samples(given, "held-out scenes", real=True)
    dense = answers(model.graph, samples)

    def score(found: Any) -> dict[str, float | None]:
        top1 = None if labels is None else float((found.argmax(-1) == labels).mean())
        return {"cosine": float(cosine(dense, found).mean()), "top1": top1}

    points = [replace(Point("dense", "1", None), **score(dense))]  # type: ignore[arg-type]
    for point in wanted(subject, path, model, folder):
        made = point
        if point.schedule is not None:
            schedule = Schedule.from_json(point.schedule)
            try:
                graph = reduce_graph(model.graph, model.analysis, schedule).graph
                made = replace(point, **score(answers(graph, samples)))  # type: ignore[arg-type]
            except TcompileError as error:
                made = replace(point, schedule=None, why=error.one_line())
        print(
            subject.name,
            made.name,
            made.ask,
            made.cosine,
            made.top1,
            made.why[:80],
            file=sys.stderr,
            flush=True,
        )
        points.append(made)
    return points


def timed_points(path: Path, points: Sequence[Point], rounds: int) -> list[Point]:
    """The points with their share of the dense model's latency, measured in the same rounds."""
    model, runtime = read(path), OrtRuntime(load_target("cpu"))
    known: dict[str, float] = {}
    todo = [p for p in points if p.schedule is not None]
    with tempfile.TemporaryDirectory(prefix="tcompile-bench-") as folder:
        part = Path(folder) / "model.onnx"
        together = together_of(path)
        for start in range(0, len(todo), together):
            some = todo[start : start + together]
            calls = [runtime.open(model.graph, part)]
            for point in some:
                assert point.schedule is not None
                schedule = Schedule.from_json(point.schedule)
                made = reduce_graph(model.graph, model.analysis, schedule).graph
                calls.append(runtime.open(made, part))
            dense, *times = timed(calls, rounds, start)
            for point, ms in zip(some, times, strict=True):
                known[f"{point.name} {point.ask}"] = ms / dense
            print(path.stem, f"{start + len(some)} of {len(todo)} timed", file=sys.stderr)
            del calls
    return [replace(p, share=known.get(f"{p.name} {p.ask}", p.share)) for p in points]


def main() -> None:
    """Answer, time, write planner.{md,json} and a picture a model."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planner", description=__doc__)
    parser.add_argument("--models", nargs="+", default=[s.name for s in SUBJECTS])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--answer", action="store_true", help="answers only")
    parser.add_argument("--time", action="store_true", help="times only")
    parser.add_argument("--work", type=Path, required=True, help="where models and answers lie")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    conditions = OrtRuntime(load_target("cpu")).conditions()
    found: dict[str, Any] = {
        "machine": machine_name(),
        "runtime": f"ONNX Runtime {conditions.software['onnxruntime']}",
        "threads": conditions.threads,
        "date": conditions.date[:10],
        "models": {},
    }
    for name in given.models:
        subject, kept = find(name), given.work / f"{name}.planner.json"
        path = export(subject, given.work)
        if given.time:
            points = [Point(**p) for p in json.loads(kept.read_text())]
        else:
            points = answered(subject, path, given.work)
            kept.write_text(json.dumps([asdict(p) for p in points]))
        if given.answer:
            continue
        points = timed_points(path, points, given.rounds)
        kept.write_text(json.dumps([asdict(p) for p in points]))
    if given.answer:
        return
    # All that were ever timed in this folder, so that a page can be made piece by piece.
    for name in (s.name for s in SUBJECTS):
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
