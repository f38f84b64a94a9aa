"""Parts of several scores: heads aggregated, metrics, windows of the grid, terms of a sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, prod
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.errors import UsageError
from tcompile.core.graph import is_const, value
from tcompile.core.schedule import Spec
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
        UsageError: they are not a grid any more.
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


#: The most terms that a combiner takes.
MOST = 16


@dataclass(frozen=True)
class Term:
    """One term: a score, its weight or power, and how it is normalised first."""

    spec: Spec
    number: float
    norm: str = "none"


def part(document: Any, owner: str) -> Spec:
    """A score of a combiner.

    Raises:
        UsageError: it is not a score.
    """
    if not isinstance(document, Mapping) or not isinstance(document.get("name"), str):
        raise _wrong(owner, f"{document!r} is not a score such as {{'name': 'cls'}}")
    return Spec(document["name"], {k: v for k, v in document.items() if k != "name"})


def terms(
    parameters: Mapping[str, Any], owner: str, number: str, norms: tuple[str, ...] = ()
) -> list[Term]:
    """Those of a combiner.

    Args:
        number: `weight` or `power`, 1 if left out.
        norms: the choices of `norm`, the first if left out; empty: there is no such key.

    Raises:
        UsageError: none, too many, or one that says something else.
    """
    listed = parameters["terms"]
    if not listed or len(listed) > MOST:
        raise _wrong(owner, f"needs 1 to {MOST} terms")
    found = []
    for one in listed:
        keys = {"score", number, "norm"} if norms else {"score", number}
        if not isinstance(one, Mapping) or not set(one) <= keys or "score" not in one:
            raise _wrong(owner, f"{one!r} is not a term: a term has {', '.join(sorted(keys))}")
        times = one.get(number, 1)
        if isinstance(times, bool) or not isinstance(times, (int, float)) or not isfinite(times):
            raise _wrong(owner, f"{number} {times!r} is not a number")
        norm = one.get("norm", "none")
        if norms and norm not in norms:
            raise _wrong(owner, f"norm {norm!r} is not one of {', '.join(norms)}")
        found.append(Term(part(one["score"], owner), float(times), norm))
    return found


def scored(inputs: ScoreInput, spec: Spec) -> gs.Tensor:
    """[B, T] fp32, one for each image also where no image matters."""
    score = inputs.score(spec)
    return inputs.builder.for_all(value(score), inputs.x, np.float32) if is_const(score) else score


def _wrong(owner: str, why: str) -> UsageError:
    return UsageError(f"score '{owner}': {why}", where="schedule")
