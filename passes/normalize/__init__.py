"""The normal form: one spelling per idea, whatever exporter wrote the file (DESIGN 5.13).

Local functions inlined; input dims bound; shapes inferred and folded to a fixed point; constant
sub-graphs evaluated; no-ops and all-true masks gone; explicit dims in every Reshape; fp32 inside.
Nothing is fused. Static, dynamic, TorchScript and transformers exports of one model become the same
graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx.inliner
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER
from onnx_graphsurgeon.util.exception import OnnxGraphSurgeonException

from tcompile.errors import ModelError
from tcompile.ir import unique_names
from tcompile.passes.normalize.batch import check_known, explicit_reshapes, free_batch
from tcompile.passes.normalize.bind import Shapes, bind_inputs
from tcompile.passes.normalize.fold import fold_constants, fold_shapes, inline_ifs
from tcompile.passes.normalize.infer import check, infer
from tcompile.passes.normalize.simplify import simplify
from tcompile.passes.normalize.uniform import (
    drop_batch_expansion,
    gather_nd_to_gather,
    tiles_to_expands,
)
from tcompile.passes.normalize.widen import widen

_ROUNDS = 64


@dataclass(frozen=True)
class Normalized:
    """A graph in normal form.

    Attributes:
        graph: shapes known on every tensor; a free batch is the dim `batch`.
        symbolic_batch: whether the batch is free.
        metadata: the model's metadata_props, which the IR does not carry.
        widened: whether the model computed in fp16, which the normal form does not.
    """

    graph: gs.Graph
    symbolic_batch: bool
    metadata: dict[str, str]
    widened: bool = False


def normalize(model: onnx.ModelProto, *, shapes: Shapes | None = None) -> Normalized:
    """Bring a model into normal form. The model given is used up.

    Args:
        shapes: input name → dims, to bind dynamic dims by hand.

    Raises:
        ModelError: a dim other than the batch stays dynamic, shapes contradict each other, or
            control flow is left.
    """
    metadata = {p.key: p.value for p in model.metadata_props}
    graph = _import(model)
    symbolic = bind_inputs(graph, shapes)
    check(graph)
    widened = widen(graph)
    if widened:
        graph.toposort()
    for _ in range(_ROUNDS):
        infer(graph)
        changed = fold_shapes(graph) + inline_ifs(graph) + fold_constants(graph)
        changed += simplify(graph) + tiles_to_expands(graph) + gather_nd_to_gather(graph)
        changed += drop_batch_expansion(graph) if symbolic else 0
        if not changed:
            break
    else:
        raise ModelError("did not reach a normal form")
    unique_names(graph)
    _refuse_branches(graph)
    check_known(graph)
    explicit_reshapes(graph)
    if symbolic:
        free_batch(graph)
    return Normalized(graph, symbolic, metadata, widened)


def _refuse_branches(graph: gs.Graph) -> None:
    """What is decided at run time is beyond an analysis of one graph.

    Raises:
        ModelError: naming the first If, Loop or other node with a graph inside.
    """
    for node in graph.nodes:
        if any(isinstance(a, gs.Graph) for a in node.attrs.values()):
            raise ModelError(
                f"{node.op} '{node.name}' decides at run time what is computed, which tcompile "
                "cannot follow",
                hint="export with fixed shapes and without control flow",
            )


def _import(model: onnx.ModelProto) -> gs.Graph:
    """The model in the IR: functions inlined, dead nodes gone, in execution order."""
    try:
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
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
