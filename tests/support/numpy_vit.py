"""The ViT of `tcompile.models.onnx_vit` in numpy, with tokens that leave: maps are held against it.

One image, no library but numpy. Which patches each token stands for is kept as sets, not as owners.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import erf
from typing import Any

import numpy as np

from tcompile.models.onnx_vit import VitSpec

Array = np.ndarray[Any, Any]
#: Patch tokens [T, C], their keys [T, d], what CLS attends to [T], the patches of each; to the
#: tokens that are left and the patches of each of those.
Leave = Callable[[Array, Array, Array, list[set[int]]], tuple[Array, list[set[int]]]]


def run(
    image: Array, weights: Mapping[str, Array], spec: VitSpec, leave: Mapping[int, Leave]
) -> tuple[list[list[set[int]]], Array]:
    """The patches of each token after each step, and the logits of an image [3, S, S].

    Args:
        leave: by block, what happens between its attention and its MLP.
    """
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    side, p = spec.image // spec.patch, spec.patch
    cut = image.reshape(3, side, p, side, p).transpose(1, 3, 0, 2, 4).reshape(side * side, -1)
    x = cut @ w["patch_embed.proj.weight"].reshape(spec.width, -1).T + w["patch_embed.proj.bias"]
    x = np.concatenate([w["cls_token"][0], x]) + w["pos_embed"][0]
    members = [{i} for i in range(spec.patches)]
    found = []
    for i in range(spec.depth):
        name = f"blocks.{i}"
        qkv = _linear(_norm(x, w, f"{name}.norm1"), w, f"{name}.attn.qkv")
        heads = qkv.reshape(len(x), 3, spec.heads, -1).transpose(1, 2, 0, 3)
        q, k, v = heads
        logits = q @ k.transpose(0, 2, 1) * q.shape[-1] ** -0.5
        sizes = np.array([1.0, *map(len, members)])
        logits = logits + (np.log(sizes) if leave.get(i - 1) is merge_half else 0)
        chances = np.exp(logits - logits.max(-1, keepdims=True))
        chances /= chances.sum(-1, keepdims=True)
        x = x + _linear((chances @ v).transpose(1, 0, 2).reshape(x.shape), w, f"{name}.attn.proj")
        if i in leave:
            seen = chances[:, 0, 1:].mean(0)
            patches, members = leave[i](x[1:], k.mean(0)[1:], seen, members)
            x = np.concatenate([x[:1], patches])
            found.append(members)
        hidden = _linear(_norm(x, w, f"{name}.norm2"), w, f"{name}.mlp.fc1")
        hidden = hidden * (1 + np.vectorize(erf)(hidden / 2**0.5)) / 2
        x = x + _linear(hidden, w, f"{name}.mlp.fc2")
    return found, _linear(_norm(x, w, "norm")[0], w, "head")


def keep_best(count: int) -> Leave:
    """Those that CLS attends to most, in their order; the others are dropped."""

    def leave(
        x: Array, keys: Array, seen: Array, members: list[set[int]]
    ) -> tuple[Array, list[set[int]]]:
        best = np.sort(np.argsort(-seen)[:count])
        return x[best], [members[j] for j in best]

    return leave


def merge_half(
    x: Array, keys: Array, seen: Array, members: list[set[int]], merged: int = 4
) -> tuple[Array, list[set[int]]]:
    """ToMe: the four even tokens most like an odd one become part of it, weighted by size."""
    unit = keys / np.linalg.norm(keys, axis=-1, keepdims=True)
    alike = unit[::2] @ unit[1::2].T
    order = np.argsort(-alike.max(1))
    leaving, staying = order[:merged], np.sort(order[merged:])
    odd = [set(m) for m in members[1::2]]
    sums = x[1::2] * np.array([len(m) for m in odd])[:, None]
    for a in leaving:
        b = int(alike[a].argmax())
        sums[b] += x[2 * a] * len(members[2 * a])
        odd[b] |= members[2 * a]
    joined = sums / np.array([len(m) for m in odd])[:, None]
    return np.concatenate([x[2 * staying], joined]), [*(members[2 * a] for a in staying), *odd]


def _linear(x: Array, w: Mapping[str, Array], name: str) -> Array:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _norm(x: Array, w: Mapping[str, Array], name: str) -> Array:
    mean, spread = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(spread + 1e-6) * w[f"{name}.weight"] + w[f"{name}.bias"]
