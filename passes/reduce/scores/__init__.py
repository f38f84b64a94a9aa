"""Scores: importance per patch token, [B, T] fp32, larger = keep; the registry is below."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from tcompile.errors import UsageError
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.core import Core
from tcompile.passes.reduce.scores.attn import attn
from tcompile.passes.reduce.scores.cls import cls
from tcompile.passes.reduce.scores.norm import norm


@dataclass(frozen=True)
class ScoreInput:
    """What a score may read.

    Attributes:
        b: where to write nodes.
        core: the attention of the site's block.
        x: [B, N, C], the stream at the site.
        prefix: fixed tokens before the patches; `count` patches follow.
        cls: position of the CLS token, from the front or (negative) from the back.
    """

    b: Builder
    core: Core
    x: gs.Tensor
    prefix: int
    count: int
    cls: int = 0


Score = Callable[[ScoreInput], gs.Tensor]

SCORES: Mapping[str, Score] = {"cls": cls, "attn": attn, "norm": norm}


def find_score(name: str) -> Score:
    """The score of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in SCORES:
        raise UsageError(f"unknown score '{name}'", hint=f"there are: {', '.join(SCORES)}")
    return SCORES[name]
