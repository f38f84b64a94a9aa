"""The matrix products behind MatMul, Gemm, Conv and attention steps."""

from __future__ import annotations

from math import prod

from tcompile.profiling.roofline.attention import Attention
from tcompile.profiling.roofline.gemm import Product
from tcompile.profiling.roofline.steps import Step


def product_of(step: Step, extra: int = 0) -> Product:
    """The product of a gemm step; convolutions as im2col products, one a group.

    Args:
        extra: bytes that its epilogue reads.
    """
    left, right, out = step.reads[0].shape, step.reads[1].shape, step.writes[0].shape
    weight = step.reads[1].constant
    if step.op in {"Conv", "ConvTranspose"}:
        group = int(step.attributes.get("group", 1))
        inner, pixels = prod(right[1:]), out[0] * prod(out[2:])
        if step.op == "ConvTranspose":
            inner, pixels = right[0] // group, left[0] * prod(left[2:])
            columns = right[1] * prod(right[2:])
            return Product(group, pixels, columns, inner, group == 1 and weight, extra)
        return Product(group, pixels, right[0] // group, inner, group == 1 and weight, extra)
    if step.op == "Gemm":
        inner = left[0] if step.attributes.get("transA", 0) else left[1]
        return Product(1, out[0], out[1], inner, weight, extra)
    if step.op == "Einsum":
        return _einsum(step, extra)
    inner = left[-1]
    rows = left[-2] if len(left) > 1 else 1
    columns = right[-1] if len(right) > 1 else 1
    batch = prod(out) // max(1, rows * columns)
    if len(right) <= 2:
        return Product(batch, rows, columns, inner, True, extra)
    return Product(batch, rows, columns, inner, weight and prod(right[:-2]) == 1, extra)


def _einsum(step: Step, extra: int) -> Product:
    """Axes in both operands and the output are the batch, those not in the output the inner."""
    raw = step.attributes.get("equation", b"")
    text = (raw.decode() if isinstance(raw, bytes) else str(raw)).replace(" ", "")
    sides, _, out = text.partition("->")
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
        extra,
    )


def attention_of(step: Step, extra: int = 0) -> Attention:
    """The sizes of an Attention node, in [B, h, N, d] or [B, N, h·d] form."""
    q, k = step.reads[0].shape, step.reads[1].shape
    if len(q) == 4:
        return Attention(q[0], q[1], q[2], k[2], q[3], extra)
    heads = int(step.attributes.get("q_num_heads") or step.attributes.get("num_heads") or 1)
    return Attention(q[0], heads, q[1], k[1], q[2] // heads, extra)


def unfused(attention: Attention) -> tuple[Product, Product]:
    """Q·Kᵀ and probabilities·V as products of their own."""
    a = attention
    return (
        Product(a.batch * a.heads, a.queries, a.keys, a.size),
        Product(a.batch * a.heads, a.queries, a.size, a.keys),
    )
