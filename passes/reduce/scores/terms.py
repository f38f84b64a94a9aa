"""The scores that a combiner is made of, as written in a schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.errors import UsageError
from tcompile.core.graph import is_const, value
from tcompile.core.schedule import Spec
from tcompile.passes.reduce.scores.base import ScoreInput

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
        UsageError: it is none.
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
