"""Parts of several scores: heads aggregated, metrics, windows of the grid."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.errors import UsageError
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.scores.base import ScoreInput

#: Below this a length is no length: what is divided by it is all zeros.
TINY = 1e-12
#: Above any cosine: the score of a token that stays in any case.
ALWAYS = 2.0

AGGREGATIONS = {"mean": "Mean", "sum": "Sum", "max": "Max"}


def divided(b: Builder, x: gs.Tensor, by: gs.Tensor) -> gs.Tensor:
    """x / max(by, tiny)."""
    return b.op("Div", x, b.op("Max", by, b.const([TINY], np.float32)))


def metric(inputs: ScoreInput) -> gs.Tensor:
    """[B, T, ·]: mean_h K or the tokens themselves, by the parameter `metric`."""
    keys = inputs.parameters["metric"] == "keys"
    return inputs.of_patches(inputs.attention.keys() if keys else inputs.x)


def reads_keys(parameters: Any) -> bool:
    """Tell if the metric is the keys."""
    return bool(parameters["metric"] == "keys")


def whole_grid(inputs: ScoreInput, name: str, count: int) -> tuple[int, int, int]:
    """(t, h, w) of `count` tokens, t = 1 for an image.

    Raises:
        UsageError: they are no grid any more.
    """
    grid = inputs.dense_grid
    if prod(grid) != count or len(grid) < 2 or len(grid) > 3:
        raise UsageError(
            f"score '{name}' needs tokens that still are a grid of rows and columns",
            where="schedule",
            hint="use it where no token has left yet",
        )
    return (grid[0] if len(grid) == 3 else 1, grid[-2], grid[-1])


def windows(grid: tuple[int, int, int], side: int) -> np.ndarray[Any, Any]:
    """[W, side²] the tokens of each side × side window of each frame, raster order; −1 where a
    window reaches over the edge."""
    t, h, w = grid
    tall, wide = (-(-n // side) * side for n in (h, w))
    padded = np.full((t, tall, wide), -1)
    padded[:, :h, :w] = np.arange(t * h * w).reshape(t, h, w)
    split = padded.reshape(t, tall // side, side, wide // side, side)
    return np.asarray(split.transpose(0, 1, 3, 2, 4).reshape(-1, side * side))
