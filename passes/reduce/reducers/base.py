"""What a reducer is given and what it declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.parameters import Parameters
from tcompile.core.schedule import Spec
from tcompile.passes.reduce.attention_view import AttentionView
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.token_state import TokenState

Grid = tuple[int, ...]


@dataclass(frozen=True)
class ReducerInput:
    """What a reducer may read.

    Attributes:
        b: where to write nodes.
        x: the stream [B, N, C], prefix first.
        width: C.
        score: [B, T] fp32, or None.
        core: the attention of the site's block.
        stage: the tokens before.
        prefix, suffix: fixed tokens before and after the patches.
        patches: T0, patches of the dense model.
        keep: patch tokens that go on.
        parameters: of the reducer, defaults filled in.
        table: [groups, g], the patches of each group, where tokens leave in whole groups.
        grid: (h, w) or (t, h, w) of the tokens as they are now; empty where they are no grid.
        fixed: [T], the score where it is the same for every image.
        full: [B, T0, C], each patch as it was last, where tokens are to return.
        beside: [B, N, C], inside an attention the stream beside it, before the norm.
        whole: the grid of the dense model.
        entered: gives the stream [B, N, C] as it enters the first block, with every token.
        rank: gives other scores [B, T] of the tokens that arrive at the site.
    """

    b: Builder
    x: gs.Tensor
    width: int
    score: gs.Tensor | None
    core: AttentionView
    stage: TokenState
    prefix: int
    suffix: int
    patches: int
    keep: int
    parameters: Mapping[str, Any] = field(default_factory=dict)
    table: np.ndarray[Any, Any] | None = None
    grid: Grid = ()
    fixed: np.ndarray[Any, Any] | None = None
    full: gs.Tensor | None = None
    beside: gs.Tensor | None = None
    whole: Grid = ()
    entered: Callable[[], gs.Tensor] | None = None
    rank: Callable[[Spec], gs.Tensor] | None = None

    @property
    def stream(self) -> gs.Tensor:
        """[B, N, C], the residual stream: what tokens are compared by."""
        return self.x if self.beside is None else self.beside

    def of_patches(self, x: gs.Tensor, **kw: Any) -> gs.Tensor:
        """The patch rows of a [B, N, C] tensor."""
        if not self.prefix and not self.suffix:
            return x
        return self.b.slice(x, 1, self.prefix, self.prefix + self.stage.count, **kw)

    def joined(self, patches: gs.Tensor, **kw: Any) -> gs.Tensor:
        """[prefix | patches | suffix] of the stream with new patches."""
        parts: list[gs.Tensor] = []
        if self.prefix:
            parts.append(self.b.slice(self.x, 1, 0, self.prefix, **kw))
        parts.append(patches)
        if self.suffix:
            parts.append(self.b.slice(self.x, 1, self.prefix + self.stage.count, None, **kw))
        return self.b.concat(parts, 1, **kw)

    def reduce(self, spec: Spec) -> tuple[gs.Tensor, TokenState]:
        """What another reducer makes of it, for one that leaves the rest to it."""
        from tcompile.passes.reduce.reducers import filled_reducer, find_reducer

        return find_reducer(spec.name).run(replace(self, parameters=filled_reducer(spec)))


@dataclass(frozen=True)
class Ask:
    """What is asked of a reducer, before anything is written.

    Attributes:
        count: patch tokens before, of one segment.
        keep: patch tokens after, of one segment.
        parameters: defaults filled in.
        grid: of the tokens before; empty where they are no grid.
        whole: the grid of the dense model.
    """

    count: int
    keep: int
    parameters: Mapping[str, Any]
    grid: Grid = ()
    whole: Grid = ()


def _no_problem(ask: Ask) -> str:
    return ""


def _no_grid(ask: Ask) -> Grid:
    return ()


def _no_parts(parameters: Mapping[str, Any]) -> tuple[Spec, ...]:
    return ()


def _nothing(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    return {}


Trait = Literal["merge", "fuse"]


@dataclass(frozen=True)
class Reducer:
    """A reducer: what happens to the tokens that leave.

    Attributes:
        name: as in a schedule.
        run: adds its nodes; gives the new stream and what is known of its tokens.
        parameters: what it takes.
        traits: `merge`: tokens come to stand for several, by size; `fuse`: some have no position.
        scored: whether it needs a score.
        groups: whether it can keep whole groups of tokens.
        segments: whether it can be run in each segment of the tokens by itself.
        around: whether its place is around a block, where tokens return by themselves.
        returns: whether it brings tokens back, so that it keeps as many as the dense model has.
        problem: why it cannot do what is asked, empty if it can: by counts and grid.
        grid: the grid of the tokens that it leaves, empty where they are none.
        parts: the reducers it is made of, by its parameters.
        scores: the scores that it takes by itself, by its parameters.
        first: whether it reads so much of the attention that it can only be a chain's first.
        by: the attributes above that are others by its parameters, such as `scored`.
    """

    name: str
    run: Callable[[ReducerInput], tuple[gs.Tensor, TokenState]]
    parameters: Parameters = field(default_factory=dict)
    traits: frozenset[Trait] = frozenset()
    scored: bool = True
    groups: bool = False
    segments: bool = False
    around: bool = False
    returns: bool = False
    problem: Callable[[Ask], str] = _no_problem
    grid: Callable[[Ask], Grid] = _no_grid
    parts: Callable[[Mapping[str, Any]], Sequence[Spec]] = _no_parts
    scores: Callable[[Mapping[str, Any]], Sequence[Spec]] = _no_parts
    first: bool = False
    by: Callable[[Mapping[str, Any]], Mapping[str, Any]] = _nothing

    def of(self, parameters: Mapping[str, Any]) -> Reducer:
        """What it is with these parameters, defaults filled in."""
        return replace(self, **self.by(parameters))
