"""Literals that are how many tokens there are, which follow the grid."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis.count_state import Counts
from tcompile.analysis.effects import Rescale
from tcompile.analysis.space import TokenSpace
from tcompile.core.graph import is_const
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.weigh import follow
from tcompile.passes.resize.sizes import GridError


def follow_counts(
    graph: gs.Graph, b: Builder, counts: Counts, space: TokenSpace, patches: int
) -> None:
    """Let what divides a sum over tokens be as many as there are.

    Args:
        patches: there are now.

    Raises:
        GridError: a number that comes from how many there are is used in another way.
    """
    for node in list(graph.nodes):
        if node.name in counts.sized:
            raise GridError(
                f"{node.op} '{node.name}' computes with a number that comes from how many tokens "
                "there are"
            )
        edit = counts.rescales.get(node.name)
        if edit is not None:
            _rescale(b, node, edit, _ratio(edit, space, patches))


def _ratio(edit: Rescale, space: TokenSpace, patches: int) -> float:
    ratio, summed = 1.0, edit.summed
    for factor in edit.factors:
        if factor.base == "weights" and summed.weights is not None:
            raise GridError("a sum by a stored mask is divided by that of the mask")
        before = summed.count("size", space) + factor.offset
        after = float(summed.dim.size(space, patches, 1) * summed.terms) + factor.offset
        if after <= 0:
            raise GridError("divides by the number of tokens less one, and one is left")
        ratio *= (after / before) ** float(factor.power)
    return ratio


def _rescale(b: Builder, node: gs.Node, edit: Rescale, ratio: float) -> None:
    stored = None if edit.operand is None else node.inputs[edit.operand]
    if stored is not None and is_const(stored) and np.dtype(stored.dtype).kind == "f":
        values = np.asarray(stored.values)
        scaled = values / ratio if edit.inverse else values * ratio
        node.inputs[int(edit.operand or 0)] = b.const(scaled, values.dtype)
        return
    out = node.outputs[0]
    factor = b.const([ratio], out.dtype)
    follow(b, node, out, lambda raw: b.op("Mul", raw, factor, dtype=out.dtype))
