"""Scores: importance per patch token; the list below is the registry.

Scores of other packages are found by entry points of the group `tcompile.scores`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tcompile.core.errors import UsageError
from tcompile.core.extensions import find
from tcompile.core.schedule import Spec
from tcompile.passes.reduce.scores import (
    attn,
    cls,
    colsum,
    dup,
    energy,
    head,
    norm,
    pagerank,
    probe,
    product,
    rowmean,
    static,
    sum,
    value_mass,
    window_penalty,
)
from tcompile.passes.reduce.scores.base import Score, ScoreInput

__all__ = ["SCORES", "Score", "ScoreInput", "find_score", "leaves"]

SCORES: tuple[Score, ...] = (
    attn.SCORE,
    cls.SCORE,
    colsum.SCORE,
    dup.SCORE,
    energy.SCORE,
    head.SCORE,
    norm.SCORE,
    pagerank.SCORE,
    probe.SCORE,
    product.SCORE,
    rowmean.SCORE,
    static.SCORE,
    sum.SCORE,
    value_mass.SCORE,
    window_penalty.SCORE,
)


def find_score(name: str) -> Score:
    """The score of that name.

    Raises:
        UsageError: there is none.
    """
    return find("score", name, SCORES, "tcompile.scores", Score)


#: How deep scores may be made of scores.
_DEEPEST = 8


def leaves(spec: Spec, depth: int = 0) -> Iterator[tuple[Score, dict[str, Any]]]:
    """A score and all that it is made of, with their parameters. Raises as `Score.filled`."""
    if depth > _DEEPEST:
        raise UsageError(f"scores are made of scores more than {_DEEPEST} deep", where="schedule")
    score = find_score(spec.name)
    values = score.filled(spec)
    yield score, values
    for part in score.parts(values):
        yield from leaves(part, depth + 1)
