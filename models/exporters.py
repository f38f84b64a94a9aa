"""From a loaded model to an ONNX file: dynamo, TorchScript, and transformers' own exporter."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcompile.core.errors import MissingExtraError, ModelError, TcompileError, UsageError
from tcompile.core.files import output_file
from tcompile.core.progress import Progress
from tcompile.models.known import known_hint
from tcompile.models.report import ExportReport
from tcompile.models.source import LoadedModel, Source, load_source, parse_source, require

if TYPE_CHECKING:
    import onnx

    from tcompile.models import recipes
    from tcompile.models.exporter_workarounds import Workaround

log = logging.getLogger(__name__)

EXPORTERS = ("dynamo", "torchscript", "transformers")
OLDEST_OPSET = 17
DEFAULT_OPSET: Mapping[str, int] = {"dynamo": 20, "torchscript": 17, "transformers": 20}


def export(
    model: LoadedModel | Source | str,
    path: str | Path,
    *,
    batch: int | str = 1,
    exporter: str = "auto",
    opset: int | None = None,
    attention: str | None = None,
    image_size: int | None = None,
    random_weights: bool = False,
    overrides: Mapping[str, Any] | None = None,
    check: bool = True,
    progress: Progress | None = None,
) -> ExportReport:
    """Write a model as ONNX and prove that the file computes what PyTorch does.

    Args:
        model: a SOURCE string, or what `load_source` gave.
        path: the .onnx file to write. It appears only when everything has gone well.
        batch: images per call, or "dynamic" for a free batch (the token count stays static).
        exporter: one of `EXPORTERS`, or "auto": each in turn until one gives a right file.
        opset: 17 up to the newest the exporter knows; None for the exporter's default
            (`DEFAULT_OPSET`). Dynamo writes one Attention op from opset 23 on.
        attention: "sdpa" or "eager"; None for the library's default, which may be changed to get
            an export at all (the report says so).
        image_size, random_weights, overrides: see `load_source`; for a SOURCE string only.
        check: run the file in ONNX Runtime against PyTorch, at another batch too when it is free.
        progress: called with one line for each step.

    Raises:
        UsageError: an argument out of range; the file cannot be written there.
        ModelError: the model cannot be made, or no exporter gives a right file; nothing is written.
        MissingExtraError: torch, the source's library or onnxruntime is not installed.
    """
    target = Path(path)
    _check_arguments(target, batch, exporter, opset, attention)
    if isinstance(model, LoadedModel):
        if image_size is not None or overrides or random_weights:
            raise UsageError("image_size, overrides and random_weights need a SOURCE string")
        loaded = model
    else:
        source = parse_source(model) if isinstance(model, str) else model
        _tell(progress, f"loading {source.text}")
        loaded = load_source(
            source, random_weights=random_weights, image_size=image_size, overrides=overrides
        )
    if batch == "dynamic" and loaded.fixed_batch:
        raise ModelError(
            f"cannot be exported with a free batch: {loaded.fixed_batch}",
            where=loaded.source,
            hint="export it with a number of images, --batch 1",
        )
    if check:
        require_runtime()
    require("onnxscript", "exporting to ONNX")
    from tcompile.models.attention import attention_as
    from tcompile.models.exporter_workarounds import plans

    failures: list[str] = []
    with attention_as(loaded.base, attention):
        for name in _order(loaded, exporter):
            first: str | None = None
            for workarounds in plans(loaded, attention, name):
                _tell(progress, _attempt_text(name, workarounds))
                try:
                    return _attempt(
                        loaded, target, name, batch, opset, workarounds, check, attention
                    )
                except (MissingExtraError, UsageError):  # no other exporter helps
                    raise
                except Exception as error:  # exporters raise anything; the next may manage
                    log.debug("%s failed", name, exc_info=True)
                    first = first or _reason(error)
            failures.append(f"{name}: {first}")
    raise ModelError(
        "cannot be exported: " + "; ".join(failures),
        where=loaded.source,
        hint=known_hint(loaded.source, exporter),
    )


def require_runtime() -> None:
    """Raise `MissingExtraError` unless ONNX Runtime is there."""
    try:
        import onnxruntime  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError("onnxruntime", "cpu", "checking the exported file") from error


def _attempt(
    loaded: LoadedModel,
    target: Path,
    name: str,
    batch: int | str,
    opset: int | None,
    workarounds: tuple[Workaround, ...],
    check: bool,
    attention: str | None,
) -> ExportReport:
    from tcompile.models import recipes
    from tcompile.models.attention import get_attention
    from tcompile.models.check import check_file
    from tcompile.models.exporter_workarounds import applied
    from tcompile.models.files import dims, metadata, settle_inputs, settle_outputs, staged
    from tcompile.models.opset import lower_to_17, opset_of

    job = recipes.job(loaded, batch, opset or DEFAULT_OPSET[name])
    with applied(loaded, workarounds) as used, recipes.quiet(), recipes.settings():
        proto = _written(name, job, is_asked=opset is not None)
        outputs = recipes.output_dims(job)
        spelled = get_attention(loaded.base)
    settle_inputs(proto, job.shapes(), batch)
    settle_outputs(proto, outputs)
    if opset == 17 and opset_of(proto) == 18:
        lower_to_17(proto)
    if opset is not None and opset_of(proto) != opset:
        raise ModelError(f"writes opset {opset_of(proto)} where {opset} was asked for")
    metadata(proto, loaded)
    notes = [*loaded.notes, *used()]
    if attention is not None and spelled is None:
        notes.append("this model offers no choice of attention (torch.nn.MultiheadAttention)")
    with staged(proto, target) as (written, files):
        error = check_file(written, loaded, batch) if check else None
    return ExportReport(
        path=target,
        files=files,
        source=loaded.source,
        exporter=name,
        opset=opset_of(proto),
        attention=spelled,
        inputs=dims(proto.graph.input),
        outputs=dims(proto.graph.output),
        max_abs_error=error,
        notes=tuple(notes),
    )


def _written(name: str, job: recipes.Job, *, is_asked: bool) -> onnx.ModelProto:
    """Return what the exporter writes; in a newer opset where it says so and none was asked for."""
    import torch

    from tcompile.models import recipes

    try:
        return recipes.RECIPES[name](job)
    except torch.onnx.errors.UnsupportedOperatorError as error:
        newer = re.search(r"added in version (\d+)", str(error))
        if is_asked or newer is None:
            raise
        return recipes.RECIPES[name](replace(job, opset=int(newer[1])))


def _order(loaded: LoadedModel, exporter: str) -> tuple[str, ...]:
    from tcompile.models.outputs import TensorOutputs

    # transformers' exporter is given the library's module: not for what we add to it.
    inner = loaded.module.model if type(loaded.module) is TensorOutputs else loaded.module
    is_hf = loaded.library == "hf" and inner is loaded.base
    if exporter == "transformers" and not is_hf:
        raise UsageError(
            "transformers' exporter takes unchanged transformers models only",
            where=loaded.source,
            hint="use dynamo or torchscript",
        )
    if exporter != "auto":
        return (exporter,)
    return EXPORTERS if is_hf else EXPORTERS[:2]


def _check_arguments(
    target: Path, batch: Any, exporter: str, opset: int | None, attention: str | None
) -> None:
    import onnx.defs

    if isinstance(batch, str):
        if batch != "dynamic":
            raise UsageError(f"batch '{batch}' is neither a number nor 'dynamic'")
    elif isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise UsageError(f"batch {batch} is not a positive number")
    if exporter != "auto" and exporter not in EXPORTERS:
        raise UsageError(
            f"unknown exporter '{exporter}'", hint=f"one of auto, {', '.join(EXPORTERS)}"
        )
    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not OLDEST_OPSET <= opset <= newest:
        raise UsageError(f"opset {opset} is outside {OLDEST_OPSET}..{newest}")
    if attention not in (None, "sdpa", "eager"):
        raise UsageError(f"unknown attention '{attention}'", hint="one of sdpa, eager")
    output_file(target)


def _attempt_text(name: str, workarounds: tuple[Workaround, ...]) -> str:
    return "; ".join(
        [f"exporting with {name}", *(each.note for each in workarounds if not each.at_once)]
    )


def _reason(error: Exception) -> str:
    if isinstance(error, TcompileError):
        return error.one_line()
    # torch.onnx wraps: the innermost cause says what went wrong.
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:240]


def _tell(progress: Progress | None, text: str) -> None:
    log.info("%s", text)
    if progress is not None:
        progress(text)
