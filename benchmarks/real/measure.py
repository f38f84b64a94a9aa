"""A cell of the tables: a method, asked for a budget on a model; what it answers and takes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.methods_given import fit_head, prepare, tokens_at, with_head
from benchmarks.real.figures import retrieved, same_neighbour
from benchmarks.real.models import CLS, SALIENCY, saliency_model
from benchmarks.real.subjects import LABELLED, OWN, Subject
from tcompile.api.profile import profile
from tcompile.core.errors import TcompileError
from tcompile.core.save import save
from tcompile.core.schedule import Schedule
from tcompile.methods.composition import find_method
from tcompile.pipeline import price, reduce
from tcompile.planning.cost import cost_of
from tcompile.planning.request import AUTO
from tcompile.runtime.samples import Samples, feed, run_all
from tcompile.runtime.signature import signature
from tcompile.runtime.timing import interleave, speedup, summarise
from tcompile.targets.backends.ort import OrtRunner

KEEP, LATENCY = "keep", "latency"
#: What `auto` weighs methods by: nothing but its prior, scenes, photos.
PRIOR, ON_SCENES, ON_PHOTOS = "prior", "scenes", "photos"
#: Models that are open beside the dense one, at most.
_TOGETHER = 12


@dataclass(frozen=True)
class Cell:
    """What is asked.

    Attributes:
        subject: by name.
        method: a preset, or `auto`.
        budget: `keep` or `latency`.
        share: of the patch tokens, or of the dense model's latency.
        data: of `auto`, what it is calibrated on; empty for a method's own schedule.
    """

    subject: str
    method: str
    budget: str
    share: float
    data: str = ""

    @property
    def label(self) -> str:
        """For tables."""
        return f"{self.method}, {self.data}" if self.data else self.method


@dataclass(frozen=True)
class Row:
    """What came of a cell.

    Attributes:
        schedules: JSON, one, or one for each half of the own images.
        chosen: the method of each.
        tokens: patch tokens that leave the encoder.
        flops: of the dense model over those of the reduced one.
        figures: by task and kind of images, one an image.
        neighbours: the share of the own images that have the dense model's nearest neighbour.
        retrieved: the share of labelled images whose nearest neighbour has their label.
        missing: why there is nothing.
        times: ratio of the latencies, dense over reduced, and its 95 % interval; `load` beside.
    """

    cell: Cell
    schedules: tuple[Mapping[str, Any], ...] = ()
    chosen: tuple[str, ...] = ()
    tokens: float = 0.0
    flops: float = 1.0
    figures: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    neighbours: float | None = None
    retrieved: float | None = None
    missing: str = ""
    times: Mapping[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> Row:
        whole = {**found, "cell": Cell(**found["cell"])}
        return Row(**{**whole, **{n: tuple(found[n]) for n in ("schedules", "chosen")}})

    @property
    def share(self) -> float | None:
        """Of the dense model's latency."""
        return None if self.times is None else 1 / self.times["ratio"]


class Dense:
    """A subject's dense model and what it answers, by kind of images: run when first asked."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._known: dict[str, Mapping[str, Any]] = {}

    def outputs(self, kind: str) -> Mapping[str, Any]:
        """All outputs for images of a kind."""
        if kind not in self._known:
            self._known[kind] = run_all(self.subject.path, self.subject.images[kind])
        return self._known[kind]


def schedules_of(cell: Cell, subject: Subject, source: str | None) -> list[Schedule]:
    """The schedules of a cell: one, or one made on each half of the photos.

    Raises:
        TcompileError: the method has none on the model.
    """
    asked: dict[str, Any] = {"target": "cpu", "outputs": "restored"}
    if cell.method != AUTO:
        method, data = given_to(cell.method, str(cell.share), subject)
        asked |= {"method": method, cell.budget: cell.share}
        return [reduce(subject.path, **asked, **data).schedule]
    data_of: dict[str, list[dict[str, Any]]] = {
        PRIOR: [{"calibration": "none"}],
        ON_SCENES: [{}],
        ON_PHOTOS: [{"calibration": subject.half(1 - which)} for which in (0, 1)],
    }
    asked |= {} if source is None else {"profile": source}
    found = []
    for data in data_of[cell.data]:
        budget = cell.share
        if cell.budget == LATENCY:
            budget *= planned_dense_ms(subject.path, "restored", source)
        given = {**asked, **data, cell.budget: budget}
        found.append(price(subject.path, **given).schedule)
    return found


@cache
def planned_dense_ms(path: Path, outputs: str, source: str | None = None) -> float:
    """The dense model's latency as the planner has it: shares of that are what is compared.

    Args:
        source: `model`; measured by default, as it is for a budget of latency.
    """
    modelled = source == "model"
    asked: dict[str, Any] = {"target": "cpu", "outputs": outputs, "modelled": modelled}
    found = profile(path, methods=("topk",), seconds=60, **asked).profile.dense
    assert found is not None
    return found.ms


def given_to(method: str, keep: str, subject: Subject) -> tuple[str, dict[str, Any]]:
    """A preset as `--method` takes it, and what else it is given: scenes to learn its counts from;
    a head, which finds on them what people look at, as the dense model has it.

    Raises:
        UsageError: the method does not fit the model.
    """
    preset, folder = find_method(method.partition(":")[0]), subject.cache
    if "head" in preset.required:
        if not subject.photos:
            return prepare(method, keep, subject.path, folder)
        return with_head(method, keep, subject.path, folder, partial(_head, subject=subject)), {}
    return method, {"calibration": subject.learned_from} if "calibration" in preset.needs else {}


def _head(sites: Sequence[str], folder: Path, subject: Subject) -> Path:
    name = f"{subject.learned_from.stem}-head-{'-'.join(sites).replace(':', '')}.npz"
    if (folder / name).exists():
        return folder / name
    with np.load(subject.learned_from) as file:
        (images,) = (file[n] for n in file.files)
    source = saliency_model(subject.cache)
    given = {signature(source).inputs[0].name: images}
    maps = run_all(source, Samples(given, "", real=True))[SALIENCY][:, 0]
    patches = maps.reshape(len(maps), 16, 14, 16, 14).mean((2, 4)).reshape(len(maps), -1)
    wanted = patches > np.median(patches, axis=1, keepdims=True)
    tokens = tokens_at(sites, subject.path, {subject.signature.inputs[0].name: images})
    return fit_head(tokens, wanted, folder / name)


def answer(cell: Cell, dense: Dense, kinds: Sequence[str], source: str | None = None) -> Row:
    """The row of a cell, without its times.

    Args:
        kinds: of images that it answers, the subject's own among them.
        source: of the latencies that `auto` plans by; see `--profile`.
    """
    subject, row = dense.subject, Row(cell)
    try:
        schedules = schedules_of(cell, subject, source)
        folds = [_answered(subject, schedule.to_json(), kinds) for schedule in schedules]
    except TcompileError as error:
        return replace(row, missing=error.one_line().replace(str(subject.cache), "…"))
    except Exception as error:  # one method's bug is no reason to lose the others' figures
        return replace(row, missing=f"BUG: {type(error).__name__}: {str(error)[:300]}")

    def joined(figure: Callable[[Any, Any], Any], kind: str, output: str) -> list[float]:
        """Of each image, what the schedule gives that was made without it."""
        want = dense.outputs(kind)[output]
        each = [figure(want, fold.got[kind][output]) for fold in folds]
        if kind != OWN or len(each) == 1:
            return [float(v) for v in each[0]]
        return [float(each[i % 2][i]) for i in range(subject.count)]

    figures = {
        task.name: {k: joined(task.figure, k, task.output) for k in kinds if k != LABELLED}
        for task in subject.tasks
    }
    if CLS in dense.outputs(OWN):
        row = replace(row, neighbours=float(np.mean(joined(same_neighbour, OWN, CLS))))
    if LABELLED in kinds:
        right = [retrieved(fold.got[LABELLED][CLS], subject.labels) for fold in folds]
        row = replace(row, retrieved=float(np.mean(right)))
    return replace(
        row,
        schedules=tuple(s.to_json() for s in schedules),
        chosen=tuple(s.method for s in schedules),
        tokens=float(np.mean([s.final for s in schedules])),
        flops=float(np.mean([fold.flops for fold in folds])),
        figures=figures,
    )


@dataclass(frozen=True, eq=False)
class _Answered:
    """A schedule's answers, by kind of images and output; dense FLOPs over its own."""

    got: Mapping[str, Mapping[str, Any]]
    flops: float


def _answered(subject: Subject, schedule: Mapping[str, Any], kinds: Sequence[str]) -> _Answered:
    made = reduce(subject.path, target="cpu", schedule=schedule, outputs="restored")
    cost = cost_of(made)
    with tempfile.TemporaryDirectory(prefix="tcompile-bench-") as folder:
        path = Path(folder) / "model.onnx"
        save(made.graph, path)
        got = {kind: run_all(path, subject.images[kind]) for kind in kinds}
    return _Answered(got, cost.dense / cost.reduced)


def timed(
    subject: Subject, schedules: Sequence[Mapping[str, Any]], rounds: int
) -> Iterator[tuple[Mapping[str, Any], dict[str, float]]]:
    """Each schedule with its times: all and the dense model in the same rounds, in random order."""
    given = {name: array[:1] for name, array in subject.images[OWN].arrays.items()}
    for start in range(0, len(schedules), _TOGETHER):
        some = schedules[start : start + _TOGETHER]
        with tempfile.TemporaryDirectory(prefix="tcompile-bench-") as folder:
            path = Path(folder) / "model.onnx"
            calls = []
            for schedule in ({}, *some):
                if schedule:
                    made = reduce(subject.path, target="cpu", schedule=schedule, outputs="restored")
                    save(made.graph, path)
                runner = OrtRunner(path if schedule else subject.path)
                calls.append(partial(runner.run, feed(runner.inputs, given)))
            before = os.getloadavg()[0]
            dense, *times = interleave(calls, rounds=rounds, seed=start)
            load = max(before, os.getloadavg()[0])
        for schedule, mine in zip(some, times, strict=True):
            found = asdict(speedup(dense, mine))
            ms = {"ms": summarise(mine).median, "dense_ms": summarise(dense).median}
            yield schedule, {**found, **ms, "load": round(load, 1)}
