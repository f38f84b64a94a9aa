"""The reduce pass: one walk in execution order over a copy of the graph.

`apply` is the one place that says how each edit of `analysis.effects` is applied. Where tokens are
bypassed around a block (IdleViT, SViT), some run through it, and the others pass it unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER
from onnx_graphsurgeon.util.exception import OnnxGraphSurgeonException

from tcompile.analysis import axes as ax
from tcompile.analysis import effects as fx
from tcompile.analysis.count_state import Counts
from tcompile.analysis.effects import Effects, ReductionPoint
from tcompile.analysis.model import Analysis, tower_batch
from tcompile.analysis.token_dims import Layout, Run, locate, stream_layout
from tcompile.core.errors import InternalError, ModelError, UsageError, assert_never
from tcompile.core.graph import int_to_dim, is_const, replace_uses, shape, tensors_of
from tcompile.core.node_order import drop_dead, toposort
from tcompile.passes.lower.spell import decompose_attention
from tcompile.passes.normalize.infer import infer
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.bypass import Bypass, copies, returned
from tcompile.passes.reduce.check import dense_grid
from tcompile.passes.reduce.dense_tail import DenseTail
from tcompile.passes.reduce.edit_state import Editor
from tcompile.passes.reduce.gather_rows import from_rows, to_rows
from tcompile.passes.reduce.outputs import Carried, carried, token_outputs
from tcompile.passes.reduce.recount import recount, rescale
from tcompile.passes.reduce.reducers import reducer_of, traits_of
from tcompile.passes.reduce.restoring import BY_OWNER, owner_by
from tcompile.passes.reduce.set_shapes import set_gather, set_shape, set_slice, set_split, trim
from tcompile.passes.reduce.side_inputs import gather_side, regroup_views, reorder, restore
from tcompile.passes.reduce.steps import Step, Steps
from tcompile.passes.reduce.token_state import Departure, TokenState, index_on_run, owner_on_run
from tcompile.passes.reduce.traced import TracedStep, tell
from tcompile.passes.reduce.weigh import bias, pool
from tcompile.passes.runner import Dump


@dataclass(frozen=True)
class ReducedGraph:
    """The result of the reduce pass.

    Attributes:
        graph: a new graph; shapes static but for a free batch.
        fp32_nodes: nodes that must stay in fp32 in an fp16 graph.
        written: name of each node and tensor that this pass wrote → the site that it is for; empty
            for what follows from several.
        edits: node name → kinds of edits made, for reports.
        token_index: output with fewer tokens → the output that says which tokens its rows are.
        steps: of a graph that only tells of them, the steps of the schedule.
    """

    graph: gs.Graph
    fp32_nodes: frozenset[str]
    written: Mapping[str, str]
    edits: dict[str, list[str]]
    token_index: Mapping[str, str] = field(default_factory=dict)
    steps: tuple[TracedStep, ...] = ()


def returns(step: Step) -> bool:
    return reducer_of(step.reduction.reducer).returns


class Rewriter:
    """State of the walk.

    Attributes:
        graph: being rewritten.
        b: writes nodes into it.
        shapes: whether the shapes of all tensors are wanted.
    """

    def __init__(
        self,
        graph: gs.Graph,
        analysis: Analysis,
        found: Effects,
        planned: Sequence[tuple[Step, ReductionPoint]],
        counts: Counts,
        *,
        outputs: str,
        rule: str,
        label: str,
        dump: Dump | None,
        shapes: bool = True,
    ) -> None:
        self.shapes = shapes
        self.outputs, self.label, self.dump = outputs, label, dump
        self.planned = [step for step, _ in planned]
        cuts = {step.site.name: cut for step, cut in planned}
        self.token_index: dict[str, str] = {}
        self.dense_outputs = [str(o.name) for o in graph.outputs]
        self.predicted: dict[str, list[int | str]] = {}
        self.graph, self.analysis, self.found, self.cuts = graph, analysis, found, cuts
        self.cuts_back = {c.tensor for c in cuts.values() if c.back}
        self.order = [n.name for n in graph.nodes]
        self.b = Builder(graph)
        self.nodes = {n.name: n for n in graph.nodes}
        tensors = tensors_of(graph)
        self.readers = {name: list(t.outputs) for name, t in tensors.items()}
        first = tower_batch(graph, analysis)
        self.batch = first if isinstance(first, int) else None
        self.stages = [TokenState(analysis.space.patches)]
        inputs = {n.name: [str(t.name) for t in n.inputs] for n in graph.nodes}
        # Copies of nodes get axes as well; those are of this rewrite alone.
        facts = replace(analysis.facts, axes=dict(analysis.facts.axes))
        self.editor = Editor(
            self.b, analysis.space, self.batch, facts, inputs, counts, first, current=dict(tensors)
        )
        self.reached: dict[str, TokenState] = {}
        self.done: list[tuple[Step, TokenState]] = []
        self.told: tuple[TracedStep, ...] = ()
        self._give_by(rule)
        self.fixed = analysis.space.prefix + analysis.space.suffix
        self.entering = tensors[analysis.blocks[0].stream_in]
        self.steps = Steps(
            self.b,
            analysis,
            found,
            self.nodes,
            self.batch,
            self.stages,
            dense_grid(analysis),
            self._entered,
        )

    def _give_by(self, rule: str) -> None:
        """Let edits and outputs that need every token again have rows by a rule of `restoring`."""
        if rule in BY_OWNER:
            known: dict[int, TokenState] = {}

            def owners(state: TokenState) -> TokenState:
                if id(state) not in known:
                    owner = owner_by(self.b, self.analysis.space, state, rule)
                    same = owner is state.owner
                    known[id(state)] = state if same else replace(state, owner=owner, cache={})
                return known[id(state)]

            self.editor.owners = owners
            return
        tail = DenseTail(self.graph, self.analysis, dense_grid(self.analysis), rule)
        edited = frozenset(self.found.edits)

        def whole(name: str) -> gs.Tensor:
            stages = {
                s: self.reached.get(s, self.stages[self.found.stage.get(s, 0)])
                for s in tail.streams_of(name)
            }
            return tail.give(self.editor, name, stages, edited)

        self.editor.whole = whole

    def walk(self) -> None:
        """Go through the nodes in execution order: edit them, reduce where tokens leave."""
        pending = {step.site.tensor: step for step in self.planned}
        self.steps.returns = any(returns(step) for step in self.planned)
        returning: dict[str, Bypass] = {}
        for node in list(self.graph.nodes):
            restored = self.found.restored.get(node.name)
            number = self.found.node_stage.get(node.name, 0) if restored is None else restored
            stage = self.stages[number]
            written = list(node.outputs)  # what an edit scales is written by a node behind
            for edit in self.found.edits.get(node.name, []):
                apply(self.editor, node, edit, self.stages, number)
            for out in written:
                if out.name in self.found.dims and restored is None:
                    out.shape = self._shape(out.name, stage)
                name = str(out.name)
                if name in returning:
                    self._return(out, returning.pop(name))
                if name in pending:
                    step = pending.pop(name)
                    if step.site.until:
                        returning[step.site.until] = self._bypass_at(name, step)
                    else:
                        self._reduce_at(out, step)
                    if self.dump is not None:
                        place = f"{step.site.name}-{step.reduction.reducer.name}"
                        self.dump.write("reduce", place, self.graph)
        if pending:
            raise InternalError(f"sites {list(pending)} were not reached")

    def sort(self) -> None:
        """Put nodes in execution order; those that no output needs go.

        Owners and indices that no output asks for were written all the same.
        """
        try:
            with G_LOGGER.suppress(G_LOGGER.CRITICAL + 1):  # it prints what the error says
                toposort(drop_dead(self.graph))
        except OnnxGraphSurgeonException as error:
            names = ", ".join(self.cuts)
            raise UsageError(
                f"what is read to choose tokens at {names} is computed from the tokens that leave "
                "there",
                where="schedule",
                hint="choose another site",
            ) from error

    def spell_biased(self) -> None:
        """Decompose each `Attention` that was given a bias shared by all queries.

        ONNX lets the mask broadcast; ONNX Runtime refuses it, and a full [N, N] one would cost more
        than the attention. The spelled-out form is fused by TensorRT all the same.
        """
        # A restored output has taken the name of the reduced one, and has no shape yet.
        self.predicted = {
            name: tensor.shape
            for name, tensor in tensors_of(self.graph).items()
            if name in self.found.dims and tensor.shape is not None
        }
        names = {
            a.node
            for a in self.analysis.attentions
            if a.form == "op" and self.nodes[a.node].name in self.editor.biased
        }
        if names:
            self._infer_shapes()
            decompose_attention(self.graph, lambda node: node.name in names)
            toposort(self.graph)

    def _shape(self, name: str, stage: TokenState) -> list[int | str]:
        if stage is self.stages[0]:
            return [int_to_dim(ax.size(a)) for a in self.analysis.facts.axes[name]]
        dims = self.found.dims.get(name) or self.found.cuts[name]
        return [int_to_dim(d.size(self.analysis.space, stage.count, d.extent)) for d in dims]

    def _entered(self) -> gs.Tensor:
        """[B, N, C], the stream as it enters the first block."""
        layout = self._layout(self.analysis.blocks[0].stream_in)
        return to_rows(self.b, self.entering, layout, self.analysis.space.total)

    def _layout(self, name: str) -> Layout:
        layout = stream_layout(self.analysis.facts.axes[name], self.analysis.space)
        if layout is None:
            raise InternalError(
                "a stream that tokens leave, or return to, has no layout", where=name
            )
        return layout

    def _reduce_at(self, stream: gs.Tensor, step: Step) -> None:
        b, site, stage = self.b, step.site, self.stages[-1]
        name = str(stream.name)
        layout = self._layout(name)
        readers = self.readers[name]
        core = self.steps.attention(site.block)
        b.scope(f"{site.name.replace(':', '_')}/{step.reduction.reducer.name}", site.name)
        rows = to_rows(b, stream, layout, self.fixed + stage.count)
        width = ax.size(self.analysis.facts.axes[name][layout.features])
        reduced, after = self.steps.run(step, rows, width, core, stage)
        if not returns(step):
            after.before = 0 if stage.whole else len(self.stages) - 1
            traits = traits_of(step.reduction.reducer)
            after.departure = Departure(stage, rows, reduced, traits)
        self.done.append((step, after))
        new = self._stream(name, reduced, layout, after)
        self.editor.current[name] = new
        redirect(stream, new, readers, self.graph)

    def _stream(self, name: str, rows: gs.Tensor, layout: Layout, after: TokenState) -> gs.Tensor:
        """The reduced rows in the layout of the stream; a new stage begins."""
        space, axes = self.analysis.space, self.analysis.facts.axes[name]
        sizes = [space.prefix + space.suffix + after.count] + [1] * (len(layout.tokens) - 1)
        if name in self.cuts_back:
            sizes = [ax.size(axes[i]) for i in layout.tokens]
        new = from_rows(self.b, rows, layout, sizes, ax.size(axes[layout.features]))
        self.stages.append(after)
        self.reached[name] = after
        if name in self.cuts_back:
            new.shape = [int_to_dim(ax.size(a)) for a in axes]
        else:
            new.shape = self._shape(name, after)
        return new

    def _bypass_at(self, name: str, step: Step) -> Bypass:
        """Let the nodes around which tokens are bypassed read the kept ones only."""
        b, site, space, blocks = self.b, step.site, self.analysis.space, self.analysis.blocks
        stream = self.editor.current[name]
        layout = self._layout(name)
        b.scope(f"{site.name.replace(':', '_')}/score", site.name)
        region = [self.nodes[n] for n in self.order if n in self.cuts[site.name].region]
        nodes = {**self.nodes, **copies(b, region, blocks[site.block])}
        core = self.steps.attention(site.block, nodes)
        rows = to_rows(b, stream, layout, space.total)
        width = ax.size(self.analysis.facts.axes[name][layout.features])
        merged, beside = self.cuts[site.name].merged, None
        if merged:
            entering = blocks[site.block].stream_in
            beside = to_rows(b, self.editor.current[entering], self._layout(entering), space.total)
        reduced, after = self.steps.run(step, rows, width, core, self.stages[0], beside)
        if not merged:
            assert after.index is not None
            self.steps.through[site.block] = after.index
        self.done.append((step, after))
        new = self._stream(name, reduced, layout, after)
        replace_uses(stream, new, region)
        return Bypass(rows, after, merged)

    def _return(self, out: gs.Tensor, bypass: Bypass) -> None:
        """Put the kept tokens back among those that bypassed the block; give those that were
        merged before an attention what it did with the token that stood for them."""
        b, space, name = self.b, self.analysis.space, str(out.name)
        b.scope(f"return/{name}")
        kept = space.prefix + space.suffix + bypass.stage.count
        layout = self._layout(name)
        rows = to_rows(b, out, layout, kept)
        whole = Run(0, len(space.pieces))
        if bypass.merged:
            owner = owner_on_run(b, space, bypass.stage, whole)
            full = b.call("TcGatherTokens", rows, owner, dtypes=[rows.dtype], fp32=False)[0]
        else:
            index = index_on_run(b, space, bypass.stage, whole)
            full = returned(b, bypass.rows, rows, index, kept, space.total)
        axes = self.analysis.facts.axes[name]
        sizes = [ax.size(axes[i]) for i in layout.tokens]
        new = from_rows(b, full, layout, sizes, ax.size(axes[layout.features]))
        new.shape = [int_to_dim(ax.size(a)) for a in axes]
        self.editor.current[name] = new
        redirect(out, new, self.readers[name], self.graph)

    def write_outputs(self) -> None:
        """Say which tokens an output holds, or spread it back over all of them."""
        wanted: dict[str, Carried] = {}
        for name in self.dense_outputs:
            stage = self.found.stage.get(name, 0)
            dims = locate(self.analysis.facts.axes[name], self.analysis.space)
            place = carried(dims, self.analysis.space, stage)
            if place is not None and not any(c.region for c in self.cuts.values()):
                wanted[name] = place
        self.token_index = token_outputs(self.editor, self.stages, wanted, self.outputs, self.label)

    def tell(self) -> None:
        """Let the graph only tell of its steps."""
        self.told = tell(self.graph, self.b, self.done)

    def _infer_shapes(self, *, symbolic: bool = False) -> None:
        """Shapes that contradict each other are the export's fault before this pass, and
        tcompile's after it."""
        try:
            infer(self.graph, symbolic=symbolic)
        except ModelError as error:
            raise InternalError(f"the reduced graph does not fit together: {error.what}") from error

    def infer(self) -> None:
        """Infer shapes with the batch bound, then compare with what the analysis predicts.

        A Reshape whose −1 hides a missed fix would show here.
        """
        for tensor in self.graph.inputs:
            tensor.shape = list(shape(tensor))
        self._infer_shapes(symbolic=True)
        for tensor in self.graph.inputs:
            tensor.shape = [int_to_dim(d) for d in tensor.shape]
        for name, tensor in tensors_of(self.graph).items():
            if is_const(tensor):
                continue
            if tensor.shape is None:
                raise InternalError(f"the shape of '{name}' is unknown after reduction")
            if list(tensor.shape) != list(self.predicted.get(name, tensor.shape)):
                raise InternalError(
                    f"'{name}' has shape {tensor.shape}, the analysis predicts "
                    f"{self.predicted[name]}"
                )


def apply(
    editor: Editor, node: gs.Node, edit: fx.Edit, stages: Sequence[TokenState], number: int
) -> None:
    """Apply one edit in place: the one place that says how each is applied.

    Args:
        stages: of the walk so far.
        number: of the stage of the node's inputs; an edit of a count names its own.
    """
    stage = stages[number]
    editor.b.scope(node.name.strip("/"))
    match edit:
        case fx.SetShape():
            set_shape(editor, node, edit, stage)
        case fx.SetSlice():
            set_slice(editor, node, edit, stage)
        case fx.SetSplit():
            set_split(editor, node, edit, stage)
        case fx.SetGather():
            set_gather(editor, node, edit, stage)
        case fx.Trim():
            trim(editor, node, edit, stage)
        case fx.Side():
            gather_side(editor, node, edit, stage)
        case fx.Restore():
            restore(editor, node, edit, stage)
        case fx.Regroup():
            regroup_views(editor, node, edit, stage)
        case fx.Reorder():
            reorder(editor, node, edit, stage)
        case fx.Rescale():
            rescale(editor, node, edit, stages[edit.stage])
        case fx.Recount():
            recount(editor, node, edit, stages[edit.stage])
        case fx.Pool():
            pool(editor, node, edit, stage)
        case fx.Bias():
            bias(editor, node, edit, stage)
        case _:
            assert_never(edit)


def redirect(old: gs.Tensor, new: gs.Tensor, readers: list[gs.Node], graph: gs.Graph) -> None:
    """Let the readers, and the graph output if it is one, take the reduced stream."""
    replace_uses(old, new, readers)
    for i, out in enumerate(graph.outputs):
        if out is old:
            graph.outputs[i] = new
            old.name, new.name = f"{old.name}/dense", old.name
