"""What the figures of a report are computed from: models that ran, rounds, a profile."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from platform import python_version
from typing import Any

import numpy as np
import onnxruntime as ort

from tests.oracles.report.graph import recorded
from tests.oracles.report.likeness import likenesses, planning_loss
from tests.oracles.report.shown import Array
from tests.oracles.report.speed import interval, predicted


@dataclass(frozen=True)
class Given:
    """What a build was given, for the figures to be computed from.

    Attributes:
        artifact: its folder.
        source: the model that was compiled.
        normal: its normal form, of which the dense model's FLOPs and memory are.
        keep: share of the patch tokens that was asked for, as it was typed.
        seen: inputs that fidelity is shown on.
        names: of these.
        planned: inputs that the plan was made with; None: no loss was seen on images.
        profile: that it was planned by; None: not known.
        printed: what `tcompile build` printed.
        command: that was typed, as the report should repeat it.
        threads: that latency was measured with.
        total: samples of the data that it was given, and its name.
        own: of those that were planned with, how many are of the data.
        stages: models that do the first steps of the schedule only: one, two, …, and all of them
            where the artifact does not say which tokens it keeps.
    """

    artifact: Path
    source: Path
    normal: Path
    keep: str
    seen: Mapping[str, Array]
    names: Sequence[str]
    planned: Mapping[str, Array] | None = None
    profile: Path | None = None
    printed: str = ""
    command: str = ""
    threads: int = 1
    total: tuple[int, str] = (0, "")
    own: int = 0
    stages: Sequence[Path] = ()


@cache
def version_of(package: str) -> str:
    """The version that is installed."""
    return python_version() if package == "python" else metadata.version(package)


class Evidence:
    """Everything is run once, here."""

    def __init__(self, given: Given) -> None:
        self.given, model = given, given.artifact / "model.onnx"
        self.m: dict[str, Any] = json.loads((given.artifact / "manifest.json").read_text("utf-8"))
        self.digest = hashlib.sha256(given.source.read_bytes()).hexdigest()
        self.ends = _ends(model)
        self.labels, self.prefix = self.m["labels"], int(self.m["schedule"]["model"]["prefix"])
        self.dense, self.reduced = recorded(given.normal), recorded(model)
        self.peaks = self.dense.peak(), self.reduced.peak()
        self.outputs = [_run(path, given.seen) for path in (given.source, model)]
        self.likenesses = likenesses(*self.outputs)
        stages = [_run(path, given.seen)["token_owner"] for path in given.stages]
        last = self.outputs[1].get("token_owner")
        self.owners = [*stages, *([] if last is None else [last])]
        self.rounds = {f["model"]: f["rounds"] for f in self.m["latency"]}
        self.intervals = {n: interval(r, self.rounds["reduced"]) for n, r in self.rounds.items()}
        self.lost = self.predicted = None
        if given.planned is not None:
            both = [_run(path, given.planned) for path in (given.source, model)]
            self.lost = planning_loss(*both)
        if given.profile is not None:
            self.predicted = predicted(given.profile, given.source, self.m, self.reduced)

    @property
    def chosen_loss(self) -> float:
        """Half the mean over the images that were planned with, half that of the worst quarter."""
        assert self.lost is not None
        quarter = np.sort(self.lost)[-max(len(self.lost) // 4, 1) :]
        return float(self.lost.mean() + quarter.mean()) / 2


#: Names of types: of ONNX Runtime, and of numpy.
_TYPES = {"float": "float32", "int64": "int64", "int32": "int32", "uint8": "uint8"}


def _ends(path: Path) -> list[tuple[str, str, str, list[int | str]]]:
    """Kind, name, type and dims of what a model takes and gives, as ONNX Runtime has them."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    ends = [("input", t) for t in session.get_inputs()]
    ends += [("output", t) for t in session.get_outputs()]
    return [(kind, t.name, _TYPES[t.type[7:-1]], t.shape) for kind, t in ends]


def _run(path: Path, feed: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs by name, a sample at a time: a fixed batch of 1 is taken too. Inputs go by their
    order, since models of one encoder may call them otherwise."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = dict(zip((i.name for i in session.get_inputs()), feed.values(), strict=True))
    names, count = [o.name for o in session.get_outputs()], len(next(iter(feed.values())))
    rows = [session.run(names, {n: a[i : i + 1] for n, a in feed.items()}) for i in range(count)]
    return {
        n: np.concatenate(parts) for n, parts in zip(names, zip(*rows, strict=True), strict=True)
    }
