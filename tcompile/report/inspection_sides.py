"""Side inputs: tables that a block reads beside its stream and whose rows belong to tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis.effect_walk import effects
from tcompile.analysis.effects import Side
from tcompile.analysis.model import Analysis
from tcompile.analysis.sites import between
from tcompile.core.graph import is_const, nbytes, value

#: A logit this low is a mask's.
_MASKED = -1e4
_LARGEST = 1 << 26
_LOGICAL = ("And", "Or", "Xor", "Not", "Where", "Equal", "Less", "Greater")


@dataclass(frozen=True)
class SideInfo:
    """One side input, and the nodes that read it.

    `axes` are those that run over tokens, `live` says that it is computed from the image, `blocks`
    where it is read (empty: outside of the blocks), `nodes` by what.
    """

    kind: str
    tensor: str
    shape: tuple[int | str, ...]
    axes: tuple[int, ...]
    live: bool
    blocks: tuple[int, ...]
    nodes: tuple[str, ...]


def find_sides(graph: gs.Graph, analysis: Analysis) -> list[SideInfo]:
    """The side inputs of all blocks, in execution order.

    They are what would have to be gathered if tokens left before the first block.
    """
    stream = analysis.blocks[0].stream_in
    walk = effects(
        graph,
        analysis.facts,
        analysis.space,
        analysis.attentions,
        [stream],
        restorable=analysis.restorable,
    )
    homes: dict[str, int] = {}
    for block in analysis.blocks:
        for name in between(graph, block.stream_in, block.stream_out):
            homes.setdefault(name, block.index)
    logits = {name for a in analysis.attentions for name in a.chain}
    found: dict[tuple[str, str], SideInfo] = {}
    for node in graph.nodes:
        for edit in walk.edits.get(node.name, []):
            if not isinstance(edit, Side):
                continue
            tensor = node.inputs[edit.operand]
            kind = _kind(node, edit, tensor, logits)
            axes = tuple(a.axis for a in edit.axes)
            old = found.get((kind, tensor.name))
            blocks = set(old.blocks if old else ()) | {homes[n] for n in (node.name,) if n in homes}
            found[kind, tensor.name] = SideInfo(
                kind,
                tensor.name,
                tuple(tensor.shape),
                axes,
                edit.live,
                tuple(sorted(blocks)),
                (*(old.nodes if old else ()), node.name),
            )
    return list(found.values())


def _kind(node: gs.Node, edit: Side, tensor: gs.Tensor, logits: set[str]) -> str:
    if edit.fill is not None:
        return "rotary cosines" if edit.fill else "rotary sines"
    if node.op in _LOGICAL or np.dtype(tensor.dtype) == np.bool_:
        return "mask"
    if node.name in logits or node.op == "Attention":
        if edit.live:
            return "mask or bias"
        return "mask" if _masks(tensor) else "position bias"
    if node.op in ("Add", "Sub"):
        return "all tokens of an earlier layer" if edit.live else "position embedding"
    return "tokens computed elsewhere" if edit.live else "table"


def _masks(tensor: gs.Tensor) -> bool:
    """Return whether a stored tensor of logits forbids some pairs."""
    if not is_const(tensor) or nbytes(tensor) > _LARGEST:
        return False
    return bool(np.min(value(tensor), initial=0) <= _MASKED)
