"""Running the score and the reducer of one step of a schedule.

For towers without CLS a score may be the attention of the learned probe behind some encoders
(SigLIP's pooling head, Q-Former).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis.attention import Attention
from tcompile.analysis.effects import Effects
from tcompile.analysis.model import Analysis
from tcompile.analysis.outcomes import between
from tcompile.analysis.sites import Site
from tcompile.analysis.structure import ancestors
from tcompile.analysis.token_dims import Run, locate
from tcompile.core.graph import is_const, tensors_of, value
from tcompile.core.schedule import Reduction, Spec
from tcompile.passes.reduce.attention_view import AttentionView
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.reducers import ReducerInput, find_reducer
from tcompile.passes.reduce.reducers.base import Grid
from tcompile.passes.reduce.reducers.restore import put
from tcompile.passes.reduce.scores import find_score
from tcompile.passes.reduce.scores.base import PastAttention, Score, ScoreInput
from tcompile.passes.reduce.segments import Parts, by_segment, view_of
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

    def attention(self, block: int, nodes: Mapping[str, gs.Node] | None = None) -> AttentionView:
        """The attention of a block; several as one."""
        attentions = self.analysis.blocks[block].attentions
        return view_of(
            self.b, attentions, self.analysis.space.axis, nodes or self.nodes, self.batch
        )

    def run(
        self,
        step: Step,
        rows: gs.Tensor,
        width: int,
        attention: AttentionView,
        state: TokenState,
        beside: gs.Tensor | None = None,
    ) -> tuple[gs.Tensor, TokenState]:
        """The stream [B, N, C] after a step, and what is known of its tokens.

        Args:
            rows: what tokens leave, [B, N, C].
            beside: the residual stream, where that is another.
        """
        b, space, reduction = self.b, self.analysis.space, step.reduction
        stream = rows if beside is None else beside

        def score_of(spec: Spec) -> gs.Tensor:
            return self._score(step.site, spec, stream, attention, state)

        def score_fn(spec: Spec) -> gs.Tensor:
            found = score_of(spec)
            return self._for_all(found, rows) if is_const(found) else found

        reducer, parameters = find_reducer(reduction.reducer.name).bind(reduction.reducer)
        scope, score, fixed = step.site.name.replace(":", "_"), None, None
        if reduction.score is not None:
            b.scope(f"{scope}/score", step.site.name)
            score = score_of(reduction.score)
            if is_const(score):
                fixed, score = value(score).reshape(-1), self._for_all(score, rows)
        b.scope(f"{scope}/{reducer.name}", step.site.name)
        grouping = space.grouping if self.found.grouped else None
        table = None if grouping is None else grouping.table(space.whole_patches or ())
        inputs = ReducerInput(
            builder=b,
            x=rows,
            width=width,
            score=score,
            attention=attention,
            state=state,
            prefix=space.prefix,
            suffix=space.suffix,
            dense_count=space.patches,
            dense_grid=self.whole,
            keep=reduction.keep,
            parameters=parameters,
            find=find_reducer,
            score_fn=score_fn,
            encoder_input=self.entered,
            group_table=table,
            grid=step.grid,
            fixed_score=fixed,
            last_values=self.full,
            residual=beside,
        )
        if self.returns and not step.site.until:
            patches = inputs.of_patches(rows, fp32=False)
            self.full = put(
                b, patches if self.full is None else self.full, patches, state, space.patches
            )
        if space.segments == 1:
            return reducer.run(inputs)
        return by_segment(reducer, inputs, space.segments)

    def _for_all(self, score: gs.Tensor, rows: gs.Tensor) -> gs.Tensor:
        """A constant score [1, T] for each image."""
        if self.batch == 1:
            return score
        return self.b.for_all(value(score), rows, np.float32)

    def _score(
        self, site: Site, spec: Spec, rows: gs.Tensor, attention: AttentionView, state: TokenState
    ) -> gs.Tensor:
        """[B, T]; where the block's attentions see segments apart, each scores its own."""
        b, space = self.b, self.analysis.space
        inputs = ScoreInput(
            builder=b,
            attention=attention,
            x=rows,
            prefix=space.prefix,
            count=state.count,
            find=find_score,
            cls_positions=self.analysis.readers or (0,),
            dense_count=space.patches,
            dense_grid=self.whole or (space.patches,),
            states=self.stages,
            past=self._past(site),
            probe=probe_of(b, self.analysis, self.nodes, self.batch, state.count, site),
            per_segment=self._in_segments if isinstance(attention, Parts) else None,
        )
        return inputs.score(spec)

    def _in_segments(self, score: Score, inputs: ScoreInput) -> gs.Tensor:
        assert isinstance(inputs.attention, Parts)
        space, parts, start = self.analysis.space, [], inputs.prefix
        for view in inputs.attention.views:
            count = Run(*space.runs[view.matched.columns]).size(space, inputs.count)
            x = self.b.slice(inputs.x, 1, start, start + count)
            inner = replace(
                inputs, attention=view, x=x, prefix=0, count=count, past=(), per_segment=None
            )
            parts.append(score.run(inner))
            start += count
        return self.b.concat(parts, 1)

    def _past(self, site: Site) -> list[PastAttention]:
        """The attentions that were run by the time tokens leave at a site."""
        last = site.block if site.until else site.block + 1
        return [
            PastAttention(
                self.attention(i),
                self.found.node_stage.get(self.analysis.blocks[i].attention.node, 0),
                self.through.get(i),
            )
            for i in range(last)
        ]


def find_probe(analysis: Analysis, graph: gs.Graph) -> Attention | None:
    """The first attention behind the blocks that learned queries pay to all the tokens."""
    last, tensors = analysis.blocks[-1].stream_out, tensors_of(graph)
    for attention in analysis.attentions:
        if attention.columns != analysis.space.axis or attention.rows == attention.columns:
            continue
        above = ancestors(tensors[attention.k]) | {attention.k}
        if last in above and last not in ancestors(tensors[attention.q]):
            return attention
    return None


def probe_of(
    b: Builder,
    analysis: Analysis,
    nodes: Mapping[str, gs.Node],
    batch: int | None,
    count: int,
    site: Site,
) -> Callable[[gs.Tensor], gs.Tensor] | None:
    """Return a function that gives the attention [B, N] that the probe, mean of heads and queries,
    pays to the stream [B, N, C] of a site with `count` patches: what leads from the last block to
    its keys is copied, and at the output what leads there from the final norm."""
    attention = find_probe(analysis, b.graph)
    if attention is None:
        return None
    found = attention
    start = site.tensor if site.kind == "output" else analysis.blocks[-1].stream_out

    def attend(x: gs.Tensor) -> gs.Tensor:
        copied = _copied(b, analysis, found, start, x, batch, count)
        core = AttentionView(b, found, {**nodes, **copied}, batch)
        queries = core.rows(list(range(found.query_rows)))
        return b.reduce("Mean", queries, [1, 2])

    return attend


def _copied(
    b: Builder,
    analysis: Analysis,
    attention: Attention,
    start: str,
    x: gs.Tensor,
    batch: int | None,
    count: int,
) -> dict[str, gs.Node]:
    """Copies of the nodes from a tensor to the probe's logits, reading `x` in its place."""
    tensors = {start: x}
    made: dict[str, gs.Node] = {}
    softmax = attention.node
    end = next(n for n in b.graph.nodes if n.name == softmax).outputs[0].name
    inside = between(b.graph.nodes, start, str(end))
    for node in [n for n in b.graph.nodes if n.name in inside]:
        outputs = []
        for out in node.outputs:
            tensors[out.name] = gs.Variable(
                b.name(f"probe/{out.name}"), out.dtype, _shape(analysis, out, batch, count)
            )
            outputs.append(tensors[out.name])
        inputs = [tensors.get(t.name, t) for t in node.inputs]
        copy = gs.Node(
            node.op, b.name(f"probe/{node.name}"), dict(node.attrs), inputs, outputs, node.domain
        )
        if node.op in ("Reshape", "Expand") and is_const(node.inputs[1]):
            dims = _shape(analysis, node.outputs[0], None, count)
            copy.inputs[1] = b.const([d if isinstance(d, int) else 0 for d in dims])
        made[node.name] = copy
        b.graph.nodes.append(copy)
    return made


def _shape(analysis: Analysis, out: gs.Tensor, batch: int | None, count: int) -> list[int | str]:
    """The shape that a tensor of the dense graph has with fewer patches."""
    found: list[int | str] = []
    for dim, old in zip(
        locate(analysis.facts.axes[out.name], analysis.space), out.shape, strict=True
    ):
        held = dim is not None and dim.run is not None and dim.run.has_patches(analysis.space)
        found.append(dim.size(analysis.space, count, batch or 1) if dim and held else old)
    return found
