"""One row of the table: export, compile by each method, compare with both references."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch

from tcompile import pipeline
from tcompile.core.errors import ModelError, UsageError
from tcompile.core.schedule import Resized
from tcompile.models import export
from tcompile.report.inspection_page import ranges
from tests.coverage.rows import Ask, model_of
from tests.oracles.compare import (
    MismatchError,
    Subject,
    check,
    check_structure,
    dense_errors,
    infer_in_batches,
)
from tests.oracles.dense_file import InapplicableError, feed_for
from tests.oracles.exports import subject
from tests.oracles.masked import check_masked
from tests.oracles.plans import reductions
from tests.oracles.resized import check_smaller, on_smaller
from tests.support.judge import layout
from tests.support.onnx_models import to_onnx
from tests.support.zoo_matrix import BY_ID

KEEP = 0.6
METHODS = ("topk", "evit", "tome", "bypass", "resolution")


@dataclass(frozen=True)
class Cell:
    """Outcome of one method, or of one comparison.

    Attributes:
        status: `compiled`, `refused`, `unchecked` (there is nothing to compare with), `failed`.
        outputs: `reduced`, or `restored` where only that is possible.
        error, tolerance: largest difference from the reference, and what is allowed, of the output
            that comes nearest to the limit.
        reason: why not, in tcompile's words; of a failure, what happened.
    """

    status: str
    outputs: str = "reduced"
    error: float | None = None
    tolerance: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Row:
    """One export and all its cells. `export` says why there is no file; `legal` lists sites."""

    id: str
    case: str
    exporter: str
    attention: str
    opset: int
    batch: str
    export: str = ""
    failed: str = ""
    legal: str = ""
    cells: dict[str, Cell] = field(default_factory=dict)
    masked: Cell | None = None
    seconds: float = 0.0


def empty(ask: Ask, **more: Any) -> Row:
    """A row without results yet."""
    v = ask.variant
    head = (ask.id, ask.case.id, v.exporter, v.attention or "", v.opset, str(v.batch))
    return Row(*head, **more)


def measure(ask: Ask, exports: Path) -> Row:
    """Everything about one row; never raises for what a model or tcompile does."""
    start = time.perf_counter()
    try:
        path = _exported(ask, exports)
    except (ModelError, UsageError) as error:
        return empty(ask, export=error.what, seconds=time.perf_counter() - start)
    try:
        return _measured(ask, path, start)
    except Exception as error:
        return empty(ask, failed=_text(error), seconds=time.perf_counter() - start)


def _exported(ask: Ask, exports: Path) -> Path:
    """The file, written once. Raises ModelError where it cannot be exported."""
    path = exports / f"{ask.id}.onnx"
    if not path.exists():
        mine = path.with_name(f"{ask.id}.{os.getpid()}.onnx")
        v = ask.variant
        export(
            model_of(ask.case.id),
            mine,
            batch=v.batch,
            exporter=v.exporter,
            opset=v.opset,
            attention=v.attention,
        )
        mine.replace(path)
    return path


def _measured(ask: Ask, path: Path, start: float) -> Row:
    try:
        sites = pipeline.read(path).analysis.sites
    except ModelError as error:
        cells = {method: Cell("refused", reason=error.what) for method in METHODS}
        return empty(ask, cells=cells, legal="none", seconds=time.perf_counter() - start)
    legal = ranges(s.name for s in sites if not s.reason) or "none"
    only = [s.name for s in sites if s.reason and not s.restored.reason]
    legal += f"; restored: {ranges(only)}" if only else ""
    found = _subject(ask)
    cells, masked = {}, None
    for method in METHODS:
        cells[method], model, schedule = _method(ask, path, found, method)
        if method == "topk" and model is not None and cells[method].outputs == "reduced":
            masked = _masked(path, model, schedule)
    around = next((s.reason for s in sites if s.until and s.reason), "")
    if cells["bypass"].reason.startswith("no block of this model") and around:
        cells["bypass"] = Cell("refused", reason=around)
    seconds = time.perf_counter() - start
    return empty(ask, cells=cells, masked=masked, legal=legal, seconds=seconds)


def _subject(ask: Ask) -> Subject | None:
    """The PyTorch reference; None where there is none of this model."""
    if ask.case.id in BY_ID:
        return subject(ask.case.id)
    loaded = model_of(ask.case.id)
    examples = list(loaded.example_inputs.values())
    if loaded.fixed_batch or len(examples) != 1:
        return None
    try:
        return Subject(loaded.module, tuple(examples[0].shape[1:]))
    except (LookupError, AssertionError):
        return None


def _method(
    ask: Ask, path: Path, found: Subject | None, method: str
) -> tuple[Cell, onnx.ModelProto | None, dict[str, Any]]:
    """Compile by one method, outputs reduced or else restored."""
    reasons: dict[str, None] = {}
    for outputs in ("reduced", "restored"):
        try:
            made = pipeline.reduce(path, keep=KEEP, method=method, outputs=outputs)
        except (UsageError, ModelError) as error:
            reasons[_plain(error.what)] = None
            continue
        except Exception as error:
            return Cell("failed", outputs, reason=_text(error)), None, {}
        model, schedule = to_onnx(made.graph), made.schedule.to_json()
        if made.schedule.resized is not None:
            return _smaller(ask, path, model, made.schedule.resized, outputs), model, schedule
        if found is None:
            return Cell("unchecked", outputs, reason="no reference"), model, schedule
        try:
            return _compared(ask, path, found, model, schedule, outputs), model, schedule
        except Exception as error:
            return Cell("failed", outputs, reason=_text(error)), None, {}
    return Cell("refused", reason="; restored: ".join(reasons)), None, {}


def _smaller(ask: Ask, path: Path, model: onnx.ModelProto, resized: Resized, outputs: str) -> Cell:
    """A model for a smaller image against the module for it."""
    loaded = model_of(ask.case.id)
    (shape,) = (tuple(t.shape) for t in list(loaded.example_inputs.values())[:1])
    count = {"1": 2, "4": 4}.get(str(ask.variant.batch), 3)
    images = torch.randn(count, *shape[1:], generator=torch.Generator().manual_seed(1))
    try:
        wanted = on_smaller(loaded, ask.case.prefix, images, resized)
    except (LookupError, RuntimeError, ValueError):
        # The module takes images of one size only, or its library resizes no positions.
        return Cell("unchecked", outputs, reason="no reference")
    try:
        have, dense = (list(infer_in_batches(m, images).values()) for m in (model, onnx.load(path)))
        verdict = check_smaller(have, dense, wanted)
    except Exception as error:
        return Cell("failed", outputs, reason=_text(error))
    return Cell("compiled", outputs, *_nearest(verdict.error, verdict.tolerance))


def _compared(
    ask: Ask,
    path: Path,
    found: Subject,
    model: onnx.ModelProto,
    schedule: dict[str, Any],
    outputs: str,
) -> Cell:
    count = {"1": 2, "4": 4}.get(str(ask.variant.batch), 3)
    cuts = reductions(schedule)
    check_structure(model)
    owners, rule = outputs == "restored", schedule.get("restore") or "owner"
    try:
        images = found.images(cuts, count, owners=owners, rule=rule)
    except MismatchError:
        # Few images are beyond doubt: one will do, as often as the batch wants.
        images = found.images(cuts, 1, owners=owners, rule=rule)
        images = images.repeat(count, *[1] * (images.ndim - 1))
    dense = dense_errors(onnx.load(path), found, images)
    verdict = check(model, found, images, cuts, dense, outputs, rule)
    error, tolerance = _nearest(verdict.error, verdict.tolerance)
    return Cell("compiled", outputs, error, tolerance)


def _masked(path: Path, model: onnx.ModelProto, schedule: dict[str, Any]) -> Cell:
    source = onnx.load(path)
    if all(len(t.type.tensor_type.shape.dim) < 3 for t in source.graph.input):
        return Cell("unchecked", reason="the images are packed, without the batch that masks have")
    try:
        verdict = check_masked(source, model, schedule, feed_for(source), tokens=layout(path))
    except InapplicableError as error:
        return Cell("unchecked", reason=str(error))
    except Exception as error:
        return Cell("failed", reason=_text(error))
    return Cell("compiled", "reduced", *_nearest(verdict.error, verdict.tolerance))


def _nearest(errors: tuple[float, ...], limits: tuple[float, ...]) -> tuple[float, float]:
    """The output that comes nearest to its limit."""
    return max(zip(errors, limits, strict=True), key=lambda pair: pair[0] / max(pair[1], 1e-30))


def _plain(reason: str) -> str:
    """A refusal without the site that was asked for."""
    return re.sub(r"^(tokens cannot leave at \S+: |site '\S+' is illegal: )", "", reason)


def _text(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]
