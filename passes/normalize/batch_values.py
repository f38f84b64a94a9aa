"""Values that depend on the size of a free batch and on nothing else of the inputs.

`Shape(x)[0]`, and whatever a graph computes from it: targets of Expand, divisors, `B == 1`,
`B mod 2`. None of them is ever stored, since a stored one would be right for one batch alone. What
is the same for every batch is folded; vectors whose every number is fixed or a multiple of the
batch are spelled in one way (`DimVectors`); everything else keeps its nodes, which read the first
dim of a graph input. Passes that need to know what comes out at the size that stands for the batch
are given it beside the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from tcompile.core.errors import ModelError
from tcompile.core.graph import (
    free_factors,
    free_names,
    free_size,
    is_const,
    is_free,
    opset_imports,
    replace_uses,
    settled,
    tensors_of,
    value,
)
from tcompile.core.node_order import drop_dead, toposort
from tcompile.passes.normalize.evaluate import Evaluator
from tcompile.passes.normalize.origins import Origins

Values = dict[str, np.ndarray[Any, Any]]

HINT = "export with a fixed batch"
#: Ops whose result is another one each time, and ops with graphs inside.
NEVER = {
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
    "Loop",
    "Scan",
    "If",
    "QuantizeLinear",
    "DequantizeLinear",
}
#: Ops that make tensors of a size that an input says: what they make waits for its shape.
SIZED = (
    "AffineGrid",
    "BlackmanWindow",
    "CenterCropPad",
    "Col2Im",
    "ConstantOfShape",
    "Expand",
    "HammingWindow",
    "HannWindow",
    "OneHot",
    "Pad",
    "Range",
    "Resize",
    "Tile",
    "Upsample",
)
#: A value of more numbers than this is not bookkeeping and stays as it is.
_MOST = 1 << 14
#: Batches that values are looked at for, with the numbers that the graph itself compares with.
_BATCHES = (
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    12,
    16,
    24,
    31,
    32,
    33,
    48,
    64,
    100,
    128,
    255,
    256,
    257,
    1000,
    1024,
    4096,
)
_MOST_COMPARED = 24


class DimVectors:
    """Vectors and scalars of dims, computed at run time from the first dims of the inputs."""

    def __init__(self, graph: gs.Graph) -> None:
        self.graph = graph
        self.names: set[str] = set()
        self._made: dict[object, gs.Tensor] = {}

    def vector(self, dims: Sequence[int]) -> gs.Tensor:
        """[n] int64 of dims in which primes stand for the free ones."""
        return self._once(tuple(dims), self._vector)

    def scalar(self, dim: int) -> gs.Tensor:
        """[] int64."""
        return self._once(dim, self._scalar)

    def made(self, tensor: gs.Tensor) -> bool:
        """Tell whether it is one of these, or a constant."""
        return is_const(tensor) or tensor.name in self.names

    def root(self, node: gs.Node) -> bool:
        """Tell whether it is the Shape that these are computed from."""
        return node.outputs[0].name in self.names

    def _once(self, key: Any, make: Any) -> gs.Tensor:
        known = self._made.get(key)
        if known is None or not known.inputs:  # a clean-up takes those that nothing reads
            known = self._made[key] = make(key)
        return known

    def _node(
        self, op: str, tag: str, inputs: list[gs.Tensor], dims: list[int], **attrs: Any
    ) -> gs.Tensor:
        name = self._fresh(tag)
        out = gs.Variable(name, np.int64, dims)
        self.graph.nodes.append(gs.Node(op, name, attrs, inputs, [out]))
        self.names.add(name)
        return out

    def _fresh(self, tag: str) -> str:
        """A name that nothing has: the file may be one that was normalised before."""
        nodes, tensors = {n.name for n in self.graph.nodes}, tensors_of(self.graph)
        while tag in nodes or tag in tensors or tag in self.names:
            tag += "_"
        return tag

    def _stored(self, tag: str, value: int | list[int]) -> gs.Constant:
        return gs.Constant(self._fresh(tag), np.asarray(value, dtype=np.int64))

    def _dim(self, name: str) -> gs.Tensor:
        """[1], the free dim of that name: the first of the first input that has it."""
        prime = free_size(name)
        source = next(t for t in self.graph.inputs if t.shape and t.shape[0] in (prime, name))
        dims = self._once(
            ("dims", source.name),
            lambda _: self._node("Shape", f"tc_dims_{source.name}", [source], [len(source.shape)]),
        )
        zero = self._stored(f"tc_zero_{source.name}", [0])
        return self._node("Gather", f"tc_{name}", [dims, zero], [1], axis=0)

    def _product(self, dim: int) -> gs.Tensor:
        """[1], a dim that is the product of free ones and a number."""
        names, rest = free_factors(dim)
        found = self._stored(f"tc_{dim}", [rest]) if rest != 1 else None
        for name in names:
            factor = self._once(("dim", name), lambda key: self._dim(key[1]))
            found = (
                factor
                if found is None
                else self._node("Mul", f"tc_{_tag([dim])}", [factor, found], [1])
            )
        assert found is not None
        return found

    def _vector(self, dims: tuple[int, ...]) -> gs.Tensor:
        tag = _tag(dims)
        parts = [
            self._once(("product", d), lambda key: self._product(key[1]))
            if is_free(d)
            else self._stored(f"tc_{tag}_{i}", [d])
            for i, d in enumerate(dims)
        ]
        return self._node("Concat", f"tc_shape_{tag}", parts, [len(dims)], axis=0)

    def _scalar(self, dim: int) -> gs.Tensor:
        zero = self._stored(f"tc_first_{dim}", 0)
        return self._node(
            "Gather", f"tc_size_{_tag([dim])}", [self.vector([dim]), zero], [], axis=0
        )


def _tag(dims: Sequence[int]) -> str:
    parts = [
        (*names, *([str(rest)] if rest != 1 or not names else []))
        for names, rest in map(free_factors, dims)
    ]
    return "x".join("".join(p) for p in parts)


def batch_nodes(graph: gs.Graph) -> list[gs.Node]:
    """The nodes that compute values from the first dims of inputs and from constants, in order."""
    inputs = {t.name for t in graph.inputs}
    known: set[str] = set()
    found: list[gs.Node] = []
    for node in graph.nodes:
        if node.domain not in (None, "", "ai.onnx") or node.op in NEVER:
            continue
        if any(isinstance(a, gs.Graph) for a in node.attrs.values()):
            continue
        read = [t for t in node.inputs if not t.is_empty()]
        if node.op in ("Shape", "Size"):
            mine = read[0].name in inputs and any(is_free(d) for d in read[0].shape or ())
        else:
            mine = any(t.name in known for t in read) and all(
                is_const(t) or t.name in known for t in read
            )
        if mine and all(_small(t, node) for t in node.outputs if not t.is_empty()):
            found.append(node)
            known.update(t.name for t in node.outputs)
    return found


def _small(tensor: gs.Tensor, node: gs.Node) -> bool:
    """Tell whether it is a value of few numbers, as many for any batch as far as is known."""
    if tensor.shape is None:
        return node.op not in SIZED
    dims = [d for d in tensor.shape if d is not None]
    return not any(is_free(d) for d in dims) and prod(map(int, dims)) <= _MOST


class BatchFunction:
    """Return what the nodes give, as a function of the sizes of the free dims."""

    def __init__(self, graph: gs.Graph, nodes: Sequence[gs.Node]) -> None:
        roots = {n.inputs[0].name: n.inputs[0] for n in nodes if n.op in ("Shape", "Size")}
        self._roots = {name: list(tensor.shape) for name, tensor in roots.items()}
        self.names = [t.name for n in nodes for t in n.outputs if not t.is_empty()]
        self._session: Evaluator | None = None
        if nodes:
            self._session = self._open(graph, nodes, roots)

    def __call__(self, sizes: Mapping[str, int]) -> Values:
        """Every value at these sizes.

        Raises:
            ModelError: there is none: the model does not run with such a batch.
        """
        if self._session is None:
            return {}
        feeds = {
            name: np.asarray([settled(d, sizes) for d in dims], np.int64)
            for name, dims in self._roots.items()
        }
        found = self._session(self.names, feeds)
        return dict(zip(self.names, found, strict=True))

    def _open(
        self, graph: gs.Graph, nodes: Sequence[gs.Node], roots: Mapping[str, gs.Tensor]
    ) -> Evaluator:
        """A session in which an input's dims take the place of the input."""
        constants = {t.name: t for n in nodes for t in n.inputs if is_const(t)}
        proto = onnx.helper.make_graph(
            [made for n in nodes for made in _from_dims(n, graph.opset)],
            "batch",
            [
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, [len(t.shape)])
                for name, t in roots.items()
            ],
            [onnx.helper.make_empty_tensor_value_info(name) for name in self.names],
            initializer=[OnnxExporter.export_tensor_proto(t) for t in constants.values()],
        )
        model = onnx.helper.make_model(
            proto, opset_imports=opset_imports(graph), ir_version=graph.ir_version or 10
        )
        return Evaluator(model, "what depends on the size of the batch", HINT)


def _from_dims(node: gs.Node, opset: int) -> list[onnx.NodeProto]:
    """The node; Shape and Size of an input whose dims are given instead of it."""
    if node.op not in ("Shape", "Size"):
        return [OnnxExporter.export_node(node)]
    source, out = node.inputs[0].name, node.outputs[0].name
    if node.op == "Size":
        return [onnx.helper.make_node("ReduceProd", [source], [out], keepdims=0)]
    if not node.attrs:
        return [onnx.helper.make_node("Identity", [source], [out])]
    rank = len(node.inputs[0].shape)
    picked = list(range(rank))[node.attrs.get("start", 0) : node.attrs.get("end")]
    index = onnx.numpy_helper.from_array(np.asarray(picked, np.int64))
    return [
        onnx.helper.make_node("Constant", [], [f"{out}/picked"], value=index),
        onnx.helper.make_node("Gather", [source, f"{out}/picked"], [out], axis=0),
    ]


def batch_values(graph: gs.Graph, sizes: Mapping[str, int] | None = None) -> Values:
    """Values of everything that depends on the batch alone.

    Args:
        sizes: of the free dims, by name; by default the primes that stand for them.
    """
    nodes = batch_nodes(graph)
    if not nodes:
        return {}
    return BatchFunction(graph, nodes)(sizes or {n: free_size(n) for n in free_names(graph)})


def settle_batch_values(graph: gs.Graph, vectors: DimVectors, origins: Origins) -> int:
    """Fold what is the same for every batch and spell vectors of dims in one way.

    Returns how many tensors that changed.
    """
    nodes = batch_nodes(graph)
    for node in nodes:
        origins.follow(node)
    loose = [n for n in nodes if n.outputs[0].name not in vectors.names]
    if not loose:
        return 0
    function = BatchFunction(graph, nodes)
    names = free_names(graph)
    primes = {n: free_size(n) for n in names}
    first, others = function(primes), []
    for sizes in _assignments(names, nodes):
        try:
            others.append((sizes, function(sizes)))
        except ModelError:
            continue  # the model itself does not take such a batch
    if not others:
        return 0
    count = 0
    for tensor in [t for n in loose for t in n.outputs if not t.is_empty()]:
        if not tensor.outputs:
            continue
        at, name = first[tensor.name], tensor.name
        if any(t is tensor for t in graph.outputs):
            continue  # it keeps its node
        if all(_equal(at, v[name]) for _, v in others):
            tensor.inputs.clear()
            tensor.to_constant(np.ascontiguousarray(at) if at.ndim else at)
            count += 1
        elif (
            at.dtype == np.int64
            and at.ndim < 2
            and all(_equal(_at(at, sizes), v[name]) for sizes, v in others)
        ):
            dims = [int(v) for v in at.reshape(-1)]
            made = vectors.vector(dims) if at.ndim else vectors.scalar(dims[0])
            origins.same(tensor, made)
            replace_uses(tensor, made)
            count += 1
    if count:
        toposort(drop_dead(graph))
    return count


def _equal(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    return a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def _at(dims: np.ndarray[Any, Any], sizes: Mapping[str, int]) -> np.ndarray[Any, Any]:
    """The dims, if the primes in them stand for the free ones."""
    flat = [settled(int(v), sizes) for v in dims.reshape(-1)]
    return np.asarray(np.asarray(flat, dims.dtype).reshape(dims.shape))


def _assignments(names: Sequence[str], nodes: Sequence[gs.Node]) -> list[dict[str, int]]:
    """Sizes of the free dims to look at: usual ones, and those around what is compared with."""
    compared: list[int] = []
    for tensor in (t for n in nodes for t in n.inputs if is_const(t)):
        if prod(tensor.shape or (1,)) <= 4 and np.dtype(tensor.dtype).kind in "iuf":
            numbers = [v for v in value(tensor).reshape(-1).tolist() if 1 < v < 1 << 16]
            compared += [int(v) + d for v in numbers for d in (-1, 0, 1)]
    usual = list(dict.fromkeys([*_BATCHES, *compared[: 3 * _MOST_COMPARED]]))
    found = [dict.fromkeys(names, n) for n in usual]
    for name in names if len(names) > 1 else ():
        found += [{**dict.fromkeys(names, 3), name: n} for n in usual]
    return found
