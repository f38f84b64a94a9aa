"""Joins: what an op with several operands needs where some of them have tokens that others lost."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from tcompile.analysis import transfer as tf
from tcompile.analysis.count_state import uniform
from tcompile.analysis.effect_state import BarrierError, Walk
from tcompile.analysis.effects import Barrier, Edit, Side, SideAxis
from tcompile.analysis.token_dims import Dim, Dims, is_rest, span_of
from tcompile.core.graph import attr, shape
from tcompile.core.op_traits import BROADCASTS, PRODUCTS


def joins(walk: Walk, node: gs.Node, stage: int) -> list[Edit]:
    """Every operand with tokens is at this stage, or is one that can be gathered."""
    edits: list[Edit] = []
    for i, tensor in enumerate(node.inputs):
        if tensor.is_empty():
            continue
        own = walk.stage(tensor)
        axes = _meeting_axes(walk, node, i, behind=own != stage)
        if not axes:
            continue
        live = walk.facts.is_live(tensor)
        mask = node.op == "Attention" and i == 3
        row = node.op in ("MatMul", "Einsum") and walk.beside(tensor)
        row = row and len(tensor.shape) == len(node.outputs[0].shape)
        together = mask or row or node.op in BROADCASTS or node.op == "Concat"
        if live and (0 < own < stage or not together):
            raise BarrierError(f"joins reduced tokens with '{tensor.name}', which has others")
        # A merged token is masked as the token it was merged into; features would need merging.
        in_logits = any(node.name in a.chain for a in walk.attentions.values())
        if live and own == 0 and not (mask or walk.beside(tensor) or in_logits):
            walk.no_merge(node, f"joins '{tensor.name}' of every token")
        fill = walk.facts.unrotated.get(tensor.name) if node.op == "Mul" else None
        if fill is None:
            why = f"joins '{tensor.name}', which has no row for a fused token"
            walk.result.fuse_barriers.append(Barrier(node.name, node.op, why))
        edits.append(Side(i, tuple(axes), live, fill))
    return edits


def _meeting_axes(walk: Walk, node: gs.Node, operand: int, behind: bool) -> list[SideAxis]:
    """The axes of an operand along which it has tokens that have left.

    Args:
        behind: the operand is of an earlier stage; otherwise its token axes already follow,
            and only axes that nothing is known of can be too long.
    """
    tensor = node.inputs[operand]
    live = walk.facts.is_live(tensor)
    found = _own(walk, tensor) if behind and live else []
    taken = {a.axis + k for a in found for k in range(a.span)}
    against = _against(walk, node, operand, live)
    if against is None:
        return found
    offset = len(against) - len(tensor.shape)
    sizes, dense = shape(tensor), _dense(node, against)
    end = 0
    for axis in range(len(sizes)):
        dim = against[axis + offset] if axis + offset >= 0 else None
        if axis < end or axis in taken or sizes[axis] == 1:
            continue
        if dim is None or not walk.has_patches(dim):
            continue
        if not behind and walk.has_patches(walk.dims(tensor)[axis]):
            continue
        if dim.order:
            raise BarrierError(f"joins tokens in another order with '{tensor.name}'")
        if dim.batch or dim.factor != 1 or dim.run is None:
            raise BarrierError(f"joins tokens merged with another axis and '{tensor.name}'")
        span = span_of(against, axis + offset)
        here = slice(axis + offset, axis + offset + span)
        if is_rest(dim) or sizes[axis : axis + span] != dense[here]:
            raise BarrierError(
                f"joins a grid of tokens and '{tensor.name}', a table of one side of it"
            )
        found.append(SideAxis(axis, dim.run, dim.part, span, dim.others))
        end = axis + span
    return found


def _own(walk: Walk, tensor: gs.Tensor) -> list[SideAxis]:
    """The axes of a tensor that run over patches."""
    dims = walk.dims(tensor)
    found: list[SideAxis] = []
    for i, dim in enumerate(dims):
        if dim is None or dim.run is None or not walk.has_patches(dim) or is_rest(dim):
            continue
        if dim.order:
            raise BarrierError(f"joins '{tensor.name}', whose tokens have another order")
        found.append(SideAxis(i, dim.run, dim.part, span_of(dims, i), dim.others))
    return found


def _against(walk: Walk, node: gs.Node, operand: int, live: bool) -> Dims | None:
    """The dims that an operand's last axes line up with; None where they line up with none."""
    out = node.outputs[0]
    if node.op == "Attention" and operand == 3:
        one = Dim(1, False, None)
        return (one, one, walk.dims(node.inputs[0])[-2], walk.dims(node.inputs[1])[-2])
    if node.op in BROADCASTS or (node.op == "Gemm" and operand == 2):
        return walk.dims(out)
    if node.op == "Concat":
        along = int(attr(node, "axis")) % len(out.shape)
        # Along the tokens each operand has its own; what has rows for tokens besides follows them.
        return tuple(d if i != along else Dim(1, False, None) for i, d in enumerate(walk.dims(out)))
    if node.op in PRODUCTS and not live:
        _no_mixing(walk, node, operand)
    return None


def _dense(node: gs.Node, against: Dims) -> tuple[int, ...]:
    """Dense sizes of the dims that an operand lines up with."""
    if node.op == "Attention":
        return (1, 1, shape(node.inputs[0])[-2], shape(node.inputs[1])[-2])
    return shape(node.outputs[0])[-len(against) :]


def _no_mixing(walk: Walk, node: gs.Node, operand: int) -> None:
    """A stored matrix may multiply features, and tokens where it treats them all alike."""
    if uniform(node.inputs[operand]) is not None:
        return
    if node.op == "Einsum":
        letters, _ = tf.einsum_terms(node)
        dims = {
            c: d
            for term, t in zip(letters, node.inputs, strict=True)
            for c, d in zip(term, walk.dims(t), strict=True)
            if walk.stage(t)
        }
        if any(walk.has_patches(dims[c]) for c in letters[operand] if c in dims):
            raise BarrierError("mixes tokens with a stored tensor")
    elif walk.has_patches(walk.dims(node.inputs[1 - operand])[tf.contracted(node)[1 - operand]]):
        raise BarrierError("mixes tokens with a stored matrix")
