"""Cancel views that end where they began: reshaped and back, turned and turned back.

An exporter, or a person, leaves pairs such as Reshape and Reshape, Unsqueeze and Squeeze, Transpose
and its inverse. Nothing happens between the two, so the second one's result is what the first one
read.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.axes import Axes
from tcompile.core.graph import attr, bypass, is_standard, producer
from tcompile.core.node_order import drop_dead
from tcompile.core.op_traits import RESHAPES

#: So many views in a row are looked at.
MOST = 8


def cancel_views(graph: gs.Graph, loose: Collection[str] = ()) -> int:
    """One sweep; needs inferred shapes. Returns how many views went.

    Args:
        loose: as `simplify`.
    """
    count = 0
    for node in list(graph.nodes):
        chain = [node] if is_view(node, loose) else []
        while chain and len(chain) <= MOST:
            source = chain[0].inputs[0]
            if len(chain) > 1 and source.shape == node.outputs[0].shape and _nothing(chain):
                count += bypass(graph, node, source)
                break
            maker = producer(source)
            if maker is None or not is_view(maker, loose):
                break
            chain.insert(0, maker)
    if count:
        drop_dead(graph)
    return count


def is_view(node: gs.Node, loose: Collection[str] = ()) -> bool:
    """Tell whether a node only writes its first input under other dims, or turned, all known."""
    if not is_standard(node) or (node.op not in RESHAPES and node.op != "Transpose"):
        return False
    if any(t.name in loose for t in node.inputs):
        return False
    dims = [*(node.inputs[0].shape or [None]), *(node.outputs[0].shape or [None])]
    return all(isinstance(d, int) and d > 0 for d in dims)


def named_axes(tensor: gs.Tensor) -> Axes:
    """An axis of its own for each dim of a tensor."""
    return tuple(ax.new(str(i), int(d), "data") for i, d in enumerate(tensor.shape))


def through(axes: Axes, views: Sequence[gs.Node]) -> Axes | None:
    """The axes behind some views; None where they cannot be told."""
    found: Axes | None = axes
    for node in views:
        if found is None:
            return None
        if node.op == "Transpose":
            order = attr(node, "perm", list(range(len(found)))[::-1])
            found = tuple(found[int(p)] for p in order)
        else:
            found = ax.regroup(found, [int(d) for d in node.outputs[0].shape])
    return found


def _nothing(views: Sequence[gs.Node]) -> bool:
    axes = named_axes(views[0].inputs[0])
    return through(axes, views) == axes
