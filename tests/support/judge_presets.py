"""Judgement of what a schedule makes of a model, as far as that is possible for any schedule.

Counts and finite numbers; each image by itself as in a batch; `token_index`, `token_owner` and
`token_size` agree with each other; `restored` gives each token its owner's row; and where tokens
only ever leave, NumPy computes a `GridVit` with the same tokens gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnxruntime

from tcompile import pipeline
from tcompile.core.schedule import Reduction, Schedule
from tcompile.passes.reduce.reducers import filled_reducer, find_reducer, traits_of
from tcompile.passes.stages import Analysed
from tests.support.grid_vit import GridVit, forward
from tests.support.onnx_models import plain_options, to_onnx

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]
#: Ops that TensorRT has not, or not with static shapes.
UNFIT = {"NonZero", "Loop", "If", "Scan", "Compress", "Unique", "ScatterND", "Range", "Random"}
#: One image of a batch against the same image alone, relative to the largest value.
CLOSE = 2e-4
#: Tokens that only leave, at most as many as this, are reckoned in NumPy as well.
LEAVING = ("topk",)


class WrongError(AssertionError):
    """Raised where a build is not what the schedule says."""


@dataclass(frozen=True)
class Subject:
    """A model as it is asked of the compiler.

    Attributes:
        model: read.
        batch: 0 where it is free.
        feed: three images, or as many as it takes.
        known: spec and weights of a `GridVit`; None for other models.
    """

    model: Analysed
    batch: int
    feed: Arrays
    known: tuple[GridVit, Arrays] | None = None

    @property
    def source(self) -> str:
        return self.model.source


def run(model: onnx.ModelProto, feed: Arrays) -> dict[str, Array]:
    """All outputs by name, on one thread, warnings off."""
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), plain_options(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feed)), strict=True))


def check(subject: Subject, schedule: Schedule, outputs: str) -> str:
    """Build and check; says how far it could be checked.

    Raises:
        WrongError: a wrong model.
        Anything that tcompile raises.
    """
    again = Schedule.from_json(schedule.to_json())
    if again != schedule:
        raise WrongError("the schedule is another after JSON")
    model = built(subject, schedule, outputs)
    found = run(model, subject.feed)
    dense = run(to_onnx(subject.model.graph), subject.feed)
    for name, value in found.items():
        source = dense.get(name, np.zeros(1))
        if np.isfinite(source).all() and not np.isfinite(value).all():
            raise WrongError(f"'{name}' is not finite")
    if subject.batch == 0:
        _check_alone(model, subject.feed, found)
    said = _check_outputs(subject, schedule, outputs, found, dense)
    if outputs == "reduced" and subject.known and schedule.reductions:
        said += _check_leaving(subject, schedule, found)
    return said


def built(subject: Subject, schedule: Schedule, outputs: str) -> onnx.ModelProto:
    """The reduced model, checked by ONNX."""
    reduced = pipeline.apply_schedule(subject.model, schedule, outputs)
    model = to_onnx(reduced.graph)
    onnx.checker.check_model(model, full_check=True)
    nodes = [*model.graph.node, *(n for f in model.functions for n in f.node)]
    names = {n.op_type for n in to_onnx(subject.model.graph).graph.node}
    unfit = {n.op_type for n in nodes} & UNFIT - names
    if unfit:
        raise WrongError(f"ops that TensorRT has not: {unfit}")
    return model


def _check_alone(model: onnx.ModelProto, feed: Arrays, found: Arrays) -> None:
    """Each image by itself gives what it gives in a batch."""
    batch = len(next(iter(feed.values())))
    for i in range(batch):
        alone = run(model, {k: v[i : i + 1] for k, v in feed.items()})
        for name, value in alone.items():
            if len(found[name]) != batch:
                continue
            if value.dtype.kind != "f":
                if not np.array_equal(value[0], found[name][i]):
                    raise WrongError(f"'{name}' of image {i} is another in a batch")
                continue
            far = np.abs(value[0].astype(float) - found[name][i]).max(initial=0)
            if not far <= CLOSE * max(np.abs(value).max(initial=0), 1e-3):
                raise WrongError(f"'{name}' of image {i} is off by {far:.2e} in a batch")


def _whole(one: Reduction) -> bool:
    return one.site.startswith(("around", "inside"))


def _check_outputs(
    subject: Subject, schedule: Schedule, outputs: str, found: Arrays, dense: Arrays
) -> str:
    space = subject.model.analysis.space
    total, fixed = space.patches, space.prefix + space.suffix
    stay = all(_whole(r) for r in schedule.reductions) or schedule.final == total
    if outputs == "restored" or stay:
        for name, value in dense.items():
            if found[name].shape != value.shape:
                raise WrongError(f"'{name}' is {found[name].shape}, was {value.shape}")
        if set(found) - set(dense) and stay:
            raise WrongError(f"outputs {set(found) - set(dense)} where no token has left")
        return "whole"
    names = [n for n in found if n.startswith("token_index") and n not in dense]
    if space.grouping is not None or space.segments > 1 or len(names) != 1:
        return "finite"
    index, count = found["token_index"], schedule.final
    carrying = [n for n in dense if dense[n].shape != found[n].shape]
    for name in carrying:
        pairs = zip(dense[name].shape, found[name].shape, strict=True)
        changed = [(a, b) for a, b in pairs if a != b]
        if len(changed) != 1 or changed[0][0] - changed[0][1] != total - count:
            raise WrongError(f"'{name}' is {found[name].shape}, was {dense[name].shape}")
    if index.shape[1] not in (count + fixed, count):
        raise WrongError(f"token_index is {index.shape} for {count} tokens")
    begin = space.prefix if index.shape[1] == count + fixed else 0
    _check_index(index, begin, count, total, schedule)
    if "token_owner" in found:
        _check_owner(index, found["token_owner"], found["token_size"], begin, total, schedule)
        return "owned"
    return "indexed"


def _check_index(index: Array, begin: int, count: int, total: int, schedule: Schedule) -> None:
    fused = any("fuse" in traits_of(r.reducer) for r in schedule.reductions)
    order = all(r.reducer.name in ("topk", "fuse") for r in schedule.reductions)
    for row in index:
        if not np.array_equal(row[:begin], np.arange(begin)):
            raise WrongError(f"token_index of the prefix: {row[:begin]}")
        inner = row[begin : begin + count]
        real = inner[inner >= 0]
        if len(set(real.tolist())) != len(real):
            raise WrongError(f"token_index names a token twice: {row}")
        if len(real) and not (begin <= real.min() and real.max() < begin + total):
            raise WrongError(f"token_index beyond the tokens: {row}")
        if len(real) < count and not fused:
            raise WrongError(f"token_index without a position, nothing fuses: {row}")
        if order and np.any(np.diff(real) < 0):
            raise WrongError(f"token_index does not ascend: {row}")


def _check_owner(
    index: Array, owner: Array, size: Array, begin: int, total: int, schedule: Schedule
) -> None:
    tokens = index.shape[1]
    if size.shape != index.shape or owner.shape[1] != tokens - (schedule.final - total):
        raise WrongError(f"token_owner is {owner.shape}, token_size {size.shape}")
    if owner.min() < 0 or owner.max() >= tokens:
        raise WrongError(f"token_owner beyond the tokens: {owner}")
    if not (size > 0).all():
        raise WrongError(f"token_size: {size}")
    for one, mine in zip(index, owner, strict=True):
        for place, name in enumerate(one):
            if name >= 0 and mine[name] != place:
                raise WrongError(f"token {name} is at {place}, its owner is {mine[name]}")
    if all(_summing(r) for r in schedule.reductions):
        for mine, sizes in zip(owner, size, strict=True):
            if not np.allclose(np.bincount(mine, minlength=tokens), sizes, rtol=1e-5):
                raise WrongError(f"token_size {sizes}, the owners say {np.bincount(mine)}")


def _summing(one: Reduction) -> bool:
    """Return whether its sizes are those of the tokens that it stands for."""
    values = filled_reducer(one.reducer)
    return one.reducer.name in ("merge", "windows") and bool(values["sizes"])


def _check_leaving(subject: Subject, schedule: Schedule, found: Arrays) -> str:
    """Where tokens only ever leave, by NumPy: which ones is what each prefix of the schedule
    says."""
    assert subject.known is not None
    spec, weights = subject.known
    if spec.pool != "none" or not all(_only_leaves(r) for r in schedule.reductions):
        return ""
    gone: dict[str, Array] = {}
    for i in range(len(schedule.reductions)):
        part = replace(schedule, reductions=schedule.reductions[: i + 1])
        index = found if part == schedule else run(built(subject, part, "reduced"), subject.feed)
        gone[schedule.reductions[i].site] = index["token_index"]
    wanted = forward(spec, weights, subject.feed["image"].astype(np.float64), gone)
    far = np.abs(wanted - found["tokens"]).max()
    if not far <= 1e-4 * max(np.abs(wanted).max(), 1e-3):
        raise WrongError(f"tokens are off by {far:.2e}")
    return ", reckoned"


def _only_leaves(one: Reduction) -> bool:
    reducer = find_reducer(one.reducer.name)
    parts = reducer.parts(filled_reducer(one.reducer))
    names = {one.reducer.name, *(p.name for p in parts)} - {"chain"}
    return names <= set(LEAVING) and not _whole(one)
