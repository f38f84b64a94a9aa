"""Small helpers on the one graph IR, onnx-graphsurgeon.

Tensors compare by name there and are not hashable, so maps are keyed by tensor name; a normalised
graph has unique names. Symbolic dims are strings: `batch`, or `batch*K` where batch is merged with
another axis. Inputs with batches of their own (images and texts) have a name each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

#: Stands for the free batch while shapes are computed: a prime no real dim is a multiple of.
BATCH_SENTINEL = 7919
BATCH = "batch"
#: The prime that stands for each free dim, by name. Only models whose inputs have batches of their
#: own have others than `batch`. This is state of the process: many places tell from an int
#: alone if it is free, without a graph at hand. A name keeps its prime, so that dims of one graph
#: mean the same in another, whatever was read in between.
_FREE: dict[str, int] = {BATCH: BATCH_SENTINEL}


def is_const(tensor: gs.Tensor) -> bool:
    """Return whether the tensor's value is stored in the graph."""
    return isinstance(tensor, gs.Constant)


def value(tensor: gs.Tensor) -> np.ndarray[Any, Any]:
    """The stored value of a constant. Loads it: avoid on large weights."""
    return np.asarray(tensor.values)


def ints(tensor: gs.Tensor) -> list[int]:
    """A constant integer vector as a list."""
    return [int(v) for v in value(tensor).reshape(-1)]


def is_standard(node: gs.Node) -> bool:
    """Return whether the node's op is one of ONNX itself, not of another domain."""
    return node.domain in (None, "", "ai.onnx")


def tensors_of(graph: gs.Graph) -> dict[str, gs.Tensor]:
    """All tensors of a graph by name, in the order in which its nodes name them.

    `Graph.tensors` gives the same in three times as long: it looks for names that two tensors have.
    """
    found: dict[str, gs.Tensor] = {tensor.name: tensor for tensor in graph.inputs}
    for node in graph.nodes:
        for tensor in node.inputs:
            found[tensor.name] = tensor
        for tensor in node.outputs:
            found[tensor.name] = tensor
    for tensor in graph.outputs:
        found[tensor.name] = tensor
    found.pop("", None)  # those that are omitted
    return found


def producer(tensor: gs.Tensor) -> gs.Node | None:
    """The node that writes the tensor, or None for graph inputs and constants."""
    return tensor.inputs[0] if tensor.inputs else None


def free_size(name: str) -> int:
    """The prime that stands for a free dim of this name; new names get one of their own."""
    if name not in _FREE:
        size = max(_FREE.values()) + 2
        while any(size % d == 0 for d in range(3, math.isqrt(size) + 1, 2)):
            size += 2
        _FREE[name] = size
    return _FREE[name]


def free_factors(dim: int | str) -> tuple[tuple[str, ...], int]:
    """The free dims that a dim is a product of, and the rest: `batch*3` → (batch), 3."""
    size = dim_to_int(dim)
    if 0 <= size < BATCH_SENTINEL:  # the least of the primes, and most dims are less
        return (), size
    names: list[str] = []
    for name, prime in _FREE.items():
        while size and size % prime == 0:
            names.append(name)
            size //= prime
    return tuple(names), size


def is_free(dim: int | str) -> bool:
    """Return whether a free dim is a factor of it."""
    size = dim_to_int(dim)
    return not 0 <= size < BATCH_SENTINEL and any(size % prime == 0 for prime in _FREE.values())


def dim_to_int(dim: int | str) -> int:
    """`batch` → BATCH_SENTINEL, `batch*3` → 3·BATCH_SENTINEL, an int → itself.

    Names that no model's inputs were bound to (those that shape inference invents) count as the
    batch.
    """
    if isinstance(dim, str):
        parts = dim.split("*")
        return math.prod(int(p) if p.isdigit() else _FREE.get(p, BATCH_SENTINEL) for p in parts)
    return int(dim)


def int_to_dim(size: int) -> int | str:
    """The inverse of `dim_to_int`."""
    names, rest = free_factors(int(size))
    return "*".join([*names, *([str(rest)] if rest != 1 else [])]) if names else int(size)


def settled(dim: int | str, batch: int | Mapping[str, int]) -> int:
    """A dim with the free ones in it settled: all to one number, or each by its name."""
    names, rest = free_factors(dim)
    if not names:
        return rest
    return rest * math.prod(
        batch if isinstance(batch, int) else batch.get(n, _FREE[n]) for n in names
    )


def shape(tensor: gs.Tensor) -> tuple[int, ...]:
    """Dims as ints, a symbolic batch as the sentinel. The shape must be known."""
    return tuple([d if type(d) is int else dim_to_int(d) for d in tensor.shape])


def free_names(graph: gs.Graph) -> list[str]:
    """Names of the free dims of a graph's inputs, each once."""
    firsts = [t.shape[0] for t in graph.inputs if t.shape]
    return list(dict.fromkeys(n for d in firsts for n in free_factors(d)[0]))


def one_image(graph: gs.Graph) -> str:
    """Return what to do where a free batch is in the way: the `--shape` options that fix it."""
    free = [t for t in graph.inputs if t.shape and is_free(t.shape[0])]
    said = [f"--shape {t.name}={','.join(map(str, (1, *t.shape[1:])))}" for t in free]
    return f"fix the batch with {' '.join(said)}" if said else "export with batch 1"


def image_inputs(graph: gs.Graph) -> list[gs.Tensor]:
    """The inputs that hold images: the largest of floats, or of all where none is one.

    Several where they are equally large. Free batches are left out of the sizes.
    """
    floats = [t for t in graph.inputs if np.dtype(t.dtype).kind == "f"]
    inputs = floats or list(graph.inputs)
    sizes = [math.prod(settled(d, 1) for d in t.shape) for t in inputs]
    return [t for t, size in zip(inputs, sizes, strict=True) if size == max(sizes)]


def batch_dim(graph: gs.Graph) -> int | str:
    """The first dim of the images; 1 where no input has a batch.

    Images of floats have three axes or more. Without any, a first dim that is free is the batch.
    Inputs of rank 0 to 2 with literal dims (a temperature, a list of flags) say nothing of it.
    """
    free = [t.shape[0] for t in graph.inputs if t.shape and is_free(t.shape[0])]
    for image in image_inputs(graph)[:1]:
        if np.dtype(image.dtype).kind == "f" and len(image.shape) >= 3:
            return image.shape[0]  # type: ignore[no-any-return]
    return next(iter(free + [t.shape[0] for t in graph.inputs if len(t.shape) >= 3]), 1)


def attr(node: gs.Node, name: str, default: Any = None) -> Any:
    """An attribute of the node."""
    return node.attrs.get(name, default)


def axes_argument(node: gs.Node) -> list[int] | None:
    """`axes` of Squeeze/Unsqueeze/Reduce*: an attribute in older opsets, an input in newer ones."""
    if "axes" in node.attrs:
        return [int(a) for a in node.attrs["axes"]]
    if len(node.inputs) > 1 and not node.inputs[1].is_empty():
        return ints(node.inputs[1])
    return None


def reduced_axes(node: gs.Node) -> list[int]:
    """The axes, counted from the front and in order, that a Reduce* runs over: all, where it names
    none."""
    rank = len(node.inputs[0].shape)
    every = [] if attr(node, "noop_with_empty_axes", 0) else range(rank)
    return sorted(a % rank for a in axes_argument(node) or every)


def replace_uses(old: gs.Tensor, new: gs.Tensor, nodes: Sequence[gs.Node] | None = None) -> None:
    """Let every consumer of `old` (or only `nodes`) read `new` instead. Graph outputs stay."""
    for node in list(old.outputs) if nodes is None else nodes:
        for i, tensor in enumerate(node.inputs):
            if tensor is old:
                node.inputs[i] = new


def cast_node(source: gs.Tensor, result: gs.Tensor, to: int) -> gs.Node:
    """A Cast between two tensors, called after its result.

    Args:
        to: an ONNX element type.
    """
    return gs.Node("Cast", f"{result.name}/Cast", {"to": int(to)}, [source], [result])


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
    size: int = math.prod(constant.shape)
    return size * np.dtype(constant.dtype).itemsize if not isinstance(constant.dtype, int) else size


def large(constant: gs.Constant) -> bool:
    """Return whether a constant is too large to take part in shape inference, or holds texts."""
    return nbytes(constant) > 4096 or is_text(constant)


def is_text(constant: gs.Constant) -> bool:
    """Return whether a constant holds texts; those are never loaded, as they are not written."""
    # Types that numpy lacks, such as bfloat16, are numbers of ONNX's own.
    return not isinstance(constant.dtype, int) and np.dtype(constant.dtype).kind in "OUS"


def skeleton(
    graph: gs.Graph,
    known: Mapping[str, np.ndarray[Any, Any]] | None = None,
    batch: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """The graph without its large weights (they become inputs): cheap to run shape inference on.

    Args:
        known: values of tensors, which are stored in place of the nodes that make them.
        batch: a size for each free dim of the inputs; by default the prime that stands for it.
    """
    known = known or {}
    tensors = tensors_of(graph)
    constants = [t for t in tensors.values() if is_const(t)]
    too_large = [large(t) for t in constants]
    small = [
        OnnxExporter.export_tensor_proto(t)
        for t, is_large in zip(constants, too_large, strict=True)
        if not is_large
    ]
    small += [onnx.numpy_helper.from_array(v, name) for name, v in known.items()]
    weights = [
        OnnxExporter.export_value_info_proto(t, True)
        for t, is_large in zip(constants, too_large, strict=True)
        if is_large
    ]
    inputs = [
        onnx.helper.make_tensor_value_info(
            t.name,
            onnx.helper.np_dtype_to_tensor_dtype(np.dtype(t.dtype)),
            [settled(d, batch) for d in t.shape] if batch else list(shape(t)),
        )
        for t in graph.inputs
    ]
    proto = onnx.helper.make_graph(
        [
            OnnxExporter.export_node(n)
            for n in graph.nodes
            if not known or any(t.name and t.name not in known for t in n.outputs)
        ],
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
