"""Tiny models on which every preset can be tried, and what each preset needs to be asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import onnx
import onnxruntime

from tcompile import pipeline
from tcompile.core.errors import UsageError
from tcompile.core.schedule import Schedule
from tcompile.methods.presets import PRESETS, Preset
from tcompile.models.onnx_vit import GraphWriter, VitSpec, build_vit, prefix_tokens, random_weights
from tcompile.passes.lower import lower
from tcompile.passes.stages import Analysed
from tcompile.planning.method_schedule import schedule_for
from tcompile.targets import load_target
from tests.support.onnx_models import plain_options, to_onnx

Array = np.ndarray[Any, Any]

#: 6 × 6 patches, CLS and two registers, an output of all tokens.
SPEC = VitSpec(image=48, patch=8, depth=4, prefix=3, pool="none")
FRAMES = 4


def video_vit(spec: VitSpec, weights: Mapping[str, Array]) -> onnx.ModelProto:
    """The same blocks over FRAMES frames, which are bands of the image."""
    writer, side = GraphWriter(weights), spec.patch
    frames = writer.op(
        "Reshape", "image", writer.const([0, 3, FRAMES, spec.image // FRAMES, spec.image])
    )
    kernel = np.asarray(weights["patch_embed.proj.weight"])[:, :, None]
    writer.initializers["kernel"] = kernel
    embedded = writer.op(
        "Conv",
        frames,
        "kernel",
        writer.weight("patch_embed.proj.bias"),
        kernel_shape=[1, side, side],
        strides=[1, side, side],
    )
    flat = writer.op("Reshape", embedded, writer.const([0, spec.width, spec.patches]))
    x = prefix_tokens(writer, spec, writer.op("Transpose", flat, perm=[0, 2, 1]), None)
    x = writer.op("Add", x, writer.weight("pos_embed"))
    for i in range(spec.depth):
        x = writer.block(x, f"blocks.{i}", spec.tokens, spec.width, spec.heads)
    x = writer.layer_norm(x, "norm")
    return writer.model(spec.image, {"tokens": (x, ["batch", spec.tokens, spec.width])})


def inert(spec: VitSpec) -> dict[str, Array]:
    """Weights with which no block changes the stream, though attention is as peaked as ever."""
    weights = random_weights(spec)
    for i in range(spec.depth):
        for name in ("attn.proj", "mlp.fc2"):
            for part in ("weight", "bias"):
                weights[f"blocks.{i}.{name}.{part}"] *= 0
    return weights


#: 16 × 16 patches whose embeddings are of the order of 300.
LOUD = replace(SPEC, image=64, patch=4, width=16)


#: Fractions to keep, the first that a preset can reach on a model is taken.
KEEPS = ("0.5", "0.75", "0.25", "0.6", "0.9")
LEAST = ("0.00390625", "0.01", "0.05", "0.15", "0.25", *KEEPS)


@dataclass(frozen=True)
class Made:
    """A reduced model in ONNX, its schedule, and the kind of model that it was."""

    kind: str
    spec: VitSpec
    model: onnx.ModelProto
    schedule: Schedule

    @cached_property
    def session(self) -> onnxruntime.InferenceSession:
        return session_of(self.model)

    def run(self, images: Array) -> dict[str, Array]:
        """All outputs by name."""
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, {"image": images}), strict=True))


def session_of(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(
        model.SerializeToString(), plain_options(), providers=["CPUExecutionProvider"]
    )


@lru_cache(maxsize=8)
def dense(kind: str) -> tuple[onnx.ModelProto, onnxruntime.InferenceSession]:
    """The model of a kind that nothing left, in normal form."""
    model = to_onnx(analysed(kind)[1].graph)
    return model, session_of(model)


def dense_tokens(kind: str, images: Array) -> Array:
    """Its output."""
    (found,) = dense(kind)[1].run(["tokens"], {"image": images})
    return np.asarray(found)


def some_images(spec: VitSpec, batch: int) -> Array:
    rng = np.random.default_rng(batch)
    return rng.standard_normal((batch, 3, spec.image, spec.image)).astype(np.float32)


@lru_cache(maxsize=8)
def analysed(kind: str) -> tuple[VitSpec, Analysed]:
    """image, video: `inert` models. flat: the same without positions, so that equal patches are
    equal tokens. loud: LOUD; deep: the same with more blocks."""
    specs = {"loud": LOUD, "deep": replace(LOUD, depth=8)}
    spec = replace(SPEC, image=64) if "video" in kind else specs.get(kind, SPEC)
    weights = inert(spec)
    if kind.startswith("flat"):
        weights["pos_embed"] *= 0
    if kind in specs:
        signs = np.sign(np.random.default_rng(0).standard_normal(spec.width)).astype(np.float32)
        weights["patch_embed.proj.bias"] = 300 * signs
    build = video_vit(spec, weights) if "video" in kind else build_vit(spec, weights, batch=None)
    path = Path(mkdtemp()) / "vit.onnx"
    onnx.save(build, str(path))
    return spec, pipeline.read(path)


@lru_cache(maxsize=1)
def head_file(width: int) -> str:
    """Weights of a scorer: one hidden layer."""
    rng = np.random.default_rng(1)
    shapes = {"0.weight": (8, width), "0.bias": (8,), "1.weight": (1, 8), "1.bias": (1,)}
    path = Path(mkdtemp()) / "head.npz"
    np.savez(path, **{n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()})
    return str(path)


def method(preset: Preset, spec: VitSpec, **values: Any) -> str:
    """The preset with these parameters, and with what it must be given."""
    if "head" in preset.required:
        values = {"head": head_file(spec.width), **values}
    return f"{preset.name}:" + ",".join(f"{k}={v}" for k, v in values.items())


def largest(preset: Preset) -> dict[str, Any]:
    """Parameters by which tokens become as large as can be: half of those left merge in each block;
    nothing where a preset has no such parameter."""
    half = {"r": LOUD.patches // 2, "ratio": 0.5}
    reach = preset.family == "merge"
    return next(({k: v} for k, v in half.items() if reach and k in preset.budget), {})


@lru_cache(maxsize=4)
def calibration_file(size: int) -> str:
    """A few images."""
    path = Path(mkdtemp()) / "images.npz"
    rng = np.random.default_rng(2)
    np.savez(path, image=rng.standard_normal((2, 3, size, size)).astype(np.float32))
    return str(path)


def scheduled(
    preset: Preset, kind: str, keeps: Sequence[str], outputs: str = "reduced"
) -> tuple[str, Schedule]:
    """The kind and the schedule: the preset on a model of a kind, or on a video if it needs one.

    Raises:
        AssertionError: it reaches none of `keeps`.
    """
    problems = []
    for name in (kind, "flat-video" if kind == "flat" else "video"):
        spec, model = analysed(name)
        images = calibration_file(spec.image) if "calibration" in preset.needs else None
        for keep in keeps:
            try:
                found = schedule_for(
                    model, keep, method(preset, spec), outputs=outputs, calibration=images
                )
                return name, found
            except UsageError as error:
                problems.append(f"{name} {keep}: {error}")
    raise AssertionError("; ".join([problems[0], problems[-1]]))


def made(preset: Preset, flat: bool = False) -> Made:
    """A preset at about half of the tokens."""
    return _made(preset.name, "flat" if flat else "image")


@lru_cache(maxsize=100)
def _made(name: str, kind: str) -> Made:
    preset = next(preset for preset in PRESETS if preset.name == name)
    return reduced(*scheduled(preset, kind, KEEPS))


def reduced(kind: str, schedule: Schedule, outputs: str = "reduced") -> Made:
    spec, model = analysed(kind)
    graph = pipeline.apply_schedule(model, schedule, outputs).graph
    return Made(kind, spec, to_onnx(graph), schedule)


def made_loud(preset: Preset) -> Made:
    """As few tokens as it can reach, in half precision."""
    if values := largest(preset):
        kind, (spec, model) = "deep", analysed("deep")
        schedule = schedule_for(model, None, method(preset, spec, **values))
    else:
        kind, schedule = scheduled(preset, "loud", LEAST)
        spec, model = analysed(kind)
    found = pipeline.apply_schedule(model, schedule, "reduced")
    half = lower(
        found.graph, target=load_target("cpu"), precision="fp16", fp32_nodes=found.fp32_nodes
    )
    return Made(kind, spec, to_onnx(half), schedule)
