"""Small helpers on the one graph IR, onnx-graphsurgeon.

Tensors compare by name there and are not hashable, so maps are keyed by tensor name; a normalised
graph has unique names. Symbolic dims are strings: `batch`, or `batch*K` where batch is merged with
another axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

#: Stands for the free batch dim while shapes are computed: a prime no real dim is a multiple of.
BATCH_SENTINEL = 7919
BATCH = "batch"


def is_const(tensor: gs.Tensor) -> bool:
    """Whether the tensor's value is stored in the graph."""
    return isinstance(tensor, gs.Constant)


def value(tensor: gs.Tensor) -> np.ndarray[Any, Any]:
    """The stored value of a constant. Loads it: avoid on large weights."""
    return np.asarray(tensor.values)


def ints(tensor: gs.Tensor) -> list[int]:
    """A constant integer vector as a list."""
    return [int(v) for v in value(tensor).reshape(-1)]


def producer(tensor: gs.Tensor) -> gs.Node | None:
    """The node that writes the tensor, or None for graph inputs and constants."""
    return tensor.inputs[0] if tensor.inputs else None


def dim_to_int(dim: int | str) -> int:
    """`batch` → BATCH_SENTINEL, `batch*3` → 3·BATCH_SENTINEL, an int → itself."""
    if isinstance(dim, str):
        _, _, factor = dim.partition("*")
        return BATCH_SENTINEL * int(factor or 1)
    return int(dim)


def int_to_dim(size: int) -> int | str:
    """The inverse of `dim_to_int`."""
    if size and size % BATCH_SENTINEL == 0:
        factor = size // BATCH_SENTINEL
        return BATCH if factor == 1 else f"{BATCH}*{factor}"
    return size


def shape(tensor: gs.Tensor) -> tuple[int, ...]:
    """Dims as ints, a symbolic batch as the sentinel. The shape must be known."""
    return tuple(dim_to_int(d) for d in tensor.shape)


def batch_dim(graph: gs.Graph) -> int | str:
    """The first dim of the images: free if that of any input is, 1 where no input has a batch.

    Inputs of rank 0 to 2 with literal dims (a temperature, a list of flags) say nothing of it.
    """
    firsts = [t.shape[0] for t in graph.inputs if t.shape]
    free = [d for d in firsts if dim_to_int(d) == BATCH_SENTINEL]
    of_images = [t.shape[0] for t in graph.inputs if len(t.shape) >= 3]
    return next(iter(free + of_images), 1)


def attr(node: gs.Node, name: str, default: Any = None) -> Any:
    """An attribute of the node."""
    return node.attrs.get(name, default)


def axes_argument(node: gs.Node, opset_input: int = 1) -> list[int] | None:
    """`axes` of Squeeze/Unsqueeze/Reduce*: an attribute in older opsets, an input in newer ones."""
    if "axes" in node.attrs:
        return [int(a) for a in node.attrs["axes"]]
    if len(node.inputs) > opset_input and not node.inputs[opset_input].is_empty():
        return ints(node.inputs[opset_input])
    return None


def replace_uses(old: gs.Tensor, new: gs.Tensor, nodes: Sequence[gs.Node] | None = None) -> None:
    """Let every consumer of `old` (or only `nodes`) read `new` instead. Graph outputs stay."""
    for node in list(old.outputs) if nodes is None else nodes:
        for i, tensor in enumerate(node.inputs):
            if tensor is old:
                node.inputs[i] = new


def bypass(graph: gs.Graph, node: gs.Node, source: gs.Tensor) -> bool:
    """Remove a node whose first output equals `source`. False where that cannot be done."""
    out = node.outputs[0]
    if any(out is o for o in graph.outputs):
        if not source.inputs or any(source is o for o in graph.outputs):
            return False  # an output that is an input, a constant or another output needs the node
        maker = source.inputs[0]
        position = next(i for i, t in enumerate(maker.outputs) if t is source)
        node.outputs.clear()
        maker.outputs[position] = out
        replace_uses(source, out)
    else:
        replace_uses(out, source)
        node.outputs.clear()
    return True


def constant_nodes_to_constants(graph: gs.Graph) -> None:
    """Turn `Constant` nodes into stored constants (graphsurgeon does so on import; kept for If)."""
    for node in [n for n in graph.nodes if n.op == "Constant" and "value" in n.attrs]:
        out = node.outputs[0]
        node.outputs.clear()
        out.to_constant(np.asarray(node.attrs["value"].values))
    graph.nodes[:] = [n for n in graph.nodes if n.outputs]


def unique_names(graph: gs.Graph) -> None:
    """Give every node a unique name, keeping those that are."""
    seen: set[str] = set()
    for i, node in enumerate(graph.nodes):
        if not node.name or node.name in seen:
            node.name = f"{node.op}_{i}"
            while node.name in seen:
                node.name += "_"
        seen.add(node.name)


def nbytes(constant: gs.Constant) -> int:
    """Bytes of a constant, without loading it."""
    size = int(np.prod(constant.shape, dtype=np.int64)) if len(constant.shape) else 1
    return size * np.dtype(constant.dtype).itemsize if not isinstance(constant.dtype, int) else size


def large(constant: gs.Constant, limit: int = 4096) -> bool:
    """Whether a constant is too large to take part in shape inference."""
    return nbytes(constant) > limit


def skeleton(graph: gs.Graph) -> onnx.ModelProto:
    """The graph without its large weights (they become inputs): cheap to run shape inference on."""
    tensors = graph.tensors()
    constants = [t for t in tensors.values() if is_const(t)]
    small = [OnnxExporter.export_tensor_proto(t) for t in constants if not large(t)]
    weights = [OnnxExporter.export_value_info_proto(t, True) for t in constants if large(t)]
    inputs = [
        onnx.helper.make_tensor_value_info(
            t.name, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(t.dtype)), list(shape(t))
        )
        for t in graph.inputs
    ]
    proto = onnx.helper.make_graph(
        [OnnxExporter.export_node(n) for n in graph.nodes],
        graph.name or "graph",
        inputs + weights,
        [onnx.helper.make_empty_tensor_value_info(t.name) for t in graph.outputs],
        initializer=small,
    )
    functions = [OnnxExporter.export_function(f) for f in graph.functions]
    return onnx.helper.make_model(
        proto,
        opset_imports=opset_imports(graph),
        functions=functions,
        ir_version=graph.ir_version or 10,
    )


def opset_imports(graph: gs.Graph) -> list[onnx.OperatorSetIdProto]:
    """The opsets the graph needs: its own, and version 1 of each other domain in use."""
    domains = {n.domain for n in graph.nodes if n.domain and n.domain != "ai.onnx"}
    known = {o.domain: o.version for o in graph.import_domains or []}
    rest = [onnx.helper.make_opsetid(d, known.get(d, 1)) for d in sorted(domains)]
    return [onnx.helper.make_opsetid("", graph.opset), *rest]


def to_onnx(graph: gs.Graph, metadata: dict[str, str] | None = None) -> onnx.ModelProto:
    """Export, with the model's metadata_props, which graphsurgeon would drop."""
    graph.import_domains = opset_imports(graph)
    model: onnx.ModelProto = gs.export_onnx(graph)
    model.producer_name = "tcompile"
    for key, text in (metadata or {}).items():
        model.metadata_props.add(key=key, value=text)
    return model


def consumers(tensor: gs.Tensor) -> Iterator[tuple[gs.Node, int]]:
    """Each (node, input position) that reads the tensor."""
    seen: set[int] = set()
    for node in tensor.outputs:
        if id(node) in seen:
            continue
        seen.add(id(node))
        for i, t in enumerate(node.inputs):
            if t is tensor:
                yield node, i
