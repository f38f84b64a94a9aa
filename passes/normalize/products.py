"""One spelling for products of two tensors that are computed: MatMul.

Einsum with two operands, a sum over a product that broadcasts, and Gemm of two activations say what
MatMul says with other axes. Their axes are turned and joined until they are those of a MatMul:
(batch …, rows, inner) · (batch …, inner, columns). Products with a weight stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count as count_from
from math import prod
from string import ascii_letters

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.graph import attr, is_const, is_free, producer, reduced_axes
from tcompile.core.node_order import drop_dead, toposort


def spell_products(graph: gs.Graph) -> int:
    """One sweep; needs inferred shapes. Returns how many products were rewritten."""
    count = 0
    for node in list(graph.nodes):
        rule = _RULES.get(node.op)
        if rule is None or node.domain not in (None, "", "ai.onnx"):
            continue
        if any(t.shape is None for t in (*node.inputs, *node.outputs) if not t.is_empty()):
            continue
        count += rule(graph, node)
    if count:
        toposort(drop_dead(graph))
    return count


class Nodes:
    """Writes nodes beside one, and knows the shapes of what they give."""

    def __init__(self, graph: gs.Graph, beside: gs.Node) -> None:
        self.graph, self.beside = graph, beside
        # Other passes, and earlier rounds, may have written nodes beside the same one.
        self.taken = {str(t.name) for n in graph.nodes for t in (*n.inputs, *n.outputs)}
        self.base = str(beside.outputs[0].name)

    def _name(self, kind: str) -> str:
        count = next(i for i in count_from(1) if f"{self.base}/{kind}_{i}" not in self.taken)
        name = f"{self.base}/{kind}_{count}"
        self.taken.add(name)
        return name

    def ints(self, values: Sequence[int]) -> gs.Constant:
        return gs.Constant(self._name("ints"), np.asarray(values, np.int64))

    def like(self, values: np.ndarray, tensor: gs.Tensor) -> gs.Constant:
        """A constant of the type of a tensor."""
        return gs.Constant(self._name("value"), np.asarray(values, tensor.dtype))

    def op(
        self, kind: str, inputs: Sequence[gs.Tensor], dims: Sequence[int], **attributes: object
    ) -> gs.Tensor:
        """One node, of the type of its first input."""
        name = self._name(kind)
        out = gs.Variable(name, inputs[0].dtype, list(dims))
        self.graph.nodes.append(gs.Node(kind, name, dict(attributes), list(inputs), [out]))
        return out

    def transpose(self, x: gs.Tensor, order: Sequence[int]) -> gs.Tensor:
        """In another order of axes; the tensor itself where that is the same."""
        if list(order) == sorted(order):
            return x
        return self.op("Transpose", [x], [x.shape[i] for i in order], perm=list(order))

    def squeeze(self, x: gs.Tensor, axes: Sequence[int]) -> gs.Tensor:
        """Without these axes of size 1."""
        if not axes:
            return x
        dims = [d for i, d in enumerate(x.shape) if i not in axes]
        return self.op("Squeeze", [x, self.ints(axes)], dims)

    def unsqueeze(self, x: gs.Tensor, axes: Sequence[int]) -> gs.Tensor:
        """With axes of size 1 there."""
        if not axes:
            return x
        dims = list(x.shape)
        for axis in sorted(axes):
            dims.insert(axis, 1)
        return self.op("Unsqueeze", [x, self.ints(sorted(axes))], dims)

    def reshape(self, x: gs.Tensor, kept: int, dims: Sequence[int]) -> gs.Tensor:
        """The first `kept` axes as they are, then these dims."""
        whole = [*x.shape[:kept], *dims]
        if list(x.shape) == whole:
            return x
        return self.op("Reshape", [x, self.ints([*[0] * kept, *dims])], whole)


def replace_by(graph: gs.Graph, node: gs.Node, made: gs.Tensor) -> None:
    """Let a tensor just made have the name and the readers of a node's result; the node goes."""
    out = node.outputs[0]
    node.outputs.clear()
    maker = made.inputs[0]
    maker.outputs[0] = out
    if not any(maker is n for n in graph.nodes):
        graph.nodes.append(maker)


# ---- einsum --------------------------------------------------------------------------------------


def _einsum(graph: gs.Graph, node: gs.Node) -> int:
    if len(node.inputs) != 2 or any(map(is_const, node.inputs)):
        return 0
    found = _letters(str(attr(node, "equation")), [len(t.shape) for t in node.inputs])
    if found is None:
        return 0
    return _as_matmul(graph, node, node.inputs, *found)


def _letters(equation: str, ranks: Sequence[int]) -> tuple[list[str], str] | None:
    """The letters of each operand and of the result, those that `...` stands for as well."""
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        return None
    free = [c for c in ascii_letters if c not in equation]
    spread = [r - len(t.replace("...", "")) for r, t in zip(ranks, terms, strict=True)]
    most = max((s for s, t in zip(spread, terms, strict=True) if "..." in t), default=0)
    if most > len(free) or any(s < 0 for s in spread):
        return None
    dots = "".join(free[:most])
    if not arrow:
        every = "".join(terms).replace("...", "")
        out = "..." + "".join(sorted(c for c in set(every) if every.count(c) == 1))
    terms = [
        t.replace("...", dots[most - s :] if s else "") for s, t in zip(spread, terms, strict=True)
    ]
    if any(len(t) != r for r, t in zip(ranks, terms, strict=True)):
        return None
    return terms, out.replace("...", dots)


def _as_matmul(
    graph: gs.Graph, node: gs.Node, operands: Sequence[gs.Tensor], terms: Sequence[str], out: str
) -> int:
    """Write Einsum as a MatMul, where it is one with rows and columns."""
    made = _matmul(Nodes(graph, node), operands, terms, out)
    if made is None:
        return 0
    replace_by(graph, node, made)
    return 1


def _matmul(
    nodes: Nodes, operands: Sequence[gs.Tensor], terms: Sequence[str], out: str
) -> gs.Tensor | None:
    a, b = terms
    if any(len(set(t)) < len(t) for t in (a, b, out)) or set(out) - set(a + b):
        return None
    rows, columns = ([c for c in out if c in x and c not in y] for x, y in ((a, b), (b, a)))
    if columns and rows and out.index(columns[-1]) < out.index(rows[-1]):
        return _matmul_of(nodes, operands[::-1], (b, a), out, columns, rows)
    return _matmul_of(nodes, operands, (a, b), out, rows, columns)


def _matmul_of(
    nodes: Nodes,
    operands: Sequence[gs.Tensor],
    terms: Sequence[str],
    out: str,
    rows: list[str],
    columns: list[str],
) -> gs.Tensor | None:
    a, b = terms
    shared = [c for c in out if c in a and c in b]
    inner = [c for c in a if c in b and c not in out]
    sizes: dict[str, int] = {}
    for term, tensor in zip(terms, operands, strict=True):
        for letter, size in zip(term, tensor.shape, strict=True):
            if sizes.setdefault(letter, int(size)) != int(size):
                return None
    complete = all(sorted(t) == sorted(shared + g + inner) for t, g in ((a, rows), (b, columns)))
    if not (rows and columns and inner and complete):
        return None
    if any(is_free(sizes[c]) for c in (*rows, *columns, *inner)):
        return None

    def arranged(tensor: gs.Tensor, term: str, *groups: list[str]) -> gs.Tensor:
        order = [term.index(c) for group in (shared, *groups) for c in group]
        turned = nodes.transpose(tensor, order)
        return nodes.reshape(turned, len(shared), [prod(sizes[c] for c in g) for g in groups])

    left = arranged(operands[0], a, rows, inner)
    right = arranged(operands[1], b, inner, columns)
    product = nodes.op("MatMul", [left, right], [*left.shape[:-1], right.shape[-1]])
    product.inputs[0].name = nodes.beside.name
    apart = nodes.reshape(product, len(shared), [sizes[c] for c in (*rows, *columns)])
    letters = [*shared, *rows, *columns]
    return nodes.transpose(apart, [letters.index(c) for c in out])


# ---- sums of products, Gemm ----------------------------------------------------------------------


def _summed(graph: gs.Graph, node: gs.Node) -> int:
    """ReduceSum of a product in which both factors are broadcast."""
    product = producer(node.inputs[0])
    if product is None or product.op != "Mul" or any(map(is_const, product.inputs)):
        return 0
    if any(t.shape is None or 0 in t.shape for t in product.inputs):
        return 0
    if len(node.inputs) > 1 and not (node.inputs[1].is_empty() or is_const(node.inputs[1])):
        return 0
    rank = len(node.inputs[0].shape)
    gone = reduced_axes(node)
    dims = [[1] * (rank - len(t.shape)) + [int(d) for d in t.shape] for t in product.inputs]
    held = [[i for i in range(rank) if d[i] != 1] for d in dims]
    if not gone or any(i not in h for i in gone for h in held):
        return 0
    if set(held[0]) <= set(held[1]) or set(held[1]) <= set(held[0]):
        return 0  # a weighted sum, or a dot product
    nodes = Nodes(graph, node)
    operands, terms = [], []
    for tensor, mine in zip(product.inputs, held, strict=True):
        missing = rank - len(tensor.shape)
        ones = [i for i in range(len(tensor.shape)) if i + missing not in mine]
        operands.append(nodes.squeeze(tensor, ones))
        terms.append("".join(ascii_letters[i] for i in mine))
    left = [i for i in range(rank) if i not in gone]
    out = "".join(ascii_letters[i] for i in left if any(i in h for h in held))
    made = _matmul(nodes, operands, terms, out)
    if made is None:
        return 0
    keep = attr(node, "keepdims", 1) == 1
    places = range(rank) if keep else left
    ones = [k for k, i in enumerate(places) if i in gone or not any(i in h for h in held)]
    replace_by(graph, node, nodes.unsqueeze(made, ones))
    return 1


def _gemm(graph: gs.Graph, node: gs.Node) -> int:
    """Gemm of two activations: alpha · A·B + beta · C."""
    if any(map(is_const, node.inputs[:2])):
        return 0
    nodes = Nodes(graph, node)
    a, b = (
        nodes.transpose(t, [1, 0] if attr(node, f"trans{x}", 0) else [0, 1])
        for t, x in zip(node.inputs[:2], "AB", strict=True)
    )
    made = nodes.op("MatMul", [a, b], node.outputs[0].shape)
    made.inputs[0].name = node.name
    if attr(node, "alpha", 1.0) != 1.0:
        alpha = nodes.like(np.asarray(attr(node, "alpha")), made)
        made = nodes.op("Mul", [made, alpha], made.shape)
    if len(node.inputs) > 2 and not node.inputs[2].is_empty():
        bias, beta = node.inputs[2], attr(node, "beta", 1.0)
        if beta != 1.0:
            scale = nodes.like(np.asarray(beta), made)
            bias = nodes.op("Mul", [bias, scale], bias.shape)
        made = nodes.op("Add", [made, bias], made.shape)
    replace_by(graph, node, made)
    return 1


_RULES: Mapping[str, Callable[[gs.Graph, gs.Node], int]] = {
    "Einsum": _einsum,
    "ReduceSum": _summed,
    "Gemm": _gemm,
}
