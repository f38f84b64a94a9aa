"""Memory that a model needs: its weights, and the activations that are alive at one time.

Counted from the graph, so a bound from below: each result lives until its last reader ran, what is
computed element by element, or row by row as a softmax, goes into the place of an operand that
nothing else needs, a view takes nothing. What a runtime needs besides is not in it: its own code,
weights that it packs anew, and memory that its allocator could not use again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis.attention import attentions
from tcompile.analysis.flops import (
    Inputs,
    Numbers,
    batch_size,
    inputs_of,
    numbers_of,
    shape,
    token_op_body,
)
from tcompile.core.decode import Count
from tcompile.core.domain import DOMAIN, WRITTEN
from tcompile.core.graph import attr, is_const, nbytes, settled, tensors_of
from tcompile.core.op_traits import BROADCASTS, ELEMENTWISE, RESHAPES

#: One kernel to a compiler where they follow each other.
_POINTWISE = ELEMENTWISE | BROADCASTS
#: Their result may take the place of an operand.
_IN_PLACE = _POINTWISE | {"Softmax", "LogSoftmax"}
_VIEWS = RESHAPES | {"Identity"}
#: Parts and permutations, which the kernels of a compiler read where they lie.
_STRIDED = {"Transpose", "Slice", "Split"}
#: Bytes of a scale and a zero point, which each output channel of a matrix in 8 bits has.
_SCALE = 5


@dataclass(frozen=True)
class Need:
    """Bytes that a model needs at least.

    Attributes:
        weights: as they are stored; the file has the graph besides.
        activations: most that are alive at one time, inputs and outputs included.
    """

    weights: Count
    activations: Count

    @property
    def total(self) -> int:
        """Both together."""
        return self.weights + self.activations

    @property
    def words(self) -> str:
        """`weights 86.6 MB, activations 3.33 MB`."""
        return f"weights {size_words(self.weights)}, activations {size_words(self.activations)}"


def size_words(size: int) -> str:
    """Bytes with three digits that count, in units of a thousand."""
    units = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    scale, unit = next((u for u in units if size >= 0.9995 * u[0]), units[-1])
    number = size / scale
    return f"{number:.0f} {unit}" if number >= 99.95 else f"{number:.3g} {unit}"


@dataclass(frozen=True)
class Storage:
    """The bytes in which a graph in fp32 is held once it is in a precision.

    Attributes:
        weight, activation: of a float.
        eight_bits: whether products of an activation and a stored matrix are in 8 bits.
        on_gpu: whether operands in 8 bits are written as such by what comes before; a row alone, a
            head's, is not put into 8 bits then.
        compiled: whether elementwise nodes in a row are one kernel, and slices and transposes are
            read where they lie: not by ONNX Runtime.
        fused: whether attention is one kernel, whose logits are never stored.
        fp32: names of nodes that stay in fp32.
    """

    weight: int = 4
    activation: int = 4
    eight_bits: bool = False
    on_gpu: bool = False
    compiled: bool = False
    fused: bool = False
    fp32: frozenset[str] = field(default=frozenset())


def memory_of(graph: gs.Graph, how: Storage, batch: int = 1) -> Need:
    """What a graph in fp32 needs once it is stored so.

    Args:
        batch: that a free one is taken for; one that is fixed is what it is.
    """
    return Need(weight_bytes(graph, how), peak_activations(graph, how, batch))


def weight_bytes(graph: gs.Graph, how: Storage) -> int:
    """Bytes of all stored tensors."""
    return sum(
        _stored(t, how, batch_size(graph)) for t in tensors_of(graph).values() if is_const(t)
    )


def _stored(constant: gs.Constant, how: Storage, batch: int) -> int:
    size = nbytes(constant)
    readers = constant.outputs
    if constant.dtype != np.float32 or not readers:
        return size
    if all(_in_eight_bits(n, how, batch) and n.inputs[1] is constant for n in readers):
        transposed = readers[0].op == "Gemm" and attr(readers[0], "transB", 0)
        return size // 4 + _SCALE * int(constant.shape[0 if transposed else 1])
    if all(n.name in how.fp32 for n in readers):
        return size
    return size // 4 * how.weight


def _in_eight_bits(node: gs.Node, how: Storage, batch: int) -> bool:
    """Tell whether a node is a product of an activation and a stored matrix that becomes int8 or
    fp8."""
    if not how.eight_bits or node.op not in ("MatMul", "Gemm") or node.domain:
        return False
    x, weight = node.inputs[:2]
    if node.name.startswith(WRITTEN) or is_const(x) or not is_const(weight):
        return False
    several = not how.on_gpu or prod(shape(x)[:-1]) > batch
    return len(weight.shape) == 2 and several and node.name not in how.fp32


def peak_activations(graph: gs.Graph, how: Storage | None = None, batch: int = 1) -> int:
    """Most bytes of inputs, results and work memory that are alive at one time, in the graph's
    order."""
    return _Lives(graph, how or Storage(), batch).peak()


class _Lives:
    """From when to when each result is needed, and where it lies.

    Args:
        ends: whether inputs and outputs of the graph count.
    """

    def __init__(self, graph: gs.Graph, how: Storage, batch: int, ends: bool = True) -> None:
        self.graph, self.how, self.batch = graph, how, batch
        self.given = {t.name for t in graph.inputs}
        self.kept = {t.name for t in graph.outputs}
        self.uncounted = set() if ends else self.given | self.kept
        self.literal = batch_size(graph)
        self.root: dict[str, gs.Tensor] = {}
        self.readers: dict[str, list[gs.Node]] = {}
        self.nodes: list[gs.Node] = []
        for node in graph.nodes:
            if self._is_view(node):
                root = self._root(node.inputs[0])
                self.root |= {t.name: root for t in node.outputs}
                if any(t.name in self.kept for t in node.outputs):
                    self.kept.add(root.name)
                continue
            self.nodes.append(node)
            for name in {self._root(tensor).name for tensor in node.inputs}:
                self.readers.setdefault(name, []).append(node)

    def peak(self) -> int:
        kernels = self._kernels()
        last = {t.name: i for i, k in enumerate(kernels) for t in self._reads(k)}
        alive = most = sum(map(self.size, self.graph.inputs))
        for i, kernel in enumerate(kernels):
            reads = self._reads(kernel)
            made = [t for node in kernel for t in node.outputs if self._lives(t, kernel)]
            size = sum(map(self.size, made))
            dead = [t for t in reads if last[t.name] == i and self._passing(t)]
            freed = sum(map(self.size, dead))
            reused = 0
            if all(node.op in _IN_PLACE for node in kernel):
                reused = min(size, max(map(self.size, dead), default=0))
            most = max(most, alive + size - reused + self._work(kernel[-1]))
            unread = sum(self.size(t) for t in made if t.name not in last and self._passing(t))
            alive += size - freed - unread
        return most

    def _kernels(self) -> list[list[gs.Node]]:
        """Nodes that run as one, in the order in which the last of each runs."""
        host: dict[int, gs.Node] = {}
        if self.how.fused:
            for match in attentions(self.graph):
                if not match.unfused_ops and not match.read_elsewhere(self.graph):
                    host |= {id(node): match.mix for node in match.nodes}
        found: dict[int, list[gs.Node]] = {}
        for node in reversed(self.nodes):
            result = node.outputs[0].name
            alone = self.how.compiled and node.op in _POINTWISE and result not in self.kept
            readers = self.readers.get(result, []) if alone else []
            if len(readers) == 1 and readers[0].op in _POINTWISE:
                host.setdefault(id(node), host.get(id(readers[0]), readers[0]))
            found.setdefault(id(host.get(id(node), node)), []).insert(0, node)
        return [found[id(node)] for node in self.nodes if id(node) in found]

    def _is_view(self, node: gs.Node) -> bool:
        """Tell whether a node gives bytes of its operand, where they are."""
        if node.domain or not node.inputs or is_const(node.inputs[0]):
            return False
        one = node.op == "Gather" and is_const(node.inputs[1]) and prod(node.inputs[1].shape) == 1
        return node.op in _VIEWS or (self.how.compiled and (node.op in _STRIDED or one))

    def _root(self, tensor: gs.Tensor) -> gs.Tensor:
        return self.root.get(tensor.name, tensor)

    def _reads(self, kernel: Iterable[gs.Node]) -> list[gs.Tensor]:
        inside = {t.name for node in kernel for t in node.outputs}
        found = {}
        for node in kernel:
            for tensor in node.inputs:
                root = self._root(tensor)
                if root.name and not is_const(root) and root.name not in inside:
                    found[root.name] = root
        return list(found.values())

    def _lives(self, tensor: gs.Tensor, kernel: list[gs.Node]) -> bool:
        """Tell whether what a kernel makes is stored: it is not what is only read inside."""
        inside, readers = set(map(id, kernel)), self.readers.get(tensor.name, [])
        within = bool(readers) and all(id(reader) in inside for reader in readers)
        return bool(tensor.name) and (tensor.name in self.kept or not within)

    def _passing(self, tensor: gs.Tensor) -> bool:
        """Tell whether it goes once nothing reads it any more."""
        return tensor.name not in self.given and tensor.name not in self.kept

    def size(self, tensor: gs.Tensor) -> int:
        """Bytes of a tensor that is not stored in the graph."""
        if tensor.name in self.uncounted:
            return 0
        count = prod(settled(d, self.batch) for d in tensor.shape or ())
        return int(count * self._itemsize(tensor))

    def _itemsize(self, tensor: gs.Tensor) -> int:
        maker = tensor.inputs[0] if tensor.inputs else None
        ends = tensor.name in self.given or tensor.name in self.kept
        if tensor.dtype != np.float32 or maker is None or ends or maker.name in self.how.fp32:
            return int(np.dtype(tensor.dtype).itemsize)
        readers = self.readers.get(tensor.name)
        if self.how.on_gpu and readers and all(map(self._eight, readers)):
            return 1
        return self.how.activation

    def _eight(self, node: gs.Node) -> bool:
        return _in_eight_bits(node, self.how, self.literal)

    def _work(self, node: gs.Node) -> int:
        """Bytes that a kernel needs while it runs."""
        if node.domain == DOMAIN:
            given = inputs_of(node, self.batch)
            return _inside(str(node.op), given, numbers_of(node), self.how.activation)
        if node.op == "Attention" and not self.how.fused:
            q, k = (self._dims(t) for t in node.inputs[:2])
            heads = q[1] if len(q) == 4 else int(attr(node, "q_num_heads", 1))
            return q[0] * heads * q[-2] * k[-2] * 4
        if self._eight(node) and not self.how.on_gpu:
            return prod(self._dims(node.inputs[0]))
        return 0

    def _dims(self, tensor: gs.Tensor) -> list[int]:
        return [settled(d, self.batch) for d in tensor.shape]


@cache
def _inside(op: str, inputs: Inputs, numbers: Numbers, activation: int) -> int:
    """Bytes of what a token op holds at one time beside its inputs and outputs."""
    how = Storage(activation=activation)
    return _Lives(token_op_body(op, inputs, numbers), how, 1, ends=False).peak()
