"""One thin backend a runtime: compile this model for that target, and say what came of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx

from tcompile.core.load import read_structure
from tcompile.core.model_files import describe_tensors
from tcompile.core.progress import Progress, silent
from tcompile.targets.backends import jetson, jetson_texts, openvino, ort, rtx, tensorrt
from tcompile.targets.backends.base import Batch, EmittedFiles, FusedAttention
from tcompile.targets.backends.cpu import OnCpu, on_cpu
from tcompile.targets.backends.fusion import Plan, fused_attention, listed_kernels, unfused_notes
from tcompile.targets.backends.parsing import parse_elsewhere
from tcompile.targets.compatibility import NONE, Compatibility
from tcompile.targets.devices import Precision, Target

__all__ = ["Batch", "EmittedFiles", "FusedAttention", "check_runtime", "emit"]


def check_runtime(target: Target, precision: str) -> None:
    """Check that what a target is built with is here; call it before long work.

    Raises:
        MissingExtraError: it is not installed, or cannot be loaded.
        UsageError: it does not compute in that precision on this machine.
    """
    if target.runtime == "onnxruntime":
        ort.version()
    elif target.runtime == "openvino":
        openvino.check_precision(precision)
        openvino.version()
    elif target.runtime == "tensorrt-rtx":
        rtx.version()
    elif jetson.is_jetson():
        tensorrt.version()


def emit(
    model_path: Path,
    directory: Path,
    *,
    target: Target,
    precision: Precision,
    batch: Batch | tuple[int, int, int] | None = None,
    token_ops: str = "native",
    workspace: int | None = None,
    compatibility: Compatibility | None = None,
    progress: Progress = silent,
) -> EmittedFiles:
    """Write what the target needs beside a lowered model.

    Args:
        model_path: the lowered model, inside `directory`.
        directory: the artifact.
        target: what to compile for.
        precision: the precision the model was lowered to.
        batch: (smallest, typical, largest) for a model with a symbolic batch; (1, 1, 8) unless
            given. A model with a fixed batch does not use it.
        token_ops: the form that the model's token ops were lowered to.
        workspace: MiB that an engine's kernels may use while they run; None: all there is.
        compatibility: what an engine is to be compatible with, as `checked_compatibility` gives it.
        progress: is told how far an engine is.

    Raises:
        UsageError: the target does not know the precision, or the sizes are not in order.
        MissingExtraError: the package that the target is built with is not installed.
        ParseError: the runtime does not accept the model; names the node. A bundle for a Jetson is
            parsed by TensorRT-RTX where that is installed.
        EngineError: the runtime accepts the model and cannot build it.
    """
    target.check_precision(precision)
    sizes = batch if isinstance(batch, Batch) else Batch(*batch or ())
    if target.on_cpu:
        return _for_cpu(model_path, on_cpu(target, precision))
    if target.runtime == "tensorrt-rtx":
        made = _for_rtx(
            model_path, directory, target, precision, sizes, workspace, compatibility, progress
        )
    else:
        made = _for_jetson(
            model_path, directory, target, sizes, token_ops, workspace, compatibility, progress
        )
    if (found := made.compatibility) is None:
        return made
    return replace(made, notes=(*made.notes, found.words))


def _for_cpu(model_path: Path, how: OnCpu) -> EmittedFiles:
    # Opening it is what compiling means there: it proves that the file is accepted.
    how.open(model_path)
    version = openvino.version() if how.runtime == "openvino" else ort.version()
    return EmittedFiles(versions={how.runtime: version})


def _for_rtx(
    model_path: Path,
    directory: Path,
    target: Target,
    precision: Precision,
    batch: Batch,
    workspace: int | None,
    compatibility: Compatibility | None,
    progress: Progress,
) -> EmittedFiles:
    wanted = compatibility or NONE
    capabilities = rtx.capabilities(target.compute_capability or "", wanted.hardware)
    plan = rtx.build(model_path, capabilities, batch=batch, workspace=workspace, progress=progress)
    fits = rtx.sm(capabilities[0]) if len(capabilities) == 1 else str(wanted.hardware)
    name, layers = f"engine/model.{fits}.engine", f"engine/model.{fits}.layers.json"
    _write(directory / name, plan)
    _write(directory / layers, listed_kernels(plan).encode())
    made = EmittedFiles(
        (name, layers),
        versions={"tensorrt-rtx": rtx.version()},
        compatibility=compatibility and replace(compatibility, capabilities=capabilities),
    )
    if precision == "fp32":
        note = "TensorRT has no fused attention in fp32: nothing was counted"
        return replace(made, notes=(note,))
    model = onnx.load(str(model_path), load_external_data=False)
    return replace(made, fused=fused_attention(plan, model), notes=unfused_notes(model))


def _for_jetson(
    model_path: Path,
    directory: Path,
    target: Target,
    batch: Batch,
    token_ops: str,
    workspace: int | None,
    compatibility: Compatibility | None,
    progress: Progress,
) -> EmittedFiles:
    model = read_structure(model_path)
    name = model_path.resolve().relative_to(directory.resolve()).as_posix()
    plugins = token_ops == "plugin"
    files = jetson.write_bundle(
        directory,
        name,
        describe_tensors(model)[0],
        target=target,
        batch=batch,
        plugins=plugins,
        workspace=workspace,
        compatibility=compatibility,
    )
    if not jetson.is_jetson():
        notes = [
            f"the engine is built on the device: run {jetson_texts.SCRIPT} there, then "
            f"{jetson_texts.CHECK_SCRIPT}, which compares what it gives with the model in fp32"
        ]
        notes += parse_elsewhere(model_path)
        if plugins:
            notes.append(
                f"it needs {jetson_texts.PLUGINS}: {jetson_texts.PLUGIN_SCRIPT}, or "
                "`tcompile plugins build`, on the device"
            )
        elif token_ops == "aot":
            notes.append(
                "trtexec takes no kernels compiled ahead of time and builds the function bodies; "
                "to have the kernels in the engine, run this build on the device"
            )
        return EmittedFiles(files, notes=tuple(notes), compatibility=compatibility)
    version = tensorrt.version()
    engine = f"engine/model.trt{'.'.join(version.split('.')[:2])}.engine"
    plan = tensorrt.build(
        model_path,
        batch=batch,
        token_ops=token_ops,
        workspace=workspace,
        compatibility=compatibility,
        progress=progress,
    )
    _write(directory / engine, plan)
    files = (*files, engine)
    # The lean runtime, which runs a version-compatible engine, has no inspector.
    inspected = compatibility is None or not compatibility.version
    if inspected and (layers := tensorrt.layers(plan)) is not None:
        files = (*files, jetson.layers_file(engine))
        _write(directory / files[-1], layers.encode())
    return EmittedFiles(files, versions={"tensorrt": version}, compatibility=compatibility)


def _write(path: Path, plan: Plan) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(plan)
