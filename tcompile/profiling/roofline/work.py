"""The work of steps: its kind, its bytes, its matrix products, and other operations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from tcompile.profiling.roofline.device import Device
from tcompile.profiling.roofline.steps import Step, Value
from tcompile.profiling.roofline.times import Attention, Product

#: Kind of work → operators. Free: another view of the same bytes, or known when compiling.
_OPERATORS = {
    "free": "Reshape Identity Squeeze Unsqueeze Flatten Dropout Shape Size Constant "
    "ConstantOfShape QuantizeLinear DequantizeLinear Range",
    "gemm": "MatMul Gemm Conv ConvTranspose FusedMatMul Einsum",
    "attention": "Attention",
    "topk": "TopK",
    "gather": "Transpose Slice Split Concat Gather GatherElements GatherND Scatter "
    "ScatterElements ScatterND Pad Tile Expand OneHot EyeLike",
    "norm": "LayerNormalization RMSNormalization SimplifiedLayerNormalization "
    "SkipLayerNormalization GroupNormalization InstanceNormalization Softmax LogSoftmax "
    "LpNormalization",
    "reduce": "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 "
    "ReduceSumSquare ReduceLogSumExp ArgMax ArgMin CumSum MaxPool AveragePool GlobalAveragePool "
    "GlobalMaxPool Resize",
}
_KIND = {op: kind for kind, ops in _OPERATORS.items() for op in ops.split()}
#: Those that read only what they write.
_PICKS = frozenset(["Slice", "Split", "Gather", "GatherElements", "GatherND"])
SCATTERS = frozenset(["Scatter", "ScatterElements", "ScatterND"])
#: FLOPs an element: of elementwise work 4, and more of these.
_EXPENSIVE = "Erf Gelu Exp Log Tanh Sigmoid Sin Cos Pow QuickGelu Softplus Mish"


@dataclass(frozen=True)
class Work:
    """One kernel, or one node on a CPU.

    Attributes:
        kind: gemm, attention, norm, pointwise, gather, scatter, topk, reduce or view.
        steps: what it computes.
        moved: bytes of activations in and out, operands of products not among them.
        launches: how many kernels (nodes) it really is.
        operations: FLOPs outside matrix products.
        products: its matrix products, one after the other.
        attention: set for a fused attention.
    """

    kind: str
    steps: tuple[Step, ...]
    moved: int = 0
    launches: int = 1
    operations: int = 0
    products: tuple[Product, ...] = ()
    attention: Attention | None = None


def kind_of(step: Step) -> str:
    """Return free, gemm, attention, topk, norm, reduce, gather or pointwise."""
    if not step.writes or (step.op == "Transpose" and keeps_order(step)):
        return "free"
    if step.op == "TopK" and step.writes[0].shape[-1:] == (1,):
        return "reduce"  # With k = 1 it is an ArgMax.
    return _KIND.get(step.op, "pointwise")


def kind_of_steps(steps: Sequence[Step]) -> str:
    """Return the kind that a generated kernel is called after: the most telling of its steps."""
    kinds = {kind_of(s) for s in steps}
    kind = next((k for k in ("norm", "reduce", "gather", "pointwise") if k in kinds), "view")
    return "scatter" if kind == "gather" and any(s.op in SCATTERS for s in steps) else kind


def operations(steps: Iterable[Step]) -> int:
    """Return FLOPs of elementwise work: 4 an element, 10 in a norm, 16 in Erf, Gelu, Exp, …"""
    total = 0
    for step in steps:
        kind = kind_of(step)
        each = {
            "norm": 10,
            "reduce": 2,
            "pointwise": 16 if step.op in _EXPENSIVE.split() else 4,
        }.get(kind, 0)
        values = step.reads if kind == "reduce" else step.writes
        total += each * max((v.count for v in values), default=0)
    return total


def keeps_order(step: Step) -> bool:
    """Tell whether a Transpose only moves axes of size 1: the bytes stay where they are."""
    shape = step.reads[0].shape
    perm = step.attributes.get("perm") or list(reversed(range(len(shape))))
    long = [int(p) for p in perm if shape[int(p)] != 1]
    return long == sorted(long)


def swaps_last(step: Step) -> bool:
    """Tell whether a Transpose only swaps the last two axes: a product does that itself."""
    rank = len(step.reads[0].shape)
    perm = [int(p) for p in step.attributes.get("perm") or reversed(range(rank))]
    return rank >= 2 and perm == [*range(rank - 2), rank - 1, rank - 2]


def nbytes(value: Value, device: Device) -> int:
    """Return the bytes of a tensor on the device: integers have 32 bits on a GPU, 64 on a CPU."""
    if value.floating:
        return value.count * device.itemsize
    wide = 8 if device.cpu and value.itemsize == 4 else value.itemsize
    return value.count * wide


def read_bytes(
    steps: Sequence[Step], made: Iterable[str], roots: Mapping[str, str], device: Device
) -> int:
    """Return the bytes that steps read: each tensor once, of one that is sliced what is taken."""
    inside = set(made)
    full: dict[str, int] = {}
    picked: dict[str, int] = {}
    for step in steps:
        for position, value in enumerate(step.reads):
            root = roots.get(value.name, value.name)
            if root in inside or (value.constant and value.count <= 16):
                continue
            size = nbytes(value, device)
            if position == 0 and step.op in _PICKS:
                taken = sum(nbytes(v, device) for v in step.writes)
                picked[root] = min(size, picked.get(root, 0) + taken)
            else:
                full[root] = max(full.get(root, 0), size)
    return sum(full.values()) + sum(size for root, size in picked.items() if root not in full)


def sorted_rows(step: Step) -> tuple[int, int]:
    """Return how many rows a TopK sorts, and their length."""
    length = step.reads[0].shape[-1]
    return step.reads[0].count // max(1, length), length


def product_of(step: Step) -> Product:
    """Return the product of a gemm step; convolutions as im2col products, one a group."""
    left, right, out = step.reads[0].shape, step.reads[1].shape, step.writes[0].shape
    weight = step.reads[1].constant
    if step.op in {"Conv", "ConvTranspose"}:
        group = int(step.attributes.get("group", 1))
        inner, pixels = prod(right[1:]), out[0] * prod(out[2:])
        if step.op == "ConvTranspose":
            inner, pixels = right[0] // group, left[0] * prod(left[2:])
            columns = right[1] * prod(right[2:])
            return Product(group, pixels, columns, inner, group == 1 and weight)
        return Product(group, pixels, right[0] // group, inner, group == 1 and weight)
    if step.op == "Gemm":
        inner = left[0] if step.attributes.get("transA", 0) else left[1]
        return Product(1, out[0], out[1], inner, weight)
    if step.op == "Einsum":
        return _einsum(step)
    inner = left[-1]
    rows = left[-2] if len(left) > 1 else 1
    columns = right[-1] if len(right) > 1 else 1
    batch = prod(out) // max(1, rows * columns)
    if len(right) <= 2:
        return Product(batch, rows, columns, inner, True)
    return Product(batch, rows, columns, inner, weight and prod(right[:-2]) == 1)


def _einsum(step: Step) -> Product:
    """Return its product: axes in both operands and the output are the batch, those not in the
    output the inner axis."""
    sides, _, out = str(step.attributes["equation"]).replace(" ", "").partition("->")
    left, _, right = sides.partition(",")
    sizes = dict(zip(left, step.reads[0].shape, strict=False))
    sizes.update(zip(right, step.reads[1].shape, strict=False))

    def size(axes: set[str]) -> int:
        return prod(sizes[a] for a in axes)

    a, b, c = set(left), set(right), set(out)
    return Product(
        size(a & b & c),
        size((a - b) & c),
        size((b - a) & c),
        size((a & b) - c),
        step.reads[1].constant,
    )


def attention_of(step: Step) -> Attention:
    """Return the sizes of an Attention node, in [B, h, N, d] or [B, N, h·d] form."""
    q, k = step.reads[0].shape, step.reads[1].shape
    if len(q) == 4:
        return Attention(q[0], q[1], q[2], k[2], q[3])
    heads = int(step.attributes.get("q_num_heads") or step.attributes.get("num_heads") or 1)
    return Attention(q[0], heads, q[1], k[1], q[2] // heads)


def unfused(attention: Attention) -> tuple[Product, Product]:
    """Return Q·Kᵀ and probabilities·V as products of their own."""
    a = attention
    return (
        Product(a.batch * a.heads, a.queries, a.keys, a.size),
        Product(a.batch * a.heads, a.queries, a.size, a.keys),
    )
