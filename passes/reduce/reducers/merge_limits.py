"""What `merge` cannot do: how many tokens can merge in one step, by its split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tcompile.passes.reduce.reducers.base import Ask, Grid
from tcompile.passes.reduce.reducers.common import TOPK_LIMIT
from tcompile.passes.reduce.reducers.merge_split import dst_places


def plain(parameters: Mapping[str, Any]) -> bool:
    """Whether it is ToMe's own case."""
    usual = {"split": "alternate", "combine": "mean", "criteria": "none"}
    other = parameters["penalty"] or parameters["bidirectional"]
    return not other and all(parameters[k] == v for k, v in usual.items())


def problem(ask: Ask) -> str:
    """Why it cannot do what is asked; empty if it can."""
    parameters, r = ask.parameters, ask.count - ask.keep
    split, both = parameters["split"], parameters["bidirectional"]
    a, other = _counts(parameters, ask.count, ask.keep, ask.grid)
    if split == "protected" and both:
        return "split=protected merges every token of A, so that none is left for bidirectional"
    if not other and split == "grid":
        sx, sy = parameters["sx"], parameters["sy"]
        return f"split=grid needs tokens in a grid of cells of {sy} x {sx}, which these are not"
    most = a if split == "grid" else ask.count // 2
    # By the reference's count A and B change places where the prefix is of an odd number.
    reference = parameters["parity"] == "reference"
    if both:
        # A token of A must be left, for those of B to go to.
        most = min(2 * a - 1, 2 * other)
        if reference and split == "alternate":
            most = min(most, 2 * other - 1)
    if r > most:
        return f"at most {most} of {ask.count} tokens can merge in one step, not {r}"
    if plain(parameters) and not reference:
        longest = a if r < a else 1
    else:
        sorts = {"protected": 2 * r, "energy": ask.count, "halves": ask.count}
        longest = max(r, ask.keep, sorts.get(split, 0))
    if longest > TOPK_LIMIT:
        return f"would sort {longest} tokens, beyond TensorRT's TopK limit of {TOPK_LIMIT}"
    return ""


def _counts(parameters: Mapping[str, Any], count: int, keep: int, grid: Grid) -> tuple[int, int]:
    """How many tokens A and B have."""
    split = parameters["split"]
    if split == "protected":
        return count - keep, count - keep
    if split == "halves":
        return count // 2, count - count // 2
    if split == "energy":
        return count - count // 2, count // 2
    cells = len(dst_places(parameters, count, grid))
    return count - cells, cells
