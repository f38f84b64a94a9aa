"""Tiny ViTs over any grid of patches (3 x 5, 1 x 1, ...), and the same in NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import erf, lcm, sqrt
from typing import Any

import numpy as np
import onnx

from tcompile.models.onnx_vit import GraphWriter, VitSpec, pool, prefix_tokens, random_weights

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class GridVit(VitSpec):
    """`rows` x `columns` oblong patches in each of `frames` bands of a square image; `image` and
    `patch` are not used."""

    rows: int = 4
    columns: int = 4
    frames: int = 1

    @property
    def patches(self) -> int:
        return self.frames * self.rows * self.columns

    @property
    def side(self) -> int:
        """Pixels of the image, a way and another."""
        least = lcm(self.frames * self.rows, self.columns)
        return least * -(-8 // least)

    @property
    def pixels(self) -> tuple[int, int]:
        """Size of a patch, high and wide."""
        return self.side // (self.frames * self.rows), self.side // self.columns


def grid_weights(spec: GridVit, seed: int = 0) -> dict[str, Array]:
    """Random, with a kernel as large as a patch."""
    weights = random_weights(spec, seed)
    rng = np.random.default_rng(seed + 1)
    kernel = 0.2 * rng.standard_normal((spec.width, 3, *spec.pixels))
    weights["patch_embed.proj.weight"] = kernel.astype(np.float32)
    return weights


def grid_vit(
    spec: GridVit, weights: Mapping[str, Array], batch: int | None = None
) -> onnx.ModelProto:
    """`image` [B, 3, H, W] to `tokens` [B, N, C], or `logits` [B, classes]."""
    writer = GraphWriter(weights)
    kernel, image, tall = writer.weight("patch_embed.proj.weight"), "image", list(spec.pixels)
    if spec.frames > 1:
        shape = writer.const([0, 3, spec.frames, spec.side // spec.frames, spec.side])
        image, tall = writer.op("Reshape", image, shape), [1, *tall]
        writer.initializers[kernel] = np.asarray(weights[kernel])[:, :, None]
    embedded = writer.op(
        "Conv",
        image,
        kernel,
        writer.weight("patch_embed.proj.bias"),
        kernel_shape=tall,
        strides=tall,
    )
    flat = writer.op("Reshape", embedded, writer.const([0, spec.width, spec.patches]))
    x = prefix_tokens(writer, spec, writer.op("Transpose", flat, perm=[0, 2, 1]), batch)
    x = writer.op("Add", x, writer.weight("pos_embed"))
    for i in range(spec.depth):
        x = writer.block(x, f"blocks.{i}", spec.tokens, spec.width, spec.heads)
    x = writer.layer_norm(x, "norm")
    rows: int | str = "batch" if batch is None else batch
    if spec.pool == "none":
        outputs = {"tokens": (x, [rows, spec.tokens, spec.width])}
    else:
        logits = writer.linear(pool(writer, spec, x), "head")
        outputs = {"logits": (logits, [rows, spec.classes])}
    return writer.model(spec.side, outputs)


def images(spec: GridVit, batch: int, seed: int = 0) -> Array:
    """[batch, 3, H, W] f32."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((batch, 3, spec.side, spec.side)).astype(np.float32)


def forward(
    spec: GridVit, weights: Mapping[str, Array], image: Array, kept: Mapping[str, Array]
) -> Array:
    """[B, K, C]: the model's tokens where some leave.

    Args:
        image: float64.
        kept: site (`attn:I`, `block:I`, `output`) -> [B, n], the tokens of the dense model that go
            on there, prefix included.
    """
    w = {k: np.asarray(v, np.float64) for k, v in weights.items()}
    b, total = len(image), spec.tokens
    tall, columns, (high, wide) = spec.frames * spec.rows, spec.columns, spec.pixels
    cut = image.reshape(b, 3, tall, high, columns, wide).transpose(0, 2, 4, 1, 3, 5)
    kernel = w["patch_embed.proj.weight"].reshape(spec.width, -1)
    x = cut.reshape(b, spec.patches, -1) @ kernel.T + w["patch_embed.proj.bias"]
    first = [w[n][0] for n in ("cls_token", "reg_token") if n in w]
    x = np.concatenate([*(np.broadcast_to(t, (b, *t.shape)) for t in first), x], 1) + w["pos_embed"]
    there = np.broadcast_to(np.arange(total), (b, total))
    for i in range(spec.depth):
        name = f"blocks.{i}"
        x = x + _attention(spec, w, f"{name}.attn", _norm(w, f"{name}.norm1", x))
        x, there = _left(x, there, kept.get(f"attn:{i}"))
        hidden = _linear(w, f"{name}.mlp.fc1", _norm(w, f"{name}.norm2", x))
        gelu = hidden * (1 + np.vectorize(erf)(hidden / sqrt(2))) / 2
        x = x + _linear(w, f"{name}.mlp.fc2", gelu)
        x, there = _left(x, there, kept.get(f"block:{i}"))
    return _left(_norm(w, "norm", x), there, kept.get("output"))[0]


def _left(x: Array, there: Array, kept: Array | None) -> tuple[Array, Array]:
    if kept is None:
        return x, there
    place = np.stack([np.searchsorted(row, want) for row, want in zip(there, kept, strict=True)])
    return np.take_along_axis(x, place[..., None], 1), kept


def _norm(w: Mapping[str, Array], name: str, x: Array) -> Array:
    scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    found: Array = scaled * w[f"{name}.weight"] + w[f"{name}.bias"]
    return found


def _linear(w: Mapping[str, Array], name: str, x: Array) -> Array:
    found: Array = x @ w[f"{name}.weight"].T + w[f"{name}.bias"]
    return found


def _attention(spec: GridVit, w: Mapping[str, Array], name: str, x: Array) -> Array:
    b, n, c = x.shape
    qkv = _linear(w, f"{name}.qkv", x).reshape(b, n, 3, spec.heads, c // spec.heads)
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)
    logits = q @ k.swapaxes(-1, -2) / sqrt(c // spec.heads)
    chances = np.exp(logits - logits.max(-1, keepdims=True))
    chances /= chances.sum(-1, keepdims=True)
    return _linear(w, f"{name}.proj", (chances @ v).swapaxes(1, 2).reshape(b, n, c))
