"""Parameters, scores and reducers that several presets share."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

from tcompile.core.parameters import Parameter
from tcompile.core.schedule import Spec
from tcompile.methods.context import Step

CLS = Spec("cls")
TOPK = Spec("topk")


def rate(published: str = "") -> Parameter:
    """The parameter of stages: tokens kept at each."""
    paper = f" (paper: {published})" if published else ""
    return Parameter(Fraction, None, f"tokens kept at each stage{paper}", least=0.001, most=1)


def count(meaning: str) -> Parameter:
    """Tokens, 0 or more; not set by default."""
    return Parameter(int, None, meaning, least=0)


def share(default: str, meaning: str) -> Parameter:
    """An exact share, 0 to 1."""
    return Parameter(Fraction, Fraction(default), meaning, least=0, most=1)


PROP_ATTN = Parameter(bool, True, "proportional attention: logits + log size")
HEAD = Parameter(
    Path,
    None,
    "the file of its trained weights, .npz: norm.weight, norm.bias, 0.weight, 0.bias, 1.weight, …",
)


def head(step: Step) -> Spec:
    """The score of a user's trained head."""
    return Spec("head", {"file": str(step.values["head"])})


def part(score: Spec, **of_the_term: Any) -> dict[str, Any]:
    """A term of the scores sum and product."""
    return {"score": score.to_json(), **of_the_term}


def chain(*steps: tuple[Spec, int] | tuple[Spec, int, Spec]) -> Spec:
    """Reducers in turn, each with the patch tokens that it leaves and a score of its own, if it has
    one; those that take none are gone.

    The first item is (anything, tokens before).
    """
    at, last = steps[0][1], steps[0][0]
    parts: list[dict[str, Any]] = []
    for spec, keep, *own in steps[1:]:
        if keep < at:
            score = {"score": own[0].to_json()} if own else {}
            parts.append({"reducer": spec.to_json(), "keep": keep, **score})
            last, at = spec, keep
    if len(parts) == 1 and "score" not in parts[0]:
        return last
    return Spec("chain", {"steps": parts})
