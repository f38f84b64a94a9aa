"""What the score and the reducer of one step of a schedule are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis.effects import Effects
from tcompile.analysis.model import Analysis
from tcompile.analysis.sites import Site
from tcompile.analysis.token_dims import Run
from tcompile.core.graph import is_const, value
from tcompile.core.schedule import Reduction, Spec
from tcompile.passes.reduce.attention_view import AttentionView
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.probe import probe_of
from tcompile.passes.reduce.reducers import ReducerInput, filled_reducer, find_reducer
from tcompile.passes.reduce.reducers.base import Grid
from tcompile.passes.reduce.reducers.restore import put
from tcompile.passes.reduce.scores.base import Score, ScoreInput, Seen
from tcompile.passes.reduce.segments import Cores, by_segment, core_of
from tcompile.passes.reduce.token_state import TokenState


@dataclass(frozen=True)
class Step:
    """A reduction that was found legal.

    Attributes:
        site: where.
        reduction: what.
        grid: of the tokens before it; empty where they are none.
    """

    site: Site
    reduction: Reduction
    grid: Grid


class Steps:
    """Runs scores and reducers on the graph being rewritten.

    Attributes:
        stages: of the walk so far.
        whole: the grid of the dense model.
        entered: gives the stream [B, N, C] as it enters the first block.
        full: [B, T0, C], each patch as it was last; None unless tokens are to return.
        through: block → the patches that ran through it where others bypassed it.
    """

    def __init__(
        self,
        b: Builder,
        analysis: Analysis,
        found: Effects,
        nodes: Mapping[str, gs.Node],
        batch: int | None,
        stages: Sequence[TokenState],
        whole: Grid,
        entered: Callable[[], gs.Tensor],
    ) -> None:
        self.b, self.analysis, self.found = b, analysis, found
        self.nodes, self.batch, self.stages = nodes, batch, stages
        self.whole, self.entered, self.returns = whole, entered, False
        self.full: gs.Tensor | None = None
        self.through: dict[int, gs.Tensor] = {}

    def core(self, block: int, nodes: Mapping[str, gs.Node] | None = None) -> AttentionView:
        """The attention of a block; several as one."""
        attentions = self.analysis.blocks[block].attentions
        return core_of(
            self.b, attentions, self.analysis.space.axis, nodes or self.nodes, self.batch
        )

    def run(
        self,
        step: Step,
        rows: gs.Tensor,
        width: int,
        core: AttentionView,
        stage: TokenState,
        beside: gs.Tensor | None = None,
    ) -> tuple[gs.Tensor, TokenState]:
        """The stream [B, N, C] after a step, and what is known of its tokens.

        Args:
            rows: what tokens leave, [B, N, C].
            beside: the residual stream, where that is another.
        """
        b, space, reduction = self.b, self.analysis.space, step.reduction
        stream = rows if beside is None else beside

        def ranked(spec: Spec) -> gs.Tensor:
            return self._score(step.site, spec, stream, core, stage)

        def rank(spec: Spec) -> gs.Tensor:
            found = ranked(spec)
            return self._for_all(found, rows) if is_const(found) else found

        reducer = find_reducer(reduction.reducer.name)
        scope, score, fixed = step.site.name.replace(":", "_"), None, None
        if reduction.score is not None:
            b.scope(f"{scope}/score")
            score = ranked(reduction.score)
            if is_const(score):
                fixed, score = value(score).reshape(-1), self._for_all(score, rows)
        b.scope(f"{scope}/{reducer.name}")
        grouping = space.grouping if self.found.grouped else None
        table = None if grouping is None else grouping.table(space.whole_patches or ())
        given = ReducerInput(
            b,
            rows,
            width,
            score,
            core,
            stage,
            space.prefix,
            space.suffix,
            space.patches,
            reduction.keep,
            filled_reducer(reduction.reducer),
            table,
            step.grid,
            fixed,
            self.full,
            beside,
            self.whole,
            self.entered,
            rank,
        )
        if self.returns and not step.site.until:
            patches = given.of_patches(rows, fp32=False)
            self.full = put(
                b, patches if self.full is None else self.full, patches, stage, space.patches
            )
        if space.segments == 1:
            return reducer.run(given)
        return by_segment(reducer, given, space.segments)

    def _for_all(self, score: gs.Tensor, rows: gs.Tensor) -> gs.Tensor:
        """A constant score [1, T] for each image."""
        if self.batch == 1:
            return score
        return self.b.for_all(value(score), rows, np.float32)

    def _score(
        self, site: Site, spec: Spec, rows: gs.Tensor, core: AttentionView, stage: TokenState
    ) -> gs.Tensor:
        """[B, T]; where the block's attentions see segments apart, each scores its own."""
        b, space = self.b, self.analysis.space
        given = ScoreInput(
            b,
            core,
            rows,
            space.prefix,
            stage.count,
            self.analysis.readers or (0,),
            {},
            space.patches,
            self.whole or (space.patches,),
            self.stages,
            self._seen(site),
            probe_of(b, self.analysis, self.nodes, self.batch, stage.count, site),
            self._in_segments if isinstance(core, Cores) else None,
        )
        return given.score(spec)

    def _in_segments(self, score: Score, given: ScoreInput) -> gs.Tensor:
        assert isinstance(given.core, Cores)
        space, parts, start = self.analysis.space, [], given.prefix
        for one in given.core.cores:
            count = Run(*space.runs[one.attention.columns]).size(space, given.count)
            x = self.b.slice(given.x, 1, start, start + count)
            inner = replace(given, core=one, x=x, prefix=0, count=count, seen=(), apart=None)
            parts.append(score.run(inner))
            start += count
        return self.b.concat(parts, 1)

    def _seen(self, site: Site) -> list[Seen]:
        """The attentions that were run by the time tokens leave at a site."""
        last = site.block if site.until else site.block + 1
        return [
            Seen(
                self.core(i),
                self.found.node_stage.get(self.analysis.blocks[i].attention.node, 0),
                self.through.get(i),
            )
            for i in range(last)
        ]
