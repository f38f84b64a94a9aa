"""int8 and fp8 (E4M3) for TensorRT: explicit, symmetric Q/DQ pairs in front of what runs in 8 bits.

Quantised are products of an activation and a stored matrix (weights once, per output channel;
activations per tensor, by their range on images) and, where a fused kernel takes it, attention: Q,
K, the probabilities and V. All else stays what it is without: norms, residual stream, what tcompile
wrote. Scales are fp32 between casts, which cannot underflow, and which TensorRT-RTX takes into the
same kernels as scales of fp16 (seen in plans of 1.7.1; of TensorRT on a Jetson it was not seen).

What 8 bits are too few for stays in 16: the error of each product is measured on images, row by
row, against what tells one row from the next, since one outlier makes the steps of all other values
coarse. Outliers of single channels behind a norm go into the weights first: SmoothQuant (Xiao et
al., 2023, section 4), whose equation 4 with alpha = .5 this is.

onnxruntime's quantizer is not used for these: it takes the scale of E4M3 from a standard deviation,
which cuts off what lies beyond, and knows neither the rules of attention nor what to leave alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from tcompile.analysis.attention import AttentionMatch, attentions
from tcompile.core.copies import copied
from tcompile.core.domain import WRITTEN
from tcompile.core.graph import batch_dim, is_const, settled
from tcompile.core.rounding import FLOAT32, DType
from tcompile.passes.lower.fp32_policy import peek
from tcompile.targets.versions import AttentionKernel

Array = npt.NDArray[Any]
Kind = Literal["int8", "fp8"]
#: Inputs of nodes: numbers of a norm.
Places = Sequence[tuple[gs.Node, int]]
#: Runs a graph on images; gives its outputs, by name, run after run.
Run = Callable[[gs.Graph], Iterable[Mapping[str, Array]]]

#: Element type of each kind, and the largest magnitude that is made of a range's end.
FORMATS: Mapping[Kind, tuple[DType, float]] = {
    "int8": (np.dtype(np.int8), 127.0),
    "fp8": (np.dtype(ml_dtypes.float8_e4m3fn), 448.0),
}
#: Opset of `QuantizeLinear` that has an axis, and that has E4M3.
OPSETS: Mapping[Kind, int] = {"int8": 13, "fp8": 19}
#: Most that rounding may take from a product, as a share of what tells its rows apart. Of the
#: trained ViT-S of docs/benchmarks/real.md, dense, int8 keeps a cosine of .9996, .9996, .9991,
#: .9974 on photos with .1, .15, .2, .3, and 58, 62, 66, 70 of 72 products are in 8 bits; fp8 .9993,
#: .9986, .9978, .9970 with 53, 63, 66, 69 products and 1, 7, 9, 10 of 12 attentions.
LIMIT = 0.2
#: From here on axes of a reduction other than a sum are an input.
_AXES_AS_INPUT = 18


@dataclass
class EightBits:
    """Puts a graph into 8 bits, and tells afterwards what it did.

    Attributes:
        kind: int8 or fp8.
        run: runs a graph on images.
        attention: which attentions have a kernel of 8 bits; None: none is put into them.
        limit: most that rounding may take from a product, see `LIMIT`.
        products, attentions: how many are in 8 bits.
        smoothed: norms from which outliers of single channels were taken.
        left: products and attentions that stay in 16 bits, by name, with what rounding would take
            from them.
    """

    kind: Kind
    run: Run
    attention: AttentionKernel | None = None
    limit: float = LIMIT
    products: int = 0
    attentions: int = 0
    smoothed: int = 0
    left: dict[str, float] = field(default_factory=dict)

    def quantize(self, graph: gs.Graph, fp32_nodes: frozenset[str]) -> int:
        """Put Q/DQ pairs into an fp32 graph, in place; returns how many products and attentions
        are in 8 bits.

        Args:
            graph: topologically sorted, attention spelled out, shapes noted.
            fp32_nodes: names of nodes that stay in fp32.
        """
        batch = batch_dim(graph)
        products = [node for node in graph.nodes if _is_linear(node, fp32_nodes, batch)]
        if self.kind == "int8":
            self.smoothed = smooth(graph, products, self.run)
        mixes = [m for m in attentions(graph) if self._takes(graph, m, fp32_nodes)]
        nodes = [*products, *(node for m in mixes for node in (m.product, m.mix))]
        if not nodes:
            return 0
        scales = self._scales(graph, [_live(node) for node in nodes])
        errors = self._errors(graph, nodes, scales)
        worst = {node.name: errors[node.name] for node in products}
        worst |= {m.mix.name: max(errors[m.product.name], errors[m.mix.name]) for m in mixes}
        self.left = {name: error for name, error in worst.items() if not error <= self.limit}
        products = [node for node in products if node.name not in self.left]
        mixes = [m for m in mixes if m.mix.name not in self.left]
        self._insert(graph, products, mixes, scales)
        self.products, self.attentions = len(products), len(mixes)
        return len(products) + len(mixes)

    def _takes(self, graph: gs.Graph, match: AttentionMatch, fp32_nodes: frozenset[str]) -> bool:
        """Tell whether an attention becomes one kernel of 8 bits."""
        if match.node is match.product or match.unfused_ops or match.queries == 1:
            return False
        if match.read_elsewhere(graph) or any(n.name in fp32_nodes for n in match.nodes):
            return False
        if any(n.name.startswith(WRITTEN) for n in (match.product, match.node, match.mix)):
            return False
        if any(map(is_const, _operands(match))):
            return False
        size, keys = _sizes(match)
        return self.attention is not None and self.attention.takes(size, keys)

    def _scales(
        self, graph: gs.Graph, operands: Iterable[Sequence[gs.Tensor]]
    ) -> dict[str, np.float32]:
        """Tensor → its largest magnitude on images, over the largest of the format."""
        tensors = list({t.name: t for each in operands for t in each}.values())
        most = dict.fromkeys((t.name for t in tensors), 0.0)
        with _Probe(graph) as probe:
            ends = {t.name: probe.reduced("ReduceMax", probe.node("Abs", t)) for t in tensors}
            for found in self.run(probe.graph):
                for name, end in ends.items():
                    most[name] = max(most[name], float(found[end.name].max()))
        top = FORMATS[self.kind][1]
        tiny = float(np.finfo(np.float32).tiny)
        return {name: np.float32(max(reach / top, tiny)) for name, reach in most.items()}

    def _errors(
        self, graph: gs.Graph, nodes: Sequence[gs.Node], scales: Mapping[str, np.float32]
    ) -> dict[str, float]:
        """Product → what rounding its operands takes from it: the norm of a row's error over what
        tells the row from the next one, on average over rows.

        The mean of all rows is not what they are held against: a massive one would be most of it.
        """
        sums = {node.name: (0.0, 0) for node in nodes}
        with _Probe(graph) as probe:
            rounded: dict[str, gs.Variable] = {}
            ends = {}
            for node in nodes:
                inputs = list(node.inputs)
                for i, tensor in enumerate(_live(node)):
                    name = tensor.name
                    if name not in rounded:
                        rounded[name] = _quantized(
                            tensor, scales[name], self.kind, probe.nodes, f"{name}/tried"
                        )
                    inputs[i] = rounded[name]
                if is_const(inputs[1]):
                    inputs[1] = _quantized_weight(node, self.kind, probe.nodes)
                made = probe.node(node.op, *inputs, **node.attrs)
                ends[node.name] = probe.relative(node.outputs[0], made)
            for found in self.run(probe.graph):
                for name, (lost, whole) in ends.items():
                    a, b = found[lost.name].astype(np.float64), found[whole.name]
                    with np.errstate(divide="ignore", invalid="ignore"):
                        shares = np.sqrt(2 * a / b)  # two rows differ by twice their variance
                    # A row that is zero and stays it, a masked token's, loses nothing.
                    shares = shares[(a > 0) | (b > 0)]
                    total, count = sums[name]
                    sums[name] = total + float(np.minimum(shares, 1).sum()), count + shares.size
        return {name: total / count if count else 0.0 for name, (total, count) in sums.items()}

    def _insert(
        self,
        graph: gs.Graph,
        products: Sequence[gs.Node],
        mixes: Sequence[AttentionMatch],
        scales: Mapping[str, np.float32],
    ) -> None:
        places: dict[int, list[int]] = {id(node): [0] for node in products}
        linear = set(places)
        for match in mixes:
            places[id(match.product)] = places[id(match.mix)] = [0, 1]
        nodes: list[gs.Node] = []
        made: dict[str, gs.Variable] = {}
        for node in graph.nodes:
            for i in places.get(id(node), ()):
                tensor = node.inputs[i]
                if tensor.name not in made:
                    label = f"{tensor.name}/{self.kind}"
                    made[tensor.name] = _quantized(
                        tensor, scales[tensor.name], self.kind, nodes, label
                    )
                node.inputs[i] = made[tensor.name]
            if id(node) in linear:
                node.inputs[1] = _quantized_weight(node, self.kind, nodes)
            nodes.append(node)
        graph.nodes[:] = nodes


def _is_linear(node: gs.Node, fp32_nodes: frozenset[str], batch: int | str) -> bool:
    """Tell whether it multiplies an activation of more than one row an image with a stored
    matrix."""
    if node.op not in ("MatMul", "Gemm") or node.domain or node.name in fp32_nodes:
        return False
    if not node.name or node.name.startswith(WRITTEN):
        return False
    attrs = node.attrs
    if (attrs.get("alpha", 1.0), attrs.get("beta", 1.0), attrs.get("transA", 0)) != (1.0, 1.0, 0):
        return False
    x, weight = node.inputs[:2]
    if is_const(x) or x.dtype != FLOAT32 or not is_const(weight) or weight.dtype != FLOAT32:
        return False
    # A row alone, a head's, is read from memory once whatever its width, and is what is seen.
    rows = math.prod(settled(d, 1) for d in (x.shape or ())[:-1])
    return len(weight.shape) == 2 and rows > (batch if isinstance(batch, int) else 1)


def _live(node: gs.Node) -> list[gs.Tensor]:
    """The operands of a product that are computed."""
    return [tensor for tensor in node.inputs[:2] if not is_const(tensor)]


def _operands(match: AttentionMatch) -> tuple[gs.Tensor, gs.Tensor, gs.Tensor, gs.Tensor]:
    """Q, K, the probabilities and V, as the two products take them."""
    (q, k), (probabilities, v) = match.product.inputs[:2], match.mix.inputs[:2]
    return q, k, probabilities, v


def _sizes(match: AttentionMatch) -> tuple[int | None, int | None]:
    """The size of a head and the number of keys; None where they are not known."""
    q, k, _, _ = _operands(match)
    dims = (q.shape or [None])[-1], (k.shape or [None])[-1]
    size, keys = (d if isinstance(d, int) else None for d in dims)
    return size, keys


def _quantized(
    tensor: gs.Tensor, scale: np.float32, kind: Kind, nodes: list[gs.Node], label: str
) -> gs.Variable:
    """The tensor rounded to 8 bits and back, by nodes that are added."""
    dtype, _ = FORMATS[kind]
    by = gs.Constant(f"{label}/scale", np.asarray(scale, np.float32))
    zero = gs.Constant(f"{label}/zero", np.zeros((), dtype))
    small = gs.Variable(f"{label}/q", dtype, tensor.shape)
    back = gs.Variable(f"{label}/dq", FLOAT32, tensor.shape)
    nodes.append(gs.Node("QuantizeLinear", small.name, {}, [tensor, by, zero], [small]))
    nodes.append(gs.Node("DequantizeLinear", back.name, {}, [small, by, zero], [back]))
    return back


def _quantized_weight(node: gs.Node, kind: Kind, nodes: list[gs.Node]) -> gs.Variable:
    """The stored matrix of a product in 8 bits, one scale an output channel, and back."""
    dtype, top = FORMATS[kind]
    values, axis = peek(node.inputs[1]), _channel(node)
    most = np.abs(values).max(axis=1 - axis, keepdims=True)
    scale = np.maximum(most / top, np.finfo(np.float32).tiny).astype(np.float32)
    scaled = values / scale
    stored = np.rint(scaled).clip(-top, top) if kind == "int8" else scaled
    # Nodes may be called as tensors are: of an activation there is no such label.
    label = f"{node.name}/{kind}/weight"
    small = gs.Constant(f"{label}/q", stored.astype(dtype))
    by = gs.Constant(f"{label}/scale", scale.reshape(-1))
    zero = gs.Constant(f"{label}/zero", np.zeros(scale.size, dtype))
    back = gs.Variable(f"{label}/dq", FLOAT32, list(values.shape))
    nodes.append(gs.Node("DequantizeLinear", back.name, {"axis": axis}, [small, by, zero], [back]))
    return back


def _channel(node: gs.Node) -> int:
    """The axis of a product's weight along which its output channels lie."""
    return 0 if node.op == "Gemm" and node.attrs.get("transB") else 1


def smooth(graph: gs.Graph, products: Sequence[gs.Node], run: Run) -> int:
    """Divide what a norm gives by a number a channel, and multiply the rows of the weights that
    read it with the same: what is computed stays, and a channel that is far larger than the others
    is so no more. In place.

    Args:
        products: that are to be quantised. A norm that anything else reads stays.

    Returns:
        How many norms changed.
    """
    readers: dict[str, list[gs.Node]] = {}
    for node in products:
        readers.setdefault(node.inputs[0].name, []).append(node)
    ends = {t.name for t in graph.outputs}
    found: list[tuple[Places, list[gs.Node], gs.Variable]] = []
    with _Probe(graph) as probe:
        for name, nodes in readers.items():
            tensor = nodes[0].inputs[0]
            norm = tensor.inputs[0] if tensor.inputs else None
            if norm is None or name in ends or len(tensor.outputs) != len(nodes):
                continue
            places = _affine(norm, ends)
            if places is None:
                continue
            axes = list(range(len(tensor.shape) - 1))
            most = probe.reduced("ReduceMax", probe.node("Abs", tensor), axes)
            found.append((places, nodes, most))
        if not found:
            return 0
        reach: dict[str, Array] = {}
        for outputs in run(probe.graph):
            for _, _, most in found:
                old = reach.get(most.name, 0.0)
                reach[most.name] = np.maximum(old, outputs[most.name].reshape(-1))
    for places, nodes, most in found:
        _smooth(places, nodes, reach[most.name])
    return len(found)


def _affine(norm: gs.Node, ends: Collection[str]) -> Places | None:
    """Where the numbers lie that a norm multiplies each channel with, and adds to it; None of a
    node that is no norm, or has an output of the graph inside.

    Args:
        ends: names of the graph's outputs.
    """
    if norm.op in ("LayerNormalization", "RMSNormalization") and not norm.domain:
        places = tuple((norm, i) for i in range(1, len(norm.inputs)))
    elif norm.op == "Add":
        shift = next((i for i in (0, 1) if is_const(norm.inputs[i])), None)
        if shift is None or not norm.inputs[1 - shift].inputs:
            return None
        scaling = norm.inputs[1 - shift].inputs[0]
        if scaling.op != "Mul" or norm.inputs[1 - shift].name in ends:
            return None
        if len(norm.inputs[1 - shift].outputs) != 1:
            return None
        scale = next((i for i in (0, 1) if is_const(scaling.inputs[i])), None)
        if scale is None:
            return None
        places = ((scaling, scale), (norm, shift))
    else:
        return None
    channels = (norm.outputs[0].shape or [None])[-1]
    shapes = [list(node.inputs[i].shape or ()) for node, i in places]
    same = all(is_const(n.inputs[i]) for n, i in places) and all(s == [channels] for s in shapes)
    return places if same and len(norm.outputs) == 1 else None


def _smooth(places: Places, nodes: Sequence[gs.Node], reach: Array) -> None:
    weights = [np.abs(peek(n.inputs[1])).max(axis=_channel(n)) for n in nodes]
    of_weights = np.max(weights, axis=0).astype(np.float64)
    by = np.sqrt(reach / np.where(of_weights > 0, of_weights, 1))
    # A channel that is never anything but zero stays as it is.
    by = np.where((reach > 0) & (of_weights > 0), by, 1).astype(np.float32)
    old = nodes[0].inputs[0]
    for node, i in places:
        constant = node.inputs[i]
        changed = (peek(constant) / by).astype(np.float32)
        node.inputs[i] = gs.Constant(f"{constant.name}/{node.name}/smoothed", changed)
    new = gs.Variable(f"{old.name}/smoothed", old.dtype, old.shape)
    old.inputs[0].outputs[0] = new
    for node in nodes:
        weight = node.inputs[1]
        rows = by[:, None] if _channel(node) == 1 else by[None]
        node.inputs[0] = new
        node.inputs[1] = gs.Constant(f"{node.name}/smoothed/weight", peek(weight) * rows)


class _Probe:
    """A copy of a graph that gives nothing but what is asked of it here."""

    def __init__(self, graph: gs.Graph) -> None:
        self._source = graph
        self.nodes: list[gs.Node] = []
        self._outputs: list[gs.Variable] = []

    def __enter__(self) -> _Probe:
        return self

    def __exit__(self, *_: object) -> None:
        # What was added reads the graph's own tensors.
        for node in self.nodes:
            node.inputs.clear()
            node.outputs.clear()

    @property
    def graph(self) -> gs.Graph:
        """The graph with what was added; its outputs are what `reduced` and `relative` returned."""
        probed = copied(self._source)
        known = probed.tensors()
        for node in self.nodes:
            inputs = [known.setdefault(t.name, t.copy()) for t in node.inputs]
            outputs = [known.setdefault(t.name, t.copy()) for t in node.outputs]
            probed.nodes.append(gs.Node(node.op, node.name, dict(node.attrs), inputs, outputs))
        probed.outputs = [known[t.name] for t in self._outputs]
        return probed

    def node(self, op: str, *inputs: gs.Tensor, **attrs: Any) -> gs.Variable:
        """The result of an operator."""
        made = gs.Variable(f"probe/{len(self.nodes)}", FLOAT32)
        self.nodes.append(gs.Node(op, made.name, attrs, list(inputs), [made]))
        return made

    def reduced(self, op: str, tensor: gs.Tensor, axes: Sequence[int] | None = None) -> gs.Variable:
        """The result of a reduction, which becomes an output."""
        made = gs.Variable(f"probe/{len(self.nodes)}", FLOAT32)
        attrs: dict[str, Any] = {"keepdims": 0}
        inputs = [tensor]
        if axes is not None and (op == "ReduceSum" or self._source.opset >= _AXES_AS_INPUT):
            inputs.append(gs.Constant(f"{made.name}/axes", np.asarray(axes, np.int64)))
        elif axes is not None:
            attrs["axes"] = list(axes)
        self.nodes.append(gs.Node(op, made.name, attrs, inputs, [made]))
        self._outputs.append(made)
        return made

    def relative(self, tensor: gs.Tensor, other: gs.Tensor) -> tuple[gs.Variable, gs.Variable]:
        """Sums of squares a row, which become outputs: of the difference between two tensors, and
        of that between a row of the first and the next one."""
        apart, of_row = self.node("Sub", tensor, other), tensor
        dims = list(tensor.shape or [])
        rows = dims[-2] if len(dims) > 1 else 1
        if isinstance(rows, int) and rows > 1:
            behind = np.roll(np.arange(rows), -1)
            index = gs.Constant(f"probe/{len(self.nodes)}/index", behind)
            following = self.node("Gather", tensor, index, axis=len(dims) - 2)
            of_row = self.node("Sub", tensor, following)
        squares = [self.node("Mul", x, x) for x in (apart, of_row)]
        lost, whole = (self.reduced("ReduceSum", x, [-1]) for x in squares)
        return lost, whole
