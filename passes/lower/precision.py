"""Half precision written into the graph: every tensor says fp16 (or bf16) or fp32, and casts lie
between.

TensorRT 11 knows no other way, and on older versions it is the accurate one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from tcompile.core.copies import copied
from tcompile.core.errors import InternalError, ModelError
from tcompile.core.graph import constant_nodes_to_constants
from tcompile.core.rounding import FLOAT16, FLOAT32, HALVES, DType, as_dtype
from tcompile.passes.lower.fp32_policy import BFLOAT16_MAX, FLOAT16_MAX, Delicate, largest, peek
from tcompile.passes.lower.types import Key, TypeClashError, complete, output_types

#: Take a float of any type and give back none of it.
_INDIFFERENT = {"Cast", "Shape", "Size", "IsNaN", "IsInf", "ArgMax", "ArgMin", "NonZero"}
_ENUM = {**HALVES, FLOAT32: int(onnx.TensorProto.FLOAT)}


def to_half(
    graph: gs.Graph,
    *,
    half: DType = FLOAT16,
    fp32_nodes: frozenset[str] = frozenset(),
    keep_io: bool = True,
) -> gs.Graph:
    """A copy of an fp32 graph in which all computes in fp16 or bf16 but what must not.

    fp32 stay: `fp32_nodes`, what `Delicate` finds (spelled-out norms, powers, roots, integers held
    as floats, constants beyond fp16, operators that take no bf16 in this opset, scales of Q/DQ),
    calls of functions whose body does not type in it, and `LayerNormalization` inside (its
    `stash_type`). Casts lie at the borders, one a tensor.

    Args:
        graph: topologically sorted, no control flow. It is left as it is.
        half: which of the two.
        fp32_nodes: names of nodes to keep in fp32.
        keep_io: inputs and outputs of the graph stay fp32; otherwise they become `half`.

    Raises:
        ModelError: the graph has control flow.
        InternalError: a type in the result contradicts another.
    """
    copy = copied(graph)
    for node in copy.nodes:
        if any(isinstance(value, gs.Graph) for value in node.attrs.values()):
            raise ModelError(
                "control flow cannot be put into half precision",
                where=f"node '{node.name}' ({node.op})",
                hint="build with --precision fp32",
            )
    constant_nodes_to_constants(copy)
    complete(copy)
    functions = {(f.domain or "", f.name): f for f in copy.functions}
    delicate = Delicate(fp32_nodes, functions, half, copy.opset)
    _Conversion(copy, delicate, half, keep_io).run()
    check_types(copy, functions)
    return copy


class _Conversion:
    def __init__(self, graph: gs.Graph, delicate: Delicate, half: DType, keep_io: bool) -> None:
        self.graph = graph
        self.delicate = delicate
        self.half = half
        self.suffix = "fp16" if half == FLOAT16 else "bf16"
        self.keep_io = keep_io
        self.nodes: list[gs.Node] = []
        self.casts: dict[tuple[str, DType], gs.Variable] = {}
        self.constants: dict[str, gs.Constant] = {}
        self.taken = set(graph.tensors())

    def run(self) -> None:
        """Convert the graph in place."""
        # All decisions come first: they are about the fp32 graph.
        single = [self.delicate.stays(node) for node in self.graph.nodes]
        if not self.keep_io:
            for tensor in self.graph.inputs:
                tensor.dtype = self.half if tensor.dtype == FLOAT32 else tensor.dtype
        outputs = {tensor.name: tensor for tensor in self.graph.outputs}
        for node, stays in zip(self.graph.nodes, single, strict=True):
            self._convert(node, FLOAT32 if stays else self.half, outputs)
        self.graph.nodes[:] = self.nodes
        self._tidy()

    def _convert(self, node: gs.Node, wanted: DType, outputs: Mapping[str, gs.Variable]) -> None:
        if node.op not in _INDIFFERENT:
            for i, tensor in enumerate(node.inputs):
                if _is_float(tensor) and tensor.dtype != wanted:
                    node.inputs[i] = self._in(tensor, wanted, node)
        if node.op == "Cast" and as_dtype(node.attrs["to"]) == FLOAT32:
            node.attrs["to"] = _ENUM[wanted]
        self.nodes.append(node)
        for i, tensor in enumerate(node.outputs):
            if tensor.dtype != FLOAT32 or wanted == FLOAT32:
                continue
            if tensor.name in outputs and self.keep_io:
                self._cast_output(node, i, tensor)
            else:
                tensor.dtype = self.half

    def _cast_output(self, node: gs.Node, position: int, tensor: gs.Variable) -> None:
        """Compute a graph output in half precision under another name, and cast it to its own."""
        inner = gs.Variable(self._name(f"{tensor.name}_{self.suffix}"), self.half, tensor.shape)
        users = [user for user in tensor.outputs if user is not node]
        node.outputs[position] = inner
        for user in users:
            for i, read in enumerate(user.inputs):
                if read is tensor:
                    user.inputs[i] = inner
        self._cast(inner, tensor, FLOAT32)

    def _in(self, tensor: gs.Tensor, wanted: DType, node: gs.Node) -> gs.Tensor:
        """The tensor in another precision: a converted constant, or a cast shared by its users."""
        if isinstance(tensor, gs.Constant):
            return self._constant(tensor) if wanted == self.half else tensor
        key = (tensor.name, wanted)
        if key not in self.casts:
            name = self._name(f"{tensor.name}_{self.suffix if wanted == self.half else 'fp32'}")
            self.casts[key] = gs.Variable(name, wanted, tensor.shape)
            self._cast(tensor, self.casts[key], wanted)
        return self.casts[key]

    def _cast(self, source: gs.Tensor, result: gs.Variable, to: DType) -> None:
        name = self._name(f"{result.name}/Cast")
        cast = gs.Node("Cast", name, {"to": _ENUM[to]}, inputs=[source], outputs=[result])
        self.nodes.append(cast)

    def _constant(self, tensor: gs.Constant) -> gs.Constant:
        if tensor.name not in self.constants:
            values = peek(tensor)
            most = FLOAT16_MAX if self.half == FLOAT16 else BFLOAT16_MAX
            if largest(values) > most:
                # Finite values beyond fp16 only get here where clamping them is harmless; beyond
                # bf16 there is little, the end of fp32, which masks stand for infinity with.
                clipped = np.clip(values, -most, most)
                values = np.where(np.isfinite(values), clipped, values)
            name = self._name(f"{tensor.name}_{self.suffix}")
            self.constants[tensor.name] = gs.Constant(name, values.astype(self.half))
        return self.constants[tensor.name]

    def _tidy(self) -> None:
        """Give a converted constant its old name where nothing reads the fp32 one any more."""
        read = {tensor.name for node in self.nodes for tensor in node.inputs}
        for name, half in self.constants.items():
            if name not in read:
                half.name = name

    def _name(self, name: str) -> str:
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name


def _is_float(tensor: gs.Tensor) -> bool:
    return not tensor.is_empty() and tensor.dtype in _ENUM


def check_types(graph: gs.Graph, functions: Mapping[Key, gs.Function]) -> None:
    """Raise InternalError unless every node's types agree with each other and with what is noted.

    ONNX's own checker lets a MatMul of fp16 and fp32 pass; runtimes do not.
    """
    for node in graph.nodes:
        kinds = [None if t.is_empty() else as_dtype(t.dtype) for t in node.inputs]
        try:
            results = output_types(node, kinds, functions)
        except TypeClashError as error:
            raise InternalError(str(error)) from error
        for tensor, kind in zip(node.outputs, results, strict=True):
            floats = kind in _ENUM
            if floats and not tensor.is_empty() and tensor.dtype != kind:
                raise InternalError(
                    f"'{tensor.name}' is noted as {tensor.dtype} and computed as {kind}",
                    where=f"node '{node.name}' ({node.op})",
                )
