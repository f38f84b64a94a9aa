"""Judgement of tcompile on any file at all: it refuses it in one line, or what it makes is
right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.capi import onnxruntime_pybind11_state as ort

from tcompile import pipeline
from tcompile.analysis.model import Analysis
from tcompile.core.errors import InternalError, TcompileError
from tests.oracles.compare import MismatchError, infer
from tests.oracles.dense_file import Arrays, InapplicableError, Tokens, feed_for
from tests.oracles.masked import check_masked
from tests.oracles.several import Tower, check_towers
from tests.support.onnx_models import to_onnx

#: What a file that ONNX Runtime cannot take raises there.
BROKEN = (
    ort.Fail,
    ort.InvalidArgument,
    ort.InvalidGraph,
    ort.InvalidProtobuf,
    ort.NotImplemented,
    ort.RuntimeException,
    ort.NoSuchFile,
    ort.EPFail,
)
#: Normal form and source, relative to the output's largest magnitude.
NORMAL = 1e-5


class WrongError(AssertionError):
    """A model that tcompile should have refused, or that it got wrong."""


@dataclass(frozen=True)
class Outcome:
    """kind: `refused`, `broken` (nor does ONNX Runtime take the source), `dense` (nothing was
    reduced), `ran` (no oracle applies), `equal` (to the masked-dense oracle). note: why."""

    kind: str
    note: str = ""


def judge(
    path: Path,
    method: str,
    keep: float = 0.6,
    *,
    outputs: str = "reduced",
    ours: bool = False,
    batch: int = 2,
) -> Outcome:
    """Reduce the file and check whatever comes out.

    Args:
        batch: how many images are tried where the file leaves it open.
        ours: whether an error that calls itself a bug of tcompile's is let pass.

    Raises:
        WrongError: a silently wrong model, or one that does not run where its source does.
        Anything that tcompile raises and is not a TcompileError.
    """
    try:
        made = pipeline.reduce(path, keep=keep, method=method, outputs=outputs)
    except InternalError as error:
        if ours:
            return Outcome("internal", str(error))
        raise
    except TcompileError as error:
        text = str(error)
        if "\n" in text or not text.strip():
            raise WrongError(f"an error of more or less than a line: {text!r}") from error
        return Outcome("refused", text)
    source, reduced, normal = onnx.load(path), to_onnx(made.graph), to_onnx(made.dense)
    for attribute in (a for node in source.graph.node for a in node.attribute):
        if attribute.name == "keepdims" and attribute.i != 1:
            attribute.i = 0  # as ONNX Runtime reads it; ONNX's reference differs
    try:
        feed = feed_for(source, batch)
        given = infer(_bare(source), feed)
        again = infer(_bare(source), feed)
    except BROKEN as error:
        return Outcome("broken", str(error))
    random = any(node.op_type.startswith("Random") for node in source.graph.node)
    if random or any(not np.array_equal(given[n], again[n], equal_nan=True) for n in given):
        return Outcome("broken", "it is random")
    _check_normal(given, normal, feed)
    if not made.schedule.reductions:
        return Outcome("dense")
    onnx.checker.check_model(reduced, full_check=True)
    try:
        found = infer(reduced, feed)
    except BROKEN as error:
        raise WrongError(f"does not run: {error}") from error
    merged = any("merge" in step.reducer.name for step in made.schedule.reductions)
    try:
        _check_finite(given, found)
    except WrongError:
        if merged and len(feed) > 1:  # a token is masked as the one it was merged into
            return Outcome("ran", "a mask hides every token that is left")
        raise
    if outputs == "restored":
        if any(found[name].shape != value.shape for name, value in given.items()):
            raise WrongError("a restored output has another shape")
        return Outcome("ran", "restored")
    analysis = pipeline.read(path).analysis
    around = [site for site in analysis.sites if site.kind == "around"]
    spans = {site.block: (site.tensor, site.until) for site in around}
    try:
        plan = made.schedule.to_json()
        places = {site.name: site.tensor for site in analysis.sites}
        tokens = _layout(analysis)
        if plan.get("towers"):
            check_towers(source, reduced, _towers(plan, analysis), feed)
            return Outcome("equal")
        check_masked(source, reduced, plan, feed, tokens=tokens, spans=spans, places=places)
    except BROKEN as error:  # not with these optimisations, or not with those
        return Outcome("broken", str(error))
    except InapplicableError as error:
        return Outcome("ran", str(error))
    except MismatchError as error:
        raise WrongError(f"silently wrong: {error}") from error
    return Outcome("equal")


def _towers(plan: Mapping[str, Any], analysis: Analysis) -> list[Tower]:
    """The towers that lose tokens; one that stays dense has none to tell."""
    known = {a.tower: a for a in (analysis, *analysis.others)}
    plans = [plan, *plan["towers"]]
    return [
        Tower(
            {**one, "model": one["model"]},
            _layout(known[one["tower"]]),
            {site.name: site.tensor for site in known[one["tower"]].sites},
        )
        for one in plans
        if one["reductions"]
    ]


def layout(path: Path) -> Tokens:
    """Return how the analysis says that a model's tokens lie."""
    return _layout(pipeline.read(path).analysis)


def _layout(analysis: Analysis) -> Tokens:
    space = analysis.space
    sides = space.grouping.sides if space.grouping is not None else ()
    return Tokens(space.prefix, space.patches, space.suffix, space.grid, sides)


def _bare(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without shapes that may be stale."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    return copy


def _check_normal(given: Arrays, normal: onnx.ModelProto, feed: Arrays) -> None:
    try:
        found = infer(normal, feed)
    except BROKEN as error:
        raise WrongError(f"the normal form does not run: {error}") from error
    if list(found) != list(given):
        raise WrongError(f"outputs {list(found)} for {list(given)}")
    for name, value in given.items():
        if found[name].shape != value.shape or found[name].dtype != value.dtype:
            raise WrongError(f"the normal form's '{name}' is {found[name].shape}, {value.shape}")
        if value.dtype.kind == "f" and np.isfinite(value).all():
            far = float(np.abs(found[name].astype(np.float64) - value).max(initial=0))
            if not far <= NORMAL * float(np.abs(value).max(initial=0)):
                raise WrongError(f"the normal form's '{name}' is off by {far:.2e}")


def _check_finite(given: Arrays, found: dict[str, Any]) -> None:
    for name, value in given.items():
        finite = value.dtype.kind == "f" and np.isfinite(value).all()
        if finite and not np.isfinite(found[name]).all():
            raise WrongError(f"'{name}' is no longer finite")
