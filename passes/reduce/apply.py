"""The reduce pass: one walk in execution order over a copy of the graph."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from tcompile.analysis.effect_walk import effects
from tcompile.analysis.effects import Effects
from tcompile.analysis.model import Analysis, Site, stream_layout
from tcompile.errors import InternalError, ModelError, UsageError
from tcompile.ir import BATCH_SENTINEL, batch_dim, int_to_dim, is_const, shape
from tcompile.passes.lower.attention import decompose_attention
from tcompile.passes.normalize.infer import infer
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.core import Core
from tcompile.passes.reduce.edits import Editor, redirect
from tcompile.passes.reduce.outputs import carried, token_outputs
from tcompile.passes.reduce.reducers import ReducerInput, check_parameters, find_reducer
from tcompile.passes.reduce.scores import ScoreInput, find_score
from tcompile.passes.reduce.stage import Stage
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
    sites = check_schedule(analysis, schedule)
    graph = dense.copy()
    if not schedule.reductions:
        return ReducedGraph(graph, frozenset(), {})
    cuts = [s.tensor for s in sites]
    found = effects(graph, analysis.facts, analysis.space, analysis.attentions, cuts)
    _raise_on_barrier(found, schedule)
    rewriter = _Rewriter(graph, analysis, found)
    rewriter.run(list(zip(sites, schedule.reductions, strict=True)), outputs)
    edits = {n: [type(e).__name__ for e in es] for n, es in found.edits.items()}
    return ReducedGraph(graph, frozenset(rewriter.b.fp32), edits)


def check_schedule(analysis: Analysis, schedule: Schedule) -> list[Site]:
    """The sites of a schedule, in order.

    Raises:
        UsageError: for another model, unknown or illegal site, counts that do not shrink.
    """
    if schedule.model != analysis.shape:
        raise UsageError(
            f"made for {schedule.model}, the model has {analysis.shape}", where="schedule"
        )
    order = {s.name: i for i, s in enumerate(analysis.sites)}
    count, last = analysis.shape.patches, -1
    sites: list[Site] = []
    for step in schedule.reductions:
        find_reducer(step.reducer.name)
        check_parameters(step.reducer)
        if step.score is not None:
            find_score(step.score.name)
            check_parameters(step.score)
        site = analysis.site(step.site)
        if site is None:
            raise UsageError(f"no site '{step.site}'", where="schedule",
                             hint="`tcompile inspect` lists them")  # fmt: skip
        reason = site.merge_reason if step.reducer.name == "merge" else site.reason
        if reason:
            raise UsageError(
                f"site '{site.name}' is illegal: {reason}", where="schedule",
                hint=_nearest_legal(analysis, site, step.reducer.name == "merge"),
            )  # fmt: skip
        if not 1 <= step.keep < count:
            raise UsageError(
                f"site '{site.name}' keeps {step.keep} of {count} tokens; it must keep fewer, and "
                "at least one",
                where="schedule",
            )
        _check_count(step, count)
        if order[site.name] <= last:
            raise UsageError(f"site '{site.name}' is out of order", where="schedule")
        # Scores read Q and K, merging reads K: they must still have the tokens of the stream.
        if sites and sites[-1].block == site.block:
            raise UsageError(
                f"site '{site.name}' reads an attention whose tokens were already reduced at "
                f"'{sites[-1].name}'",
                where="schedule",
                hint="reduce once in a block",
            )
        count, last = step.keep, order[site.name]
        sites.append(site)
    return sites


def _check_count(step: Reduction, count: int) -> None:
    """What the reducer can do with the count it is given, before anything is written."""
    where = f"schedule, site '{step.site}'"
    if step.reducer.name != "merge" and step.score is None:
        raise UsageError(f"reducer '{step.reducer.name}' needs a score", where=where)
    if step.reducer.name == "fuse" and step.keep < 2:
        raise UsageError(
            "a fused token needs at least one token kept beside it", where=where, hint="keep more"
        )
    most = count // 2
    if step.reducer.name == "merge" and count - step.keep > most:
        raise UsageError(
            f"at most {most} of {count} tokens can merge in one step, not {count - step.keep}",
            where=where,
            hint=f"keep at least {count - most} there",
        )


def _nearest_legal(analysis: Analysis, site: Site, merge: bool) -> str:
    names = [s.name for s in analysis.sites]
    here = names.index(site.name)
    legal = [i for i, s in enumerate(analysis.sites) if not (s.merge_reason if merge else s.reason)]
    if not legal:
        return "this model has no legal site"
    return f"the nearest legal site is '{names[min(legal, key=lambda i: abs(i - here))]}'"


def _raise_on_barrier(found: Effects, schedule: Schedule) -> None:
    merges = any(r.reducer.name == "merge" for r in schedule.reductions)
    barriers = found.barriers + (found.merge_barriers if merges else [])
    if barriers:
        raise UsageError(f"tokens cannot leave as scheduled: {barriers[0]}", where="schedule")


class _Rewriter:
    """State of the walk."""

    def __init__(self, graph: gs.Graph, analysis: Analysis, found: Effects) -> None:
        self.graph, self.analysis, self.found = graph, analysis, found
        self.b = Builder(graph)
        self.nodes = {n.name: n for n in graph.nodes}
        self.readers = {t.name: list(t.outputs) for t in graph.tensors().values()}
        first = batch_dim(graph)
        self.batch = first if isinstance(first, int) else None
        self.stages = [Stage(analysis.space.patches)]
        inputs = {n.name: n.inputs[0].name for n in graph.nodes if n.inputs}
        self.editor = Editor(self.b, analysis.space, self.batch, analysis.facts, inputs)

    def run(self, steps: list[tuple[Site, Reduction]], outputs: str) -> None:
        pending = {site.tensor: (site, step) for site, step in steps}
        dense_outputs = [o.name for o in self.graph.outputs]
        for node in list(self.graph.nodes):
            stage = self.stages[self.found.node_stage.get(node.name, 0)]
            for edit in self.found.edits.get(node.name, []):
                self.editor.apply(node, edit, stage)
            for out in list(node.outputs):
                if out.name in self.found.dims:
                    out.shape = self._shape(out.name, stage)
                if out.name in pending:
                    self._reduce_at(out, *pending.pop(out.name))
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
        batch = self.batch or BATCH_SENTINEL
        dims = self.found.dims[name]
        return [int_to_dim(d.size(self.analysis.space, stage.count, batch)) for d in dims]

    def _reduce_at(self, stream: gs.Tensor, site: Site, step: Reduction) -> None:
        b, space, stage = self.b, self.analysis.space, self.stages[-1]
        name = str(stream.name)
        layout = stream_layout(self.analysis.facts, stream, space)
        if layout is None:
            raise InternalError("a legal site has no stream layout", where=site.name)
        readers = self.readers[name]
        b.scope(f"{site.name.replace(':', '_')}/score")
        attention = self.analysis.blocks[site.block].attention
        core = Core(b, attention, self.nodes, self.batch)
        score = None
        if step.score is not None:
            score = find_score(step.score.name)(ScoreInput(b, core, space.prefix, stage.count))
        b.scope(f"{site.name.replace(':', '_')}/{step.reducer.name}")
        x = b.transpose(stream, layout, fp32=False)
        given = ReducerInput(
            b, x, score, core, stage, space.prefix, space.suffix, space.patches, step.keep,
            step.reducer.parameters,
        )  # fmt: skip
        reduced, after = find_reducer(step.reducer.name)(given)
        new = b.transpose(reduced, [layout.index(i) for i in range(3)], fp32=False)
        self.stages.append(after)
        new.shape = self._shape(name, after)
        redirect(stream, new, readers, self.graph)

    def _outputs(self, dense: list[str], mode: str) -> None:
        wanted = {}
        for name in dense:
            stage = self.found.stage.get(name, 0)
            place = carried(self.found.dims[name], self.analysis.space) if stage else None
            if place is not None:
                axis, run = place
                batch_axis = self.editor.batch_axis(name)
                wanted[name] = (axis, run, self.stages[stage], batch_axis)
        token_outputs(self.b, self.analysis.space, wanted, mode)

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
