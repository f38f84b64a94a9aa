"""The normal form: one spelling per idea, whatever exporter wrote the file (DESIGN 5.13).

Local functions inlined; input dims bound; shapes inferred and folded to a fixed point; constant
sub-graphs evaluated; no-ops and all-true masks gone; explicit dims in every Reshape; fp32 inside.
Nothing is fused. Static, dynamic, TorchScript and transformers exports of one model become the same
graph.
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
from tcompile.core.errors import ModelError
from tcompile.core.graph import unique_names
from tcompile.passes.normalize.batch import check_known, explicit_reshapes, free_batch
from tcompile.passes.normalize.batch_values import HINT, DimVectors, Values, settle_batch_values
from tcompile.passes.normalize.bind_shapes import Shapes, bind_inputs
from tcompile.passes.normalize.broadcast_constants import (
    drop_batch_expansion,
    gather_nd_to_gather,
    tiles_to_expands,
)
from tcompile.passes.normalize.fold import fold_constants, fold_shapes, inline_ifs
from tcompile.passes.normalize.infer import ContradictionError, check, check_shapes, infer
from tcompile.passes.normalize.origins import Origins
from tcompile.passes.normalize.simplify import simplify
from tcompile.passes.normalize.upcast_fp16 import widen

_ROUNDS = 64


@dataclass(frozen=True)
class Normalized:
    """A graph in normal form.

    Attributes:
        graph: shapes known on every tensor. A free batch is the dim `batch`; where inputs have free
            batches of their own, each keeps its name.
        symbolic_batch: whether a batch is free.
        metadata: the model's metadata_props, which the IR does not carry.
        widened: whether the model computed in fp16, which the normal form does not.
        sized: stored number → the (tensor, axis, size) that it was computed from.
    """

    graph: gs.Graph
    symbolic_batch: bool
    metadata: dict[str, str]
    widened: bool = False
    sized: Mapping[str, Origin] = field(default_factory=dict)


def normalize(model: onnx.ModelProto, *, shapes: Shapes | None = None) -> Normalized:
    """Bring a model into normal form. The model given is used up.

    Args:
        shapes: input name → dims, to bind dynamic dims by hand.

    Raises:
        ModelError: a dim other than the batch stays dynamic, shapes contradict each other, or
            control flow is left.
    """
    metadata = {p.key: p.value for p in model.metadata_props}
    joined: dict[str, str] = {}
    while True:
        graph = _import(model)
        names = bind_inputs(graph, shapes, joined)
        try:
            widened, origins = _to_normal_form(graph, free=bool(names))
        except ContradictionError as error:
            if len(names) < 2:
                raise
            joined = _join(joined, names, error.names)
        else:
            return Normalized(graph, bool(names), metadata, widened, origins.summary())


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


def _to_normal_form(graph: gs.Graph, *, free: bool) -> tuple[bool, Origins]:
    """Whether the model computed in fp16, and which stored numbers came from which sizes.

    Raises:
        ContradictionError: shapes contradict each other, perhaps since free dims are one.
        ModelError: a shape stays unknown, or control flow is left.
    """
    check(graph)
    widened = widen(graph)
    if widened:
        graph.toposort()
    vectors, origins = DimVectors(graph), Origins()
    for _ in range(_ROUNDS):
        values = infer(graph)
        loose = {n for n in values if n not in vectors.names}
        changed = fold_shapes(graph, vectors, origins) + inline_ifs(graph)
        changed += settle_batch_values(graph, vectors, origins)
        changed += fold_constants(graph, origins)
        changed += simplify(graph, loose, origins.of) + tiles_to_expands(graph, values, vectors)
        changed += gather_nd_to_gather(graph)
        changed += drop_batch_expansion(graph, values, vectors) if free else 0
        if not changed:
            break
    else:
        raise ModelError("did not reach a normal form")
    unique_names(graph)
    _refuse_branches(graph, values)
    check_known(graph)
    if free:
        check_shapes(graph)
    explicit_reshapes(graph)
    if free:
        free_batch(graph, vectors)
    return widened, origins


def _refuse_branches(graph: gs.Graph, values: Values) -> None:
    """What is decided at run time is beyond an analysis of one graph.

    Args:
        values: of what depends on the batch alone.

    Raises:
        ModelError: naming the first If, Loop or other node with a graph inside.
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


def _drop_stale_inputs(model: onnx.ModelProto) -> None:
    """What the file says of its inputs a second time, which may be another shape."""
    names = {t.name for t in model.graph.input}
    kept = [v for v in model.graph.value_info if v.name not in names]
    if len(kept) < len(model.graph.value_info):
        del model.graph.value_info[:]
        model.graph.value_info.extend(kept)


def _import(model: onnx.ModelProto) -> gs.Graph:
    """The model in the IR: functions inlined, dead nodes gone, in execution order."""
    try:
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        _drop_stale_inputs(model)
        graph = gs.import_onnx(model)
        for node in graph.nodes:
            node.domain = None if node.domain in ("", "ai.onnx") else node.domain
        unique_names(graph)
        # Local functions, such as the token ops, came with version 8 of the format.
        graph.ir_version = max(graph.ir_version or 0, 8)
        with G_LOGGER.suppress(G_LOGGER.CRITICAL + 1):  # it prints what the error says
            return graph.cleanup(remove_unused_graph_inputs=False).toposort()
    except (OnnxGraphSurgeonException, onnx.checker.ValidationError, UnicodeDecodeError) as error:
        raise ModelError(
            f"not a valid ONNX graph: {' '.join(str(error).split())}", hint="export it again"
        ) from error
