"""The input of a reducer, and what a reducer declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.parameters import Parameters, filled
from tcompile.core.schedule import Spec
from tcompile.passes.reduce.attention_view import AttentionView
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.token_state import TokenState

Grid = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Ask:
    """The counts that are asked of a reducer, before anything is written.

    Attributes:
        count: patch tokens before, of one segment.
        keep: patch tokens after, of one segment.
        parameters: defaults filled in.
        find: gives the reducer of a name, for one that is made of others.
        grid: of the tokens before; empty where they are not a grid.
        dense_grid: the grid of the dense model.
    """

    count: int
    keep: int
    parameters: Mapping[str, Any]
    find: Callable[[str], Reducer]
    grid: Grid = ()
    dense_grid: Grid = ()


@dataclass(frozen=True, kw_only=True)
class ReducerInput:
    """The input of a reducer.

    Attributes:
        builder: writes nodes.
        x: the stream [B, N, C], prefix first.
        width: C.
        score: [B, T] fp32, or None.
        attention: of the site's block.
        state: the tokens before.
        prefix, suffix: fixed tokens before and after the patches.
        dense_count: T0, patches of the dense model.
        dense_grid: their grid.
        keep: patch tokens that go on.
        parameters: of the reducer, defaults filled in.
        find: gives the reducer of a name.
        score_fn: gives another score [B, T] of the tokens that arrive at the site.
        encoder_input: gives the stream [B, N, C] as it enters the first block, with every token.
        group_table: [groups, g], the patches of each group, where tokens leave in whole groups.
        grid: (h, w) or (t, h, w) of the tokens as they are now; empty where they are not a grid.
        fixed_score: [T], the score where it is the same for every image.
        last_values: [B, T0, C], each patch as it was last, where tokens are to return.
        residual: [B, N, C], inside an attention the stream beside it, before the norm.
    """

    builder: Builder
    x: gs.Tensor
    width: int
    score: gs.Tensor | None
    attention: AttentionView
    state: TokenState
    prefix: int
    suffix: int
    dense_count: int
    dense_grid: Grid
    keep: int
    parameters: Mapping[str, Any]
    find: Callable[[str], Reducer]
    score_fn: Callable[[Spec], gs.Tensor]
    encoder_input: Callable[[], gs.Tensor]
    group_table: np.ndarray[Any, Any] | None = None
    grid: Grid = ()
    fixed_score: np.ndarray[Any, Any] | None = None
    last_values: gs.Tensor | None = None
    residual: gs.Tensor | None = None

    @property
    def ask(self) -> Ask:
        """The same in counts."""
        return Ask(
            count=self.state.count,
            keep=self.keep,
            parameters=self.parameters,
            find=self.find,
            grid=self.grid,
            dense_grid=self.dense_grid,
        )

    @property
    def stream(self) -> gs.Tensor:
        """[B, N, C], the residual stream: what tokens are compared by."""
        return self.x if self.residual is None else self.residual

    def of_patches(self, x: gs.Tensor, **kw: Any) -> gs.Tensor:
        """The patch rows of a [B, N, C] tensor."""
        if not self.prefix and not self.suffix:
            return x
        return self.builder.slice(x, 1, self.prefix, self.prefix + self.state.count, **kw)

    def joined(self, patches: gs.Tensor, **kw: Any) -> gs.Tensor:
        """[prefix | patches | suffix] of the stream with new patches."""
        parts: list[gs.Tensor] = []
        if self.prefix:
            parts.append(self.builder.slice(self.x, 1, 0, self.prefix, **kw))
        parts.append(patches)
        if self.suffix:
            parts.append(self.builder.slice(self.x, 1, self.prefix + self.state.count, None, **kw))
        return self.builder.concat(parts, 1, **kw)

    def reduce(self, spec: Spec) -> tuple[gs.Tensor, TokenState]:
        """Run another reducer on this input, for one that leaves the rest to it."""
        reducer, values = self.find(spec.name).bind(spec)
        return reducer.run(replace(self, parameters=values))


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
    problem: Callable[[Ask], str] = lambda ask: ""
    grid: Callable[[Ask], Grid] = lambda ask: ()
    parts: Callable[[Mapping[str, Any]], Sequence[Spec]] = lambda parameters: ()
    scores: Callable[[Mapping[str, Any]], Sequence[Spec]] = lambda parameters: ()
    first: bool = False
    by: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda parameters: {}

    def bind(self, spec: Spec) -> tuple[Reducer, dict[str, Any]]:
        """The reducer as it is with the parameters of a spec; these, defaults filled in.

        Raises:
            UsageError: an unknown one, or a value that it cannot have.
        """
        values = filled(self.parameters, spec.parameters, spec.name)
        return replace(self, **self.by(values)), values


def traits_of(spec: Spec, find: Callable[[str], Reducer]) -> frozenset[Trait]:
    """Return what a reducer, or what it is made of, does to the tokens."""
    reducer, values = find(spec.name).bind(spec)
    return reducer.traits.union(*(traits_of(part, find) for part in reducer.parts(values)))
