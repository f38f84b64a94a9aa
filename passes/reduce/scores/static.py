"""`static`: fixed patterns that look at no image (Which Tokens to Use?, ICCVW 2023)."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.parameters import Parameter
from tcompile.passes.reduce.scores.base import Score, ScoreInput
from tcompile.passes.reduce.scores.carried import at_site
from tcompile.passes.reduce.scores.colsum import strided
from tcompile.passes.reduce.scores.common import whole_grid

Array = np.ndarray[Any, Any]


def static(inputs: ScoreInput) -> gs.Tensor:
    """A constant [1, T] while all tokens are there; after that each token's own [B, T] of it.

    * strided: by the digits of j in base two, reversed: the K best are 2^n apart for every
      K = T/2^n, and evenly spread between. With `keep` = K: exactly the patches at
      floor((i+½)·T/K) of those that are there, i < K.
    * radial: 1/(1+d_j), d_j the l1, l2 or linf distance from the centre of the grid, of each frame;
      of equal ones the first is a little larger.
    * random: (1 + π_j)/T, π = numpy's default_rng(seed).permutation(T).

    A token without a place (fused) scores 0, less than any other.
    """
    p = inputs.parameters
    if p["pattern"] == "strided" and p["keep"] is not None:
        best = np.zeros((1, inputs.count))
        best[0, strided(inputs.count, p["keep"])] = 1
        return inputs.builder.const(best, np.float32)
    state = at_site(inputs)
    table = _pattern(inputs).astype(np.float32)
    if state.index is None:
        return inputs.builder.const(table[None], np.float32)
    b, index = inputs.builder, state.index
    if not state.positioned:
        last = b.const([len(table)])
        index = b.op("Where", b.op("Less", index, [0], dtype=np.bool_), last, index, dtype=np.int64)
    return b.op("Gather", b.const([*table, 0], np.float32), index, axis=0)


def _pattern(inputs: ScoreInput) -> Array:
    """[T0] of all patches of the dense model."""
    p, total = inputs.parameters, inputs.dense_count
    if p["pattern"] == "random":
        return np.asarray((1 + np.random.default_rng(p["seed"]).permutation(total)) / total)
    if p["pattern"] == "strided":
        bits = max(total - 1, 1).bit_length()
        reverse = np.array([int(f"{j:0{bits}b}"[::-1], 2) for j in range(total)])
        return np.asarray(1 - reverse / 2**bits)
    t, h, w = whole_grid(inputs, "static", total)
    down = np.abs(np.arange(h) - (h - 1) / 2)[:, None] * np.ones((1, w))
    across = np.abs(np.arange(w) - (w - 1) / 2)[None] * np.ones((h, 1))
    distance = {
        "l1": down + across,
        "l2": np.sqrt(down**2 + across**2),
        "linf": np.maximum(down, across),
    }[p["norm"]]
    return _apart(np.tile((1 / (1 + distance)).reshape(-1), t))


def _apart(values: Array) -> Array:
    """Values of which the first of equal ones is the largest, by 2⁻²², two units of fp32: runtimes
    break ties each in a way of its own, and would keep other tokens."""
    equal = np.unique(values.astype(np.float32), return_inverse=True)[1].reshape(-1)
    order = np.argsort(equal, kind="stable")
    first = np.searchsorted(equal[order], equal[order])
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order)) - first
    return np.asarray(values * (1 - rank * 2.0**-22))


SCORE = Score(
    "static",
    static,
    {
        "pattern": Parameter(str, "strided", "which", ("strided", "radial", "random")),
        "norm": Parameter(str, "l2", "distance from the centre", ("l1", "l2", "linf")),
        "seed": Parameter(int, 0, "of the random pattern", least=0),
        "keep": Parameter(int, None, "K of the strided pattern; default: good for any", least=1),
    },
    attention=False,
    needs=lambda p: ("grid",) if p["pattern"] == "radial" else (),
)
