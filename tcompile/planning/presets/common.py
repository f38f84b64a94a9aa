"""What several presets take."""

from __future__ import annotations

from fractions import Fraction

from tcompile.planning.parameters import Parameter
from tcompile.planning.schedule import Spec

CLS = Spec("cls")
TOPK = Spec("topk")


def rate(published: str = "") -> Parameter:
    """Of stages: tokens kept at each."""
    paper = f" (paper: {published})" if published else ""
    return Parameter(Fraction, None, f"tokens kept at each stage{paper}", least=0.001, most=1)


def count(meaning: str) -> Parameter:
    """Tokens, 0 or more; not set by default."""
    return Parameter(int, None, meaning, least=0)


PROP_ATTN = Parameter(bool, True, "proportional attention: logits + log size")
HEAD = Parameter(
    str, None, "the file of the trained head, an .npz of norm.weight, norm.bias, 0.weight, …"
)
