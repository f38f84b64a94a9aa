"""What a score is given and what it declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_graphsurgeon as gs

from tcompile.core.parameters import Parameters
from tcompile.core.schedule import Spec
from tcompile.passes.reduce.attention_view import AttentionView
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.token_state import TokenState


@dataclass(frozen=True)
class Seen:
    """The attention of a block that was run already.

    Attributes:
        core: it.
        number: of the stage that it ran in, an index of `ScoreInput.stages`.
        through: [B, K] i64, the patches that ran through it where others bypassed it; None: all.
    """

    core: AttentionView
    number: int
    through: gs.Tensor | None = None


@dataclass(frozen=True)
class ScoreInput:
    """What a score may read.

    Attributes:
        b: where to write nodes.
        core: the attention of the site's block.
        x: [B, N, C], the stream at the site.
        prefix: fixed tokens before the patches; `count` patches follow.
        readers: positions of the CLS token, or of the several tokens that take its place, from the
            front or (negative) from the back.
        parameters: of the score, defaults filled in.
        patches: T0, patches of the dense model.
        grid: their arrangement, such as (h, w) or (t, h, w); (T0,) where there is none.
        stages: the stages so far; the last one is that of the tokens being scored.
        seen: the blocks before, in order, and the site's own last (not around a block).
        probe: gives the learned probe's attention [B, N] to tokens [B, N, C]; None: no probe.
        apart: runs a score in each segment of the tokens, where the block's attentions see them
            apart; None: they do not.
    """

    b: Builder
    core: AttentionView
    x: gs.Tensor
    prefix: int
    count: int
    readers: Sequence[int] = (0,)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    patches: int = 0
    grid: tuple[int, ...] = ()
    stages: Sequence[TokenState] = ()
    seen: Sequence[Seen] = ()
    probe: Callable[[gs.Tensor], gs.Tensor] | None = None
    apart: Callable[[Score, ScoreInput], gs.Tensor] | None = None

    def of_patches(self, x: gs.Tensor, axis: int = 1, **kw: Any) -> gs.Tensor:
        """The patches along an axis that runs over all tokens."""
        return self.b.slice(x, axis, self.prefix, self.prefix + self.count, **kw)

    def score(self, spec: Spec) -> gs.Tensor:
        """A score of the same tokens, such as a part of a combined one."""
        from tcompile.passes.reduce.scores import filled_score, find_score

        score = find_score(spec.name)
        given = replace(self, parameters=filled_score(spec))
        if self.apart is not None and score.reads(given.parameters):
            return self.apart(score, given)
        return score.run(given)


def _nothing(parameters: Mapping[str, Any]) -> tuple[str, ...]:
    return ()


def _always(parameters: Mapping[str, Any]) -> bool:
    return True


def _no_parts(parameters: Mapping[str, Any]) -> tuple[Spec, ...]:
    return ()


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
    fused: Callable[[Mapping[str, Any]], bool] = _always
    needs: Callable[[Mapping[str, Any]], Sequence[str]] = _nothing
    parts: Callable[[Mapping[str, Any]], Sequence[Spec]] = _no_parts

    def reads(self, parameters: Mapping[str, Any]) -> bool:
        """Whether it reads the attention of the block."""
        return self.attention(parameters) if callable(self.attention) else self.attention
