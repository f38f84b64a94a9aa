"""Rotary position tables: which constants are the cosines and which the sines of one rotation.

A token without a position (one that stands for many) is not rotated: it reads 1 for a cosine and 0
for a sine. Spelled x·cos + rotate(x)·sin, where rotate has a minus sign in it, or as the product of
complex numbers re·cos − im·sin, re·sin + im·cos.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.graph import is_const, nbytes, producer, value
from tcompile.core.op_traits import REARRANGES

_LARGEST = 1 << 26
_WALKED = REARRANGES | {"Concat", "Split", "Slice", "Gather", "Neg"}


def rotations(graph: gs.Graph) -> dict[str, float]:
    """Name of each rotary table → what an unrotated token reads of it: 1.0 or 0.0."""
    found: dict[str, float] = {}
    tables: dict[str, gs.Tensor] = {}
    unknown: list[gs.Tensor] = []
    for node in graph.nodes:
        if node.op not in ("Add", "Sub") or len(node.inputs) != 2:
            continue
        products = [producer(t) for t in node.inputs]
        if any(p is None or p.op != "Mul" for p in products):
            continue
        first, second = (_table(p) for p in products if p is not None)
        if first is None or second is None or first.name == second.name:
            continue
        if not _unit(first, second):
            continue
        tables |= {first.name: first, second.name: second}
        if node.op == "Sub":
            found[first.name], found[second.name] = 1.0, 0.0
            continue
        signs = [_negated(_other(p)) for p in products if p is not None]
        if signs[0] != signs[1]:
            found[first.name], found[second.name] = (0.0, 1.0) if signs[0] else (1.0, 0.0)
            continue
        unknown += [first, second]
    # re·sin + im·cos has no sign to tell by; its tables equal those of re·cos − im·sin.
    values = {_key(tables[n]): fill for n, fill in found.items()}
    for table in unknown:
        if _key(table) in values:
            found.setdefault(table.name, values[_key(table)])
    return found


def _key(table: gs.Tensor) -> tuple[int, bytes]:
    stored = value(table)
    return stored.size, stored.tobytes()


def _table(product: gs.Node) -> gs.Tensor | None:
    """The stored operand of a product."""
    stored = [t for t in product.inputs if is_const(t)]
    return stored[0] if len(stored) == 1 and 4 <= nbytes(stored[0]) <= _LARGEST else None


def _other(product: gs.Node) -> gs.Tensor:
    return next(t for t in product.inputs if not is_const(t))


def _unit(a: gs.Tensor, b: gs.Tensor) -> bool:
    """Return whether a² + b² = 1 everywhere, and both are tables of many values."""
    if tuple(a.shape) != tuple(b.shape) or np.prod(a.shape) < 2:
        return False
    one, two = (value(t).astype(np.float64) for t in (a, b))
    return bool(np.allclose(one * one + two * two, 1.0, atol=1e-3))


def _negated(tensor: gs.Tensor, depth: int = 8) -> bool:
    """Return whether some part of the tensor was negated on the way, within a few views."""
    node = producer(tensor)
    if node is None or depth == 0 or node.op not in _WALKED:
        return False
    if node.op == "Neg":
        return True
    return any(_negated(t, depth - 1) for t in node.inputs if not is_const(t))
