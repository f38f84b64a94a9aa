"""The normal form: one spelling per idea, whatever exporter wrote the file.

Local functions inlined; input dims bound; shapes inferred and folded to a fixed point; constant
sub-graphs evaluated; no-ops and all-true masks gone; explicit dims in every Reshape; fp32 inside,
also where the file quantises while it runs.
Nothing is fused. Static, dynamic, TorchScript and transformers exports of one model become the same
graph. The passes are listed below, in their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx
import onnx.inliner
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER
from onnx_graphsurgeon.util.exception import OnnxGraphSurgeonException

from tcompile.analysis.facts import Origin
from tcompile.core.domain import DOMAIN, WRITTEN
from tcompile.core.errors import ModelError, UsageError
from tcompile.core.graph import unique_names
from tcompile.core.node_order import drop_dead, toposort
from tcompile.core.well_formed import without_weights
from tcompile.passes.normalize.batch import check_known, explicit_reshapes, free_batch
from tcompile.passes.normalize.batch_values import HINT, DimVectors, Values, settle_batch_values
from tcompile.passes.normalize.bind_shapes import FreeDimError, Shapes, bind_inputs
from tcompile.passes.normalize.broadcast_constants import (
    drop_batch_expansion,
    gather_nd_to_gather,
    tiles_to_expands,
)
from tcompile.passes.normalize.convert_opset import to_known_opset
from tcompile.passes.normalize.dequantize import dequantize
from tcompile.passes.normalize.fold import fold_constants, fold_shapes, inline_ifs
from tcompile.passes.normalize.group_norm import spell_group_norm
from tcompile.passes.normalize.infer import (
    ContradictionError,
    InvalidGraphError,
    check,
    check_shapes,
    check_sizes,
    file_fault,
    infer,
)
from tcompile.passes.normalize.origins import Origins
from tcompile.passes.normalize.products import spell_products
from tcompile.passes.normalize.shape_hint import shape_options
from tcompile.passes.normalize.simplify import simplify
from tcompile.passes.normalize.slice_assign import spell_slice_assignments
from tcompile.passes.normalize.softmax import spell_softmax
from tcompile.passes.normalize.turned_attention import turn_attention
from tcompile.passes.normalize.upcast_fp16 import widen
from tcompile.passes.normalize.views import cancel_views
from tcompile.passes.runner import Dump, Pass, run

#: Rounds that a normal form may take at most.
_ROUNDS = 64


@dataclass
class Normalizing:
    """The graph that the passes work on, and what they share.

    Attributes:
        free: whether a batch is free.
        vectors: dims that are computed at run time.
        origins: what stored numbers were computed from.
        values: of what depends on the batch alone, as last inferred.
        loose: the names among these that no vector of dims has.
        doubts: contradictions between shapes, as last inferred.
        widened: whether the model computed in fp16.
        quantized: products of tensors that were quantised while the model ran.
    """

    graph: gs.Graph
    free: bool
    vectors: DimVectors
    origins: Origins = field(default_factory=Origins)
    values: Values = field(default_factory=dict)
    loose: set[str] = field(default_factory=set)
    doubts: list[ContradictionError] = field(default_factory=list)
    widened: bool = False
    quantized: int = 0


@dataclass(frozen=True)
class Normalized:
    """A graph in normal form.

    Attributes:
        graph: shapes known on every tensor. A free batch is the dim `batch`; where inputs have free
            batches of their own, each keeps its name.
        metadata: the model's metadata_props, which the IR does not carry.
        widened: whether the model computed in fp16, which the normal form does not.
        sized: stored number → the (tensor, axis, size) that it was computed from.
        quantized: products of tensors that were quantised while the model ran, which are products
            of floats in the normal form.
        notes: what a reader should know of how the file was read.
    """

    graph: gs.Graph
    metadata: dict[str, str]
    widened: bool = False
    sized: Mapping[str, Origin] = field(default_factory=dict)
    quantized: int = 0
    notes: tuple[str, ...] = ()


def normalize(
    model: onnx.ModelProto, *, shapes: Shapes | None = None, dump: Dump | None = None
) -> Normalized:
    """Bring a model into normal form. The model given is used up.

    Args:
        shapes: input name → dims, to bind dynamic dims by hand.
        dump: takes the graph after each pass.

    Raises:
        ModelError: a dim other than the batch stays dynamic, shapes contradict each other, or
            control flow is left.
    """
    try:
        return _normalized(model, shapes, dump)
    except ModelError as error:
        told = _remedy(error, model, shapes)
        if told is None:
            raise
        raise told from error


def _normalized(
    model: onnx.ModelProto, shapes: Shapes | None, dump: Dump | None = None
) -> Normalized:
    metadata = {p.key: p.value for p in model.metadata_props}
    model, note = to_known_opset(model)
    joined: dict[str, str] = {}
    while True:
        if dump is not None:
            dump.restart()
        graph = import_graph(model)
        names = bind_inputs(graph, shapes, joined)
        try:
            state = _to_normal_form(graph, free=bool(names), dump=dump)
        except ContradictionError as error:
            if len(names) < 2:
                raise
            joined = _join(joined, names, error.names)
        else:
            sized = state.origins.summary()
            notes = tuple(filter(None, (note, _quantized_note(state.quantized))))
            return Normalized(state.graph, metadata, state.widened, sized, state.quantized, notes)


def _quantized_note(products: int) -> str:
    """What a person should know of a file that quantises while it runs; empty of others."""
    if not products:
        return ""
    return (
        f"the file quantises the operands of {products} products while it runs, by the range of "
        "all tokens together: they are read as products of floats, with the stored weights as what "
        "they stand for"
    )


def _remedy(error: ModelError, model: onnx.ModelProto, shapes: Shapes | None) -> ModelError | None:
    """Return the error with what helps, which was tried; None where it says that itself."""

    def fits(tried: Shapes) -> bool:
        try:
            _normalized(model, {**(shapes or {}), **tried})
        except (ModelError, UsageError):
            return False
        return True

    apart = isinstance(error, ContradictionError)
    invalid = isinstance(error, InvalidGraphError)
    fault = file_fault(model) if apart or invalid else None
    if invalid and fault is None:
        what = f"cannot be imported: {error.what.removeprefix('not a valid ONNX graph: ')}"
        return ModelError(what, hint="ONNX's checker accepts the file, so please report this")
    if invalid:
        return None
    if fault is not None:
        return ModelError(f"not a valid ONNX graph: {fault}", hint="the export is broken")
    if isinstance(error, FreeDimError):
        hint = shape_options(model, fits)
        return ModelError(error.what, hint=f"say {hint}") if hint else None
    if not apart and error.hint != HINT:
        return None
    if apart and shapes:
        hint = shape_options(model, lambda tried: fits(tried) and tried != shapes)
        hint = f"say {hint}" if hint else "the sizes of --shape do not fit it"
    else:
        hint = shape_options(model, fits, batch=1)
        hint = f"it can be read with {hint}" if hint else error.hint
    if apart and not hint:
        hint = "ONNX's checker accepts the file, so please report this"
    return ModelError(error.what, where=error.where, hint=hint)


def _join(
    joined: Mapping[str, str], names: Sequence[str], meeting: Sequence[str]
) -> dict[str, str]:
    """Take free dims that meet for one: the first of them, in the order of the inputs.

    Args:
        names: of the free dims as they are joined already.
        meeting: those that contradict each other; where that is not known, all of them.
    """
    same = [n for n in names if n in meeting]
    same = same if len(same) > 1 else list(names)
    known = {n: n for n in names} | dict(joined)
    return {n: same[0] if one in same else one for n, one in known.items()}


def _to_normal_form(graph: gs.Graph, *, free: bool, dump: Dump | None) -> Normalizing:
    """The graph in normal form, and what was learned on the way.

    Raises:
        ContradictionError: shapes contradict each other, perhaps since free dims are one.
        ModelError: a shape stays unknown, or control flow is left.
    """
    state = Normalizing(graph, free, DimVectors(graph))
    run(state, BEFORE, "normalize", dump)
    for _ in range(_ROUNDS):
        if not run(state, ROUND, "normalize", dump):
            break
    else:
        raise ModelError("did not reach a normal form")
    run(state, AFTER, "normalize", dump)
    return state


def _dequantize(state: Normalizing) -> None:
    state.quantized = dequantize(state.graph)


def _upcast(state: Normalizing) -> None:
    state.widened = widen(state.graph)
    if state.widened:
        toposort(state.graph)


def infer_shapes(state: Normalizing) -> None:
    state.doubts.clear()
    state.values = infer(state.graph, doubts=state.doubts)
    state.loose = {name for name in state.values if name not in state.vectors.names}


def _refuse_branches(graph: gs.Graph, values: Values, doubts: Sequence[ContradictionError]) -> None:
    """Refuse what is decided at run time, which an analysis of one graph cannot follow.

    Args:
        values: of what depends on the batch alone.
        doubts: contradictions that lie in no branch, where there is none.

    Raises:
        ModelError: naming the first If, Loop or other node with a graph inside.
        ContradictionError: the first one.
    """
    for node in graph.nodes:
        if any(isinstance(a, gs.Graph) for a in node.attrs.values()):
            if node.op == "If" and node.inputs[0].name in values:
                raise ModelError(
                    f"which branch {node.op} '{node.name}' takes depends on the size of the batch",
                    hint=HINT,
                )
            raise ModelError(
                f"{node.op} '{node.name}' decides at run time what is computed, which tcompile "
                "cannot follow",
                hint="export with fixed shapes and without control flow",
            )
    if doubts:
        raise doubts[0]


def check_not_reduced(model: onnx.ModelProto) -> None:
    """Refuse what tcompile itself has reduced: its own nodes could not be told from new ones.

    Raises:
        ModelError: naming the first of its nodes.
    """
    for node in model.graph.node:
        named = isinstance(node.name, str) and node.name.startswith(WRITTEN)  # it may be no text
        if node.domain == DOMAIN or named:
            raise ModelError(
                f"tcompile has reduced this model already ({node.op_type} '{node.name}')",
                hint="build from the model that it was made from",
            )


def _drop_stale_inputs(model: onnx.ModelProto) -> None:
    """Remove what the file says of its inputs a second time, which may be another shape."""
    names = {t.name for t in model.graph.input}
    kept = [v for v in model.graph.value_info if v.name not in names]
    if len(kept) < len(model.graph.value_info):
        del model.graph.value_info[:]
        model.graph.value_info.extend(kept)


def _inline_functions(model: onnx.ModelProto) -> None:
    """Replace calls of local functions, in place, without the weights: the inliner would hold them
    four times."""
    flat = onnx.inliner.inline_local_functions(without_weights(model))
    for kept, made in (
        (model.graph.node, flat.graph.node),
        (model.graph.value_info, flat.graph.value_info),
        (model.opset_import, flat.opset_import),
        (model.functions, flat.functions),
    ):
        del kept[:]
        kept.extend(made)


def import_graph(model: onnx.ModelProto) -> gs.Graph:
    """The model in the IR: functions inlined, dead nodes gone, in execution order."""
    try:
        if model.functions:
            _inline_functions(model)
        _drop_stale_inputs(model)
        with G_LOGGER.suppress(G_LOGGER.CRITICAL + 1):  # it prints what the error says
            graph = gs.import_onnx(model)
        for node in graph.nodes:
            node.domain = None if node.domain in ("", "ai.onnx") else node.domain
        unique_names(graph)
        # Local functions, such as the token ops, came with version 8 of the format.
        graph.ir_version = max(graph.ir_version or 0, 8)
        with G_LOGGER.suppress(G_LOGGER.CRITICAL + 1):
            return toposort(drop_dead(graph))
    except (OnnxGraphSurgeonException, onnx.checker.ValidationError, UnicodeDecodeError) as error:
        raise ModelError(
            f"not a valid ONNX graph: {' '.join(str(error).split())}", hint="export it again"
        ) from error


BEFORE: tuple[Pass[Normalizing], ...] = (
    Pass("spell-group-norm", lambda s: spell_group_norm(s.graph)),
    Pass("check", lambda s: check(s.graph)),
    Pass("dequantize", _dequantize),
    Pass("upcast-fp16", _upcast),
)
#: Run again and again, until a round changes nothing.
ROUND: tuple[Pass[Normalizing], ...] = (
    Pass("infer-shapes", infer_shapes),
    Pass("fold-shapes", lambda s: fold_shapes(s.graph, s.vectors, s.origins)),
    Pass("inline-ifs", lambda s: inline_ifs(s.graph)),
    Pass("batch-values", lambda s: settle_batch_values(s.graph, s.vectors, s.origins)),
    Pass("fold-constants", lambda s: fold_constants(s.graph, s.origins)),
    Pass("simplify", lambda s: simplify(s.graph, s.loose, s.origins.of)),
    Pass("cancel-views", lambda s: cancel_views(s.graph, s.loose)),
    Pass("spell-products", lambda s: spell_products(s.graph)),
    Pass("spell-softmax", lambda s: spell_softmax(s.graph, s.loose)),
    Pass("turn-attention", lambda s: turn_attention(s.graph)),
    Pass("tiles-to-expands", lambda s: tiles_to_expands(s.graph, s.values, s.vectors)),
    Pass("gather-nd-to-gather", lambda s: gather_nd_to_gather(s.graph)),
    Pass("spell-slice-assignments", lambda s: spell_slice_assignments(s.graph)),
    Pass(
        "batch-expansion",
        lambda s: drop_batch_expansion(s.graph, s.values, s.vectors),
        when=lambda s: s.free,
    ),
)
AFTER: tuple[Pass[Normalizing], ...] = (
    Pass("unique-names", lambda s: unique_names(s.graph)),
    Pass("refuse-branches", lambda s: _refuse_branches(s.graph, s.values, s.doubts)),
    Pass("check-known", lambda s: check_known(s.graph)),
    Pass("check-sizes", lambda s: check_sizes(s.graph)),
    Pass("check-shapes", lambda s: check_shapes(s.graph), when=lambda s: s.free),
    Pass("explicit-reshapes", lambda s: explicit_reshapes(s.graph)),
    Pass("free-batch", lambda s: free_batch(s.graph, s.vectors), when=lambda s: s.free),
)
