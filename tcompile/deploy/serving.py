"""Artifacts as data of a server: a model repository of Triton, a configuration of DeepStream.

Triton's fields are those of the published model_config.proto (triton-inference-server/common), the
keys of DeepStream those of the Gst-nvinfer plugin's manual.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np

from tcompile.artifact.directory import Artifact
from tcompile.artifact.manifest import Manifest
from tcompile.core.errors import UsageError
from tcompile.core.model_files import TensorInfo, file_entry
from tcompile.deploy.checks import check_host_code
from tcompile.runtime.token_outputs import is_bookkeeping
from tcompile.targets.backends.base import Batch
from tcompile.targets.backends.jetson_texts import SCRIPT

#: dtype → Triton's name.
_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "float64": "TYPE_FP64",
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
    "int8": "TYPE_INT8",
    "uint8": "TYPE_UINT8",
    "bool": "TYPE_BOOL",
}
#: Runtime of a target → Triton's backend. It has none for TensorRT-RTX.
_BACKENDS = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "tensorrt-rtx": "onnxruntime",
    "jetson": "tensorrt",
}
_ENGINE = "model.plan"
#: Builds the engine on the device; the last line that the script prints is its name.
_BUILD = f"engine=$(sh artifact/{SCRIPT} | tail -n 1)"


def write_triton(folder: Path, found: Artifact) -> tuple[tuple[str, ...], str]:
    """Write `models/NAME`: config.pbtxt, the model, labels.

    Returns:
        What brings the server up, and what else to know, for README.md.
    """
    manifest, name = found.manifest, _name(found.directory)
    _check_plain(found, "Triton")
    home = folder / "models" / name
    (home / "1").mkdir(parents=True)
    backend = _BACKENDS[manifest.target.runtime]
    commands = ["tritonserver --model-repository=models"]
    if backend == "tensorrt":
        commands = _engine(found, home, name, commands)
    else:
        for file in found.directory.glob("model.onnx*"):
            shutil.copyfile(file, home / "1" / file.name)
    if manifest.labels:
        (home / "labels.txt").write_text("\n".join(manifest.labels) + "\n", encoding="utf-8")
    (home / "config.pbtxt").write_text(triton_config(manifest, name), encoding="utf-8")
    notes = _TRITON_NOTES.get(manifest.target.runtime, "")
    made = manifest.compatibility
    if backend == "tensorrt" and made is not None and made.host_code:
        commands[-1] += " --backend-config=tensorrt,version-compatible=true"
        notes = _TRITON_COMPATIBLE
    return tuple(commands), notes + _PREPARED


def _engine(found: Artifact, home: Path, name: str, commands: list[str]) -> list[str]:
    engines = list(found.directory.glob("engine/*.engine"))
    if len(engines) == 1:  # of several nobody knows which is for the server's TensorRT
        check_host_code(found, file_entry(engines[0], found.directory))
        shutil.copyfile(engines[0], home / "1" / _ENGINE)
        return commands
    _copy_unbuilt(found, home.parents[1] / "artifact")
    return [_BUILD, f'cp "artifact/$engine" models/{name}/1/{_ENGINE}', *commands]


def _copy_unbuilt(found: Artifact, place: Path) -> None:
    """Copy an artifact without the engines that its script made: another machine may have."""
    shutil.copytree(found.directory, place)
    listed = {entry.path for entry in found.manifest.files}
    for path in place.glob("engine/*"):
        if path.relative_to(place).as_posix() not in listed:
            path.unlink()


def triton_config(manifest: Manifest, name: str) -> str:
    """The text of config.pbtxt."""
    runtime = manifest.target.runtime
    tensors = (*manifest.inputs, *manifest.outputs)
    sizes = manifest.batch_sizes or Batch()
    # Where requests are put together, Triton also runs one alone.
    batched = all(_batched(t) for t in tensors) and sizes.smallest == 1
    lines = [f"name: {json.dumps(name)}", f'backend: "{_BACKENDS[runtime]}"']
    if runtime != "jetson":
        lines.append('default_model_filename: "model.onnx"')
    lines.append(f"max_batch_size: {sizes.largest if batched else 0}")
    lines += [_tensor("input", tensor, batched) for tensor in manifest.inputs]
    for tensor in manifest.outputs:
        label = _is_scores(tensor, manifest)
        lines.append(_tensor("output", tensor, batched, 'label_filename: "labels.txt"', label))
    kind = "KIND_CPU" if runtime in ("onnxruntime", "openvino") else "KIND_GPU"
    lines.append(f"instance_group [ {{ count: 1, kind: {kind} }} ]")
    if batched and sizes.largest > 1:
        # How long a request may wait for others is the server's matter: no time is given.
        lines.append(f"dynamic_batching {{ preferred_batch_size: [ {sizes.largest} ] }}")
    return "\n".join(lines) + "\n"


def _batched(tensor: TensorInfo) -> bool:
    """Tell whether the first axis, and that alone, is the batch and free."""
    return (
        bool(tensor.shape)
        and isinstance(tensor.shape[0], str)
        and all(isinstance(dim, int) for dim in tensor.shape[1:])
    )


def _tensor(
    field: str, tensor: TensorInfo, batched: bool, more: str = "", with_more: bool = False
) -> str:
    dims = [-1 if isinstance(dim, str) else dim for dim in tensor.shape[1 if batched else 0 :]]
    shape = ", ".join(map(str, dims)) or "1"
    parts = [
        f"name: {json.dumps(tensor.name, ensure_ascii=False)}",
        f"data_type: {_TYPES[str(tensor.dtype)]}",
        f"dims: [ {shape} ]",
    ]
    if not dims:
        parts.append("reshape { shape: [ ] }")
    if with_more:
        parts.append(more)
    return f"{field} [ {{ {', '.join(parts)} }} ]"


def _is_scores(tensor: TensorInfo, manifest: Manifest) -> bool:
    """Tell whether labels are for this output: [B, classes]."""
    same = len(tensor.shape) == 2 and tensor.shape[1] == len(manifest.labels)
    return bool(manifest.labels) and same and not is_bookkeeping(tensor.name)


def _name(directory: Path) -> str:
    """The directory's name as one that Triton takes: of a folder."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", directory.resolve().name) or "model"


def _check_plain(found: Artifact, server: str) -> None:
    """A server loads no library in the way that registers our plugins."""
    ops = found.manifest.token_ops
    if ops is not None and ops.form == "plugin":
        raise UsageError(
            f"its token ops are plugins, which {server} does not register",
            where=str(found.directory),
            hint="build it again with --token-ops native",
        )
    unknown = [
        t for t in (*found.manifest.inputs, *found.manifest.outputs) if str(t.dtype) not in _TYPES
    ]
    if unknown:
        raise UsageError(
            f"'{unknown[0].name}' is {unknown[0].dtype}, which {server} does not take",
            where=str(found.directory),
        )


def write_deepstream(folder: Path, found: Artifact) -> tuple[tuple[str, ...], str]:
    """Write config_infer.txt for the nvinfer element, beside a copy of the artifact.

    Returns:
        What builds the engine and runs a pipeline, and what else to know, for README.md.

    Raises:
        UsageError: not an artifact for a Jetson, or its input is not one that nvinfer fills.
    """
    where, manifest = str(found.directory), found.manifest
    if manifest.target.runtime != "jetson":
        raise UsageError(
            f"is for {manifest.target.runtime}; DeepStream's nvinfer runs engines of TensorRT",
            where=where,
            hint="build it for a Jetson: --target jetson-orin, …",
        )
    _check_plain(found, "DeepStream")
    made = manifest.compatibility
    if made is not None and made.host_code:
        # "Cannot deserialize engine with lean runtime since IRuntime::getEngineHostCodeAllowed()
        # is false": issue 563 of marcoslucianops/DeepStream-Yolo.
        raise UsageError(
            "its engine holds code, TensorRT's lean runtime, which DeepStream's nvinfer does not "
            "let run",
            where=where,
            hint="build it without --version-compatible: the engine is made where it runs",
        )
    text, notes = deepstream_config(manifest, where)
    _copy_unbuilt(found, folder / "artifact")
    (folder / "config_infer.txt").write_text(text, encoding="utf-8")
    built = (_BUILD, 'ln -sf "artifact/$engine" model.engine')
    if _FROM_META in text:  # a pipeline needs a library that is not there yet
        return built, notes
    commands = (
        *built,
        "gst-launch-1.0 nvurisrcbin uri=file:///PATH/video.mp4 ! m.sink_0 nvstreammux name=m "
        "batch-size=1 width=1280 height=720 ! nvinfer config-file-path=config_infer.txt ! "
        "fakesink",
    )
    return commands, notes


def deepstream_config(manifest: Manifest, where: str) -> tuple[str, str]:
    """The text of the configuration, and what a reader must know of it."""
    known, image = manifest.preprocess or {}, manifest.inputs[0]
    shape = image.shape[1:]
    planes = len(shape) == 3 and shape[0] in (1, 3) and image.dtype == "float32"
    if len(manifest.inputs) != 1 or not planes or known.get("layout") == "patches":
        raise UsageError(
            f"nvinfer fills one input [B, 3, H, W] of float32; this model takes "
            f"{', '.join(f'{t.name} {list(t.shape)} {t.dtype}' for t in manifest.inputs)}",
            where=where,
        )
    if not {"mean", "std"} <= set(known):
        raise UsageError(
            "does not say by which mean and std pixels are scaled",
            where=where,
            hint="build it again with --preprocess imagenet, clip, siglip, …",
        )
    sizes = manifest.batch_sizes
    batch = image.shape[0] if isinstance(image.shape[0], int) else sizes.largest if sizes else 1
    least = image.shape[0] if isinstance(image.shape[0], int) else sizes.smallest if sizes else 1
    if least > 1:
        raise UsageError(
            f"its engine takes {least} images at least, and nvinfer gives it what there is",
            where=where,
            hint="build it with --min-batch 1, of an export with --batch dynamic or 1",
        )
    colours = int(shape[0])
    mean, std = (
        np.broadcast_to(np.asarray(known[key], np.float64), (colours,)) for key in ("mean", "std")
    )
    notes = [_RAW, _SCALING]
    lines = ["[property]", "gpu-id=0", "model-engine-file=model.engine"]
    lines.append(f"batch-size={batch}")
    lines.append(f"infer-dims={';'.join(map(str, shape))}")
    if bool((std == std[0]).all()):
        offsets = ";".join(f"{255 * float(m):.6g}" for m in mean)
        lines += [
            f"# (pixel - 255 * mean) / (255 * std), of mean {mean.tolist()} and std {std[0]:g}",
            f"net-scale-factor={1 / (255 * float(std[0])):.9g}",
            f"offsets={offsets}",
            f"model-color-format={0 if colours == 3 else 2}",
            "# 1: bilinear; what nvinfer does unasked is the nearest pixel.",
            "scaling-filter=1",
        ]
        padded = known.get("resize") == "pad"
        lines += [f"maintain-aspect-ratio={int(padded)}", f"symmetric-padding={int(padded)}"]
        notes += [_CROP] if known.get("resize") not in ("pad", "squash") else []
    else:
        lines += [
            f"# std {std.tolist()} differs by channel, and net-scale-factor is one number for all:",
            "# nvinfer cannot prepare images for this model. It takes tensors that",
            "# nvdspreprocess prepared (README.md).",
            _FROM_META,
        ]
        notes.append(_BY_CHANNEL.format(mean=mean.tolist(), std=std.tolist()))
    lines += [
        "# The engine's own types count: 0 is what nvinfer calls fp32, its inputs and outputs.",
        "network-mode=0",
        "# 100: outputs are handed on as they are, in NvDsInferTensorMeta.",
        "network-type=100",
        "output-tensor-meta=1",
        "process-mode=1",
        "gie-unique-id=1",
    ]
    return "\n".join(lines) + "\n", "\n".join(notes)


_PREPARED = """
The server takes tensors: clients prepare images as `preprocess` of the artifact's manifest says
(`tcompile.load(ARTIFACT)` does it in Python, `tcompile_runtime.hpp` in C++). With labels, a client
may ask for classification: `labels.txt` holds them.
"""
_TRITON_NOTES = {
    "openvino": """
OpenVINO computes fp32 in bf16 on processors that have it unless told otherwise; the artifact was
judged in the precision that its manifest says.
""",
    "tensorrt-rtx": """
Triton has no backend for TensorRT-RTX: `model.onnx` is served by ONNX Runtime, on the GPU.
""",
    "jetson": """
An engine runs only in the TensorRT that built it, to the third number: that of Triton's release.
""",
}
_TRITON_COMPATIBLE = """
The engine is version-compatible: a newer TensorRT than the one that built it runs it too. It holds
code that runs in the server, which `version-compatible=true` allows: let it serve none that you do
not trust.
"""
_FROM_META = "input-tensor-from-meta=1"
_RAW = """
Outputs are raw tensors (`NvDsInferTensorMeta`): scores have no softmax, and labels are in the
artifact's manifest. Where outputs have fewer tokens, `token_index` says which they are."""
_SCALING = """
nvinfer scales frames bilinearly (`scaling-filter=1`), without the smoothing of pillow's filters
where an image becomes smaller: check on images of yours that answers stay."""
_CROP = """
The model was prepared by a resize and a cut-out of the middle; nvinfer scales the whole frame. Cut
it out before: `nvvideoconvert src-crop=LEFT:TOP:WIDTH:HEIGHT` in front of nvstreammux."""
_BY_CHANNEL = """
This model wants (pixel / 255 - mean) / std with mean {mean} and std {std}. nvinfer and the library
that comes with nvdspreprocess multiply all channels by one number. There are two ways:

- Put the division into the model before it is built, and build it again: docs/deploy.md of tcompile
  (Serving) has the lines. nvinfer then gives it plain pixels.
- Keep this file, and write a library for nvdspreprocess whose `CustomTensorPreparation` divides
  each channel; nvinfer takes its tensors as they are (`input-tensor-from-meta=1`)."""
