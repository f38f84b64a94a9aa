"""Mixed axes: those of an operand along which an op mixes positions, or picks some of them.

Each function takes (node, operand) and returns axes counted from the front. An op of which it is
not known mixes every axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import onnx_graphsurgeon as gs

from tcompile.analysis.transfer import contracted, einsum_contracted, slice_bounds, spelled_out
from tcompile.core.graph import attr, ints, is_const, reduced_axes, shape

Mixes: TypeAlias = Callable[[gs.Node, int], list[int]]


def _rank(node: gs.Node, operand: int) -> int:
    return len(node.inputs[operand].shape)


def apart(node: gs.Node, operand: int) -> list[int]:
    """No axis: every position by itself."""
    return []


def everything(node: gs.Node, operand: int) -> list[int]:
    """Every axis."""
    return list(range(_rank(node, operand)))


def per_image(node: gs.Node, operand: int) -> list[int]:
    """Every axis but the first, which is the batch by the op's definition."""
    return list(range(1, _rank(node, operand)))


def along_first(node: gs.Node, operand: int) -> list[int]:
    """The attribute `axis`, by default the first axis."""
    return [int(attr(node, "axis", 0)) % _rank(node, operand)]


def along_last(node: gs.Node, operand: int) -> list[int]:
    """The attribute `axis`, by default the last axis."""
    return [int(attr(node, "axis", -1)) % _rank(node, operand)]


def trailing(node: gs.Node, operand: int) -> list[int]:
    """The attribute `axis` and all behind it."""
    rank = _rank(node, operand)
    return list(range(int(attr(node, "axis", -1)) % rank, rank))


def cumsum(node: gs.Node, operand: int) -> list[int]:
    """The axis that CumSum adds up along."""
    if not is_const(node.inputs[1]):
        return everything(node, operand)
    return [ints(node.inputs[1])[0] % _rank(node, 0)] if operand == 0 else []


def gather(node: gs.Node, operand: int) -> list[int]:
    """The axis of which Gather picks positions."""
    return along_first(node, 0) if operand == 0 else []


def slice_(node: gs.Node, operand: int) -> list[int]:
    """The axes of which Slice does not take every position in order."""
    bounds = slice_bounds(node) if operand == 0 else {}
    if bounds is None:
        return everything(node, operand)
    sizes = shape(node.inputs[operand])
    return [a for a, b in bounds.items() if b != (0, sizes[a], 1)]


def reduced(node: gs.Node, operand: int) -> list[int]:
    """The axes that a Reduce* runs over."""
    return reduced_axes(node)


def product(node: gs.Node, operand: int) -> list[int]:
    """The axis that a product of two matrices sums along."""
    return [contracted(node)[operand] % _rank(node, operand)] if operand < 2 else []


def einsum(node: gs.Node, operand: int) -> list[int]:
    """The letters that the result does not have."""
    if not spelled_out(node):
        return everything(node, operand)
    return [axis for i, axis in einsum_contracted(node) if i == operand]


def attention(node: gs.Node, operand: int) -> list[int]:
    """Rows and features; heads, which the batch may be joined with, stay apart."""
    return [_rank(node, operand) - 2, _rank(node, operand) - 1]
