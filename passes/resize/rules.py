"""Rules of interpolation, as matrices [new, old] along one axis: those of PyTorch's `interpolate`.

An axis is resampled by a product with its matrix, in stored tables and in the graph alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

#: Rule → what it is.
RULES: Mapping[str, str] = {
    "bicubic-antialias": "bicubic with antialiasing (timm, open_clip)",
    "bicubic": "bicubic (transformers, DINOv2 without its offset)",
    "bicubic-offset": "bicubic by the factor (new + 0.1) / old (DINO, DINOv2 of 2023)",
    "bicubic-corners": "bicubic between the corners (torchvision)",
    "bilinear-antialias": "bilinear with antialiasing (SigLIP 2)",
    "bilinear": "bilinear",
}
#: Of relative positions alone, beside the others.
GEOMETRIC = "geometric"
#: Of position tables, where the model does not say.
DEFAULT_RULE = "bicubic-antialias"
#: Of images and of outputs.
IMAGE_RULE = "bilinear-antialias"


@dataclass(frozen=True)
class Rules:
    """How stored positions are had for another grid.

    Attributes:
        table: of absolute positions, one of `RULES`.
        relative: of relative ones, one of `RULES`, or `geometric`: as BEiT's own code has it, at
            distances that grow by a constant factor (timm).
        rotary: `index`: angles follow the row and the column by number; `scaled`: by their share
            of the grid, as many as in the file; `centred`: by their place between the edges.
    """

    table: str = DEFAULT_RULE
    relative: str = "bilinear"
    rotary: str | None = None


def matrix(old: int, new: int, rule: str) -> Array:
    """[new, old]: the weights of each old position in each new one."""
    if rule == GEOMETRIC:
        return _geometric(old, new)
    kind, _, how = rule.partition("-")
    if kind == "bicubic":
        weigh, reach = _cubic(-0.5 if how == "antialias" else -0.75), 2.0
    else:
        weigh, reach = _linear, 1.0
    scale = old / (new + 0.1) if how == "offset" else old / new
    if how == "corners":
        scale = (old - 1) / max(new - 1, 1)
        centres = np.arange(new) * scale
    else:
        centres = (np.arange(new) + 0.5) * scale - 0.5
    if how == "antialias":
        return _averaged(old, centres, max(scale, 1.0), reach, weigh)
    if kind == "bilinear":
        centres = np.maximum(centres, 0.0)
    first = np.floor(centres).astype(int)
    found = np.zeros((new, old))
    for step in range(1 - int(reach), 1 + int(reach)):
        places = first + step
        np.add.at(
            found, (np.arange(new), np.clip(places, 0, old - 1)), weigh(np.abs(centres - places))
        )
    return found


def _geometric(old: int, new: int) -> Array:
    """Linear between old positions at 0, ±1, ±(1 + q), ±(1 + q + q²), …, the last of them as far
    out as the last new one, or nearer to where they were: q is at least 1.01."""
    low, high, reach = 1.01, 1.5, old // 2
    q = low
    while high - low > 1e-6:
        q = (low + high) / 2
        if (1 - q**reach) / (1 - q) > new // 2:
            high = q
        else:
            low = q
    apart = 1 + np.concatenate([[0.0], np.cumsum(q ** np.arange(1, reach))])
    known = np.concatenate([-apart[::-1], [0.0], apart])
    places = np.arange(new) - new // 2
    return np.stack([np.interp(places, known, one) for one in np.eye(old)], 1)


def _averaged(
    old: int, centres: Array, scale: float, reach: float, weigh: Callable[[Array], Array]
) -> Array:
    """Weights of a kernel as wide as a new position, none beyond the edge."""
    places = np.arange(old)
    apart = np.abs(places[None, :] - centres[:, None]) / scale
    weights = np.where(apart < reach, weigh(apart), 0.0)
    return weights / weights.sum(1, keepdims=True)  # type: ignore[no-any-return]


def _linear(x: Array) -> Array:
    return np.maximum(1.0 - x, 0.0)


def _cubic(a: float) -> Callable[[Array], Array]:
    def weigh(x: Array) -> Array:
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = ((x - 5) * x + 8) * x * a - 4 * a
        return np.where(x <= 1, near, np.where(x < 2, far, 0.0))

    return weigh


def resampled(values: Array, axis: int, new: int, rule: str) -> Array:
    """The values with another number of positions along an axis."""
    if values.shape[axis] == new:
        return values
    weights = matrix(values.shape[axis], new, rule)
    moved = np.tensordot(weights, values.astype(np.float64), (1, axis))
    return np.moveaxis(moved, 0, axis).astype(values.dtype)
