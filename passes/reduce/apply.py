"""The reduce pass: one walk in execution order over a copy of the graph."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.effect_walk import effects
from tcompile.analysis.effects import Cut, Effects, Run, locate
from tcompile.analysis.layout import Layout, stream_layout
from tcompile.analysis.model import Analysis
from tcompile.analysis.sites import Site
from tcompile.errors import InternalError, ModelError, UsageError
from tcompile.ir import BATCH_SENTINEL, batch_dim, int_to_dim, is_const, replace_uses, shape
from tcompile.passes.lower.attention import decompose_attention
from tcompile.passes.normalize.infer import infer
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.bypass import Bypass, copies, returned
from tcompile.passes.reduce.check import check_schedule, raise_on_barrier
from tcompile.passes.reduce.core import Core
from tcompile.passes.reduce.edits import Editor, redirect
from tcompile.passes.reduce.moving import from_rows, to_rows
from tcompile.passes.reduce.outputs import Carried, carried, token_outputs
from tcompile.passes.reduce.reducers import ReducerInput, find_reducer
from tcompile.passes.reduce.scores import ScoreInput, find_score
from tcompile.passes.reduce.segments import Cores, by_segment
from tcompile.passes.reduce.stage import Stage, index_on_run
from tcompile.planning.schedule import Reduction, Schedule
from tcompile.plugins.spec import add_functions


@dataclass(frozen=True)
class ReducedGraph:
    """The result of the reduce pass.

    Attributes:
        graph: a new graph; shapes static but for a free batch.
        fp32_nodes: nodes that must stay in fp32 in an fp16 graph.
        edits: node name → kinds of edits made, for reports.
    """

    graph: gs.Graph
    fp32_nodes: frozenset[str]
    edits: dict[str, list[str]]


def reduce_graph(
    dense: gs.Graph, analysis: Analysis, schedule: Schedule, *, outputs: str = "reduced"
) -> ReducedGraph:
    """Apply a schedule. The dense graph is left as it is.

    Raises:
        UsageError: the schedule does not fit the model, or a site is illegal.
    """
    if outputs not in ("reduced", "restored"):
        raise UsageError(f"'{outputs}' is not reduced or restored", where="--outputs")
    sites = check_schedule(analysis, schedule, outputs)
    graph = dense.copy()
    if not schedule.reductions:
        return ReducedGraph(graph, frozenset(), {})
    restorable: frozenset[str] = frozenset()
    if outputs == "restored":
        restorable = analysis.restorable
        if not _in_groups(analysis, schedule):
            analysis = replace(analysis, space=replace(analysis.space, grouping=None))
    cuts = [s.cut(graph) for s in sites]
    found = effects(
        graph, analysis.facts, analysis.space, analysis.attentions, cuts, restorable=restorable
    )
    raise_on_barrier(found, schedule)
    rewriter = _Rewriter(
        graph, analysis, found, {s.name: c for s, c in zip(sites, cuts, strict=True)}
    )
    rewriter.run(list(zip(sites, schedule.reductions, strict=True)), outputs)
    edits = {n: [type(e).__name__ for e in es] for n, es in found.edits.items()}
    return ReducedGraph(graph, frozenset(rewriter.b.fp32), edits)


def _in_groups(analysis: Analysis, schedule: Schedule) -> bool:
    """Whether every reduction takes whole groups, so that the model may join them."""
    grouping, segments = analysis.space.grouping, analysis.space.segments
    return grouping is not None and all(
        r.reducer.name == "topk" and r.keep % (grouping.members * segments) == 0
        for r in schedule.reductions
    )


class _Rewriter:
    """State of the walk."""

    def __init__(
        self, graph: gs.Graph, analysis: Analysis, found: Effects, cuts: dict[str, Cut]
    ) -> None:
        self.graph, self.analysis, self.found, self.cuts = graph, analysis, found, cuts
        self.order = [n.name for n in graph.nodes]
        self.b = Builder(graph)
        self.nodes = {n.name: n for n in graph.nodes}
        tensors = graph.tensors()
        self.readers = {name: list(t.outputs) for name, t in tensors.items()}
        first = batch_dim(graph)
        self.batch = first if isinstance(first, int) else None
        self.stages = [Stage(analysis.space.patches)]
        inputs = {n.name: [str(t.name) for t in n.inputs] for n in graph.nodes}
        self.editor = Editor(
            self.b, analysis.space, self.batch, analysis.facts, inputs, current=dict(tensors)
        )

    def run(self, steps: list[tuple[Site, Reduction]], outputs: str) -> None:
        pending = {site.tensor: (site, step) for site, step in steps}
        returning: dict[str, Bypass] = {}
        dense_outputs = [str(o.name) for o in self.graph.outputs]
        for node in list(self.graph.nodes):
            restored = self.found.restored.get(node.name)
            number = self.found.node_stage.get(node.name, 0) if restored is None else restored
            stage = self.stages[number]
            for edit in self.found.edits.get(node.name, []):
                self.editor.apply(node, edit, stage)
            for out in list(node.outputs):
                if out.name in self.found.dims and restored is None:
                    out.shape = self._shape(out.name, stage)
                name = str(out.name)
                if name in returning:
                    self._return(out, returning.pop(name))
                if name in pending:
                    site, step = pending.pop(name)
                    if site.until:
                        returning[site.until] = self._bypass_at(name, site, step)
                    else:
                        self._reduce_at(out, site, step)
        if pending:
            raise InternalError(f"sites {list(pending)} were not reached")
        self._outputs(dense_outputs, outputs)
        # Owners and indices that no output asks for were written all the same; here they go.
        self.graph.cleanup(remove_unused_graph_inputs=False).toposort()
        add_functions(self.graph)
        # A restored output has taken the name of the reduced one, and has no shape yet.
        predicted = {
            name: tensor.shape
            for name, tensor in self.graph.tensors().items()
            if name in self.found.dims and tensor.shape is not None
        }
        self._spell_out_biased()
        self._infer(predicted)

    def _spell_out_biased(self) -> None:
        """Decompose each `Attention` that was given a bias shared by all queries.

        ONNX lets the mask broadcast; ONNX Runtime refuses it, and a full [N, N] one would cost more
        than the attention. The spelled-out form is fused by TensorRT all the same.
        """
        names = {
            a.node for a in self.analysis.attentions
            if a.form == "op" and self.nodes[a.node].name in self.editor.biased
        }  # fmt: skip
        if names:
            self._infer_shapes()
            decompose_attention(self.graph, lambda node: node.name in names)
            self.graph.toposort()

    def _shape(self, name: str, stage: Stage) -> list[int | str]:
        if stage is self.stages[0]:
            return [int_to_dim(ax.size(a)) for a in self.analysis.facts.axes[name]]
        batch = self.batch or BATCH_SENTINEL
        dims = self.found.dims.get(name) or self.found.cuts[name]
        return [int_to_dim(d.size(self.analysis.space, stage.count, batch)) for d in dims]

    def _layout(self, name: str, site: Site) -> Layout:
        layout = stream_layout(self.analysis.facts.axes[name], self.analysis.space)
        if layout is None:
            raise InternalError("a legal site has no stream layout", where=site.name)
        return layout

    def _input(
        self, rows: gs.Tensor, width: int, core: Core, stage: Stage, site: Site, step: Reduction
    ) -> ReducerInput:
        """What the reducer of a step is given, its score computed."""
        b, space = self.b, self.analysis.space
        score = None
        if step.score is not None:
            b.scope(f"{site.name.replace(':', '_')}/score")
            score = self._score(rows, core, stage, step.score.name)
        b.scope(f"{site.name.replace(':', '_')}/{step.reducer.name}")
        grouping = space.grouping if self.found.grouped else None
        table = None if grouping is None else grouping.table(space.whole_patches or ())
        return ReducerInput(
            b, rows, width, score, core, stage, space.prefix, space.suffix, space.patches,
            step.keep,
            step.reducer.parameters, table,
        )  # fmt: skip

    def _score(self, rows: gs.Tensor, core: Core, stage: Stage, name: str) -> gs.Tensor:
        """[B, T]; where the block's attentions see segments apart, each scores its own."""
        b, space, cls = self.b, self.analysis.space, self.analysis.cls or 0
        if not isinstance(core, Cores) or name == "norm":
            return find_score(name)(ScoreInput(b, core, rows, space.prefix, stage.count, cls))
        parts: list[gs.Tensor] = []
        for one in core.cores:
            run = Run(*space.runs[one.attention.columns])
            count = run.size(space, stage.count)
            parts.append(find_score(name)(ScoreInput(b, one, rows, 0, count, cls)))
        return b.concat(parts, 1)

    def _core(self, block: int, nodes: dict[str, gs.Node]) -> Core:
        """The attention of a block; the several that see segments apart, as one."""
        attentions = self.analysis.blocks[block].attentions
        cores = [Core(self.b, a, nodes, self.batch) for a in attentions]
        apart = attentions[0].columns != self.analysis.space.axis
        return Cores(cores) if apart else cores[0]

    def _reduce_with(self, given: ReducerInput, name: str) -> tuple[gs.Tensor, Stage]:
        segments = self.analysis.space.segments
        reducer = find_reducer(name)
        return reducer(given) if segments == 1 else by_segment(reducer, given, segments)

    def _reduce_at(self, stream: gs.Tensor, site: Site, step: Reduction) -> None:
        b, space, stage = self.b, self.analysis.space, self.stages[-1]
        name = str(stream.name)
        layout = self._layout(name, site)
        readers = self.readers[name]
        core = self._core(site.block, self.nodes)
        fixed = space.prefix + space.suffix
        b.scope(f"{site.name.replace(':', '_')}/{step.reducer.name}")
        rows = to_rows(b, stream, layout, fixed + stage.count)
        width = ax.size(self.analysis.facts.axes[name][layout.features])
        given = self._input(rows, width, core, stage, site, step)
        reduced, after = self._reduce_with(given, step.reducer.name)
        new = self._stream(name, reduced, layout, after)
        self.editor.current[name] = new
        redirect(stream, new, readers, self.graph)

    def _stream(self, name: str, rows: gs.Tensor, layout: Layout, after: Stage) -> gs.Tensor:
        """The reduced rows in the layout of the stream; a new stage begins."""
        space, axes = self.analysis.space, self.analysis.facts.axes[name]
        sizes = [space.prefix + space.suffix + after.count] + [1] * (len(layout.tokens) - 1)
        new = from_rows(self.b, rows, layout, sizes, ax.size(axes[layout.features]))
        self.stages.append(after)
        new.shape = self._shape(name, after)
        return new

    def _bypass_at(self, name: str, site: Site, step: Reduction) -> Bypass:
        """Let the nodes around which tokens are bypassed read the kept ones only."""
        b, space, blocks = self.b, self.analysis.space, self.analysis.blocks
        stream = self.editor.current[name]
        layout = self._layout(name, site)
        scope = site.name.replace(":", "_")
        b.scope(f"{scope}/score")
        region = [self.nodes[n] for n in self.order if n in self.cuts[site.name].region]
        core = self._core(site.block, {**self.nodes, **copies(b, region, blocks[site.block])})
        b.scope(f"{scope}/{step.reducer.name}")
        rows = to_rows(b, stream, layout, space.total)
        width = ax.size(self.analysis.facts.axes[name][layout.features])
        given = self._input(rows, width, core, self.stages[0], site, step)
        reduced, after = self._reduce_with(given, step.reducer.name)
        new = self._stream(name, reduced, layout, after)
        replace_uses(stream, new, region)
        return Bypass(rows, after)

    def _return(self, out: gs.Tensor, bypass: Bypass) -> None:
        """Put the kept tokens back among those that bypassed the block."""
        b, space, name = self.b, self.analysis.space, str(out.name)
        b.scope(f"return/{name}")
        kept = space.prefix + space.suffix + bypass.stage.count
        layout = stream_layout(self.analysis.facts.axes[name], space)
        if layout is None:
            raise InternalError("tokens return to a stream without a layout", where=name)
        rows = to_rows(b, out, layout, kept)
        index = index_on_run(b, space, bypass.stage, Run(0, len(space.pieces)))
        full = returned(b, bypass.rows, rows, index, kept, space.total)
        axes = self.analysis.facts.axes[name]
        sizes = [ax.size(axes[i]) for i in layout.tokens]
        new = from_rows(b, full, layout, sizes, ax.size(axes[layout.features]))
        new.shape = [int_to_dim(ax.size(a)) for a in axes]
        self.editor.current[name] = new
        redirect(out, new, self.readers[name], self.graph)

    def _outputs(self, dense: list[str], mode: str) -> None:
        wanted: dict[str, Carried] = {}
        for name in dense:
            stage = self.found.stage.get(name, 0)
            dims = locate(self.analysis.facts.axes[name], self.analysis.space)
            place = carried(dims, self.analysis.space, stage)
            if place is not None and not any(c.region for c in self.cuts.values()):
                wanted[name] = place
        token_outputs(self.editor, self.stages, wanted, mode)

    def _infer_shapes(self, *, symbolic: bool = False) -> None:
        """Shapes that contradict each other are the export's fault before this pass, ours after."""
        try:
            infer(self.graph, symbolic=symbolic)
        except ModelError as error:
            raise InternalError(f"the reduced graph does not fit together: {error.what}") from error

    def _infer(self, predicted: dict[str, list[int | str]]) -> None:
        """Infer shapes with the batch bound, then compare with what the analysis predicts.

        A Reshape whose −1 hides a missed fix would show here.
        """
        for tensor in self.graph.inputs:
            tensor.shape = list(shape(tensor))
        self._infer_shapes(symbolic=True)
        for tensor in self.graph.inputs:
            tensor.shape = [int_to_dim(d) for d in tensor.shape]
        for name, tensor in self.graph.tensors().items():
            if is_const(tensor):
                continue
            if tensor.shape is None:
                raise InternalError(f"the shape of '{name}' is unknown after reduction")
            if name in predicted and list(tensor.shape) != list(predicted[name]):
                raise InternalError(
                    f"'{name}' has shape {tensor.shape}, the analysis predicts {predicted[name]}"
                )
