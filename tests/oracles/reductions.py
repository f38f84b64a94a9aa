"""Requests to the oracles' walk, and its answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tests.oracles.moments import Moment
from tests.oracles.stream import Output, gather


@dataclass(frozen=True)
class Reduction:
    """site: `attn:3` (after that block's attention), `block:3` (after its MLP), `output` (after the
    last block and the norm that follows it; scores are the last block's) or `around:3`.
    kind: topk, fuse or tome; bypass around a block.  score: cls, attn or norm, the length of the
    token (not for tome).  keep: tokens other than the prefix that leave the site, the fused one
    included, or that do not bypass the block.  proportional: ToMe's proportional attention from
    here on.

    decide: a method of its own (`tests.oracles.presets`), with its parameters `values`, how many it
    leaves after each of its steps (`counts`), and which of how many reductions this is.  By kind it
    gives, for `preset`, a `Step`; for `bypass`, scores [B, T] of who is to run; for `inside`, a
    `Step` for the attention at `inside:3` alone, undone before the residual add; for `back`, all
    patches [B, T0, C].
    """

    site: str
    kind: str
    keep: int
    score: str = "cls"
    proportional: bool = True
    decide: Callable[[Moment], Any] | None = field(default=None, compare=False)
    values: Mapping[str, Any] = field(default_factory=dict, compare=False)
    counts: tuple[int, ...] = field(default=(), compare=False)
    number: int = field(default=0, compare=False)
    steps: int = field(default=1, compare=False)


@dataclass(frozen=True)
class Margin:
    """Margin of the closest decision of one reduction was, for each image: gap [B].

    what: `kept`, `length` or `merged`, the last that was against the first that was not, in that
    score's unit (attention probability, norm, cosine); `target` or `owner`, the nearest token
    against the second nearest, as cosines.
    """

    site: str
    what: str
    gap: Tensor


@dataclass(frozen=True)
class Result:
    """outputs: as the head gives them, tokens reduced.  index [B, K], owner [B, N], size [B, K]:
    over all tokens, prefix included.  entering: tokens entering (attention, MLP) of each block."""

    outputs: tuple[Output, ...]
    index: Tensor
    owner: Tensor
    size: Tensor
    entering: tuple[tuple[int, int], ...]
    margins: tuple[Margin, ...]

    def restored(self, output: Output) -> Tensor:
        """An output with a token axis, brought back to one row for every original token.

        The output's first row is stream position `first`; rows before it have no owner in it, and
        the prefix owns itself, so owners are shifted by `first` as well.  What is made of groups or
        taps was made of every token in the first place.
        """
        if output.first is None or output.members > 1 or output.tap:
            return output.value
        return gather(output.value, output.part(self.owner) - output.first)
