"""The input of a score, and what a score declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_graphsurgeon as gs

from tcompile.core.parameters import Parameters, filled
from tcompile.core.schedule import Spec
from tcompile.passes.reduce.attention_view import AttentionView
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.token_state import TokenState


@dataclass(frozen=True)
class PastAttention:
    """The attention of a block that was run already.

    Attributes:
        attention: of the block.
        state: of the tokens that it ran with, an index of `ScoreInput.states`.
        through: [B, K] i64, the patches that ran through it where others bypassed it; None: all.
    """

    attention: AttentionView
    state: int
    through: gs.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class ScoreInput:
    """The input of a score.

    Attributes:
        builder: writes nodes.
        attention: of the site's block.
        x: [B, N, C], the stream at the site.
        prefix: fixed tokens before the patches; `count` patches follow.
        find: gives the score of a name, for one that is made of others.
        cls_positions: of the CLS token, or of the several tokens that take its place, from the
            front or (negative) from the back.
        parameters: of the score, defaults filled in.
        dense_count: T0, patches of the dense model.
        dense_grid: their arrangement, such as (h, w) or (t, h, w); (T0,) where there is none.
        states: of the tokens so far; the last one is that of the tokens being scored.
        past: the blocks before, in order, and the site's own last (not around a block).
        probe: gives the learned probe's attention [B, N] to tokens [B, N, C]; None: no probe.
        per_segment: runs a score in each segment of the tokens, where the block's attentions see
            them apart; None: they do not.
    """

    builder: Builder
    attention: AttentionView
    x: gs.Tensor
    prefix: int
    count: int
    find: Callable[[str], Score]
    cls_positions: Sequence[int] = (0,)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    dense_count: int
    dense_grid: tuple[int, ...] = ()
    states: Sequence[TokenState]
    past: Sequence[PastAttention] = ()
    probe: Callable[[gs.Tensor], gs.Tensor] | None = None
    per_segment: Callable[[Score, ScoreInput], gs.Tensor] | None = None

    def of_patches(self, x: gs.Tensor, axis: int = 1, **kw: Any) -> gs.Tensor:
        """The patches along an axis that runs over all tokens."""
        return self.builder.slice(x, axis, self.prefix, self.prefix + self.count, **kw)

    def score(self, spec: Spec) -> gs.Tensor:
        """A score of the same tokens, such as a part of a combined one."""
        score = self.find(spec.name)
        inputs = replace(self, parameters=score.filled(spec))
        if self.per_segment is not None and score.reads(inputs.parameters):
            return self.per_segment(score, inputs)
        return score.run(inputs)


@dataclass(frozen=True)
class Score:
    """A score: importance per patch token, [B, T] fp32, larger = keep.

    A constant [1, T] may be returned where no image matters.

    Attributes:
        name: as in a schedule.
        run: adds its nodes and gives the scores.
        parameters: what it takes.
        attention: whether it reads the attention of the block (its Q, K or V), by its parameters
            where that depends; False also where only its parts do.
        fused: whether the attention stays fused, by its parameters.
        needs: of the model, by its parameters: `cls`, `grid`, `frames`, `probe`.
        parts: the scores it is made of, by its parameters.
    """

    name: str
    run: Callable[[ScoreInput], gs.Tensor]
    parameters: Parameters = field(default_factory=dict)
    attention: bool | Callable[[Mapping[str, Any]], bool] = True
    fused: Callable[[Mapping[str, Any]], bool] = lambda parameters: True
    needs: Callable[[Mapping[str, Any]], Sequence[str]] = lambda parameters: ()
    parts: Callable[[Mapping[str, Any]], Sequence[Spec]] = lambda parameters: ()

    def reads(self, parameters: Mapping[str, Any]) -> bool:
        """Tell if it reads the attention of the block."""
        return self.attention(parameters) if callable(self.attention) else self.attention

    def filled(self, spec: Spec) -> dict[str, Any]:
        """Return the parameters of a spec of this score, defaults filled in.

        Raises:
            UsageError: an unknown one, or a value that it cannot have.
        """
        return filled(self.parameters, spec.parameters, spec.name)
