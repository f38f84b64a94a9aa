"""Operands that meet along the token axis: side inputs, and tensors that still have every token."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from tcompile.analysis import transfer as tf
from tcompile.analysis.effect_ops import BarrierError, Rules
from tcompile.analysis.effects import Barrier, Dim, Dims, Edit, Side, SideAxis
from tcompile.analysis.literals import uniform
from tcompile.core.graph import attr, shape

_TOGETHER = (*tf.BROADCAST.split(), "Concat")


class Joins(Rules):
    """Adds to the rules what every operand of a node needs."""

    def joins(self, node: gs.Node, stage: int) -> list[Edit]:
        """Every operand with tokens is at this stage, or is one that can be gathered."""
        edits: list[Edit] = []
        for i, tensor in enumerate(node.inputs):
            if tensor.is_empty():
                continue
            own = self.stage(tensor)
            axes = self._meeting_axes(node, i, behind=own != stage)
            if not axes:
                continue
            live = self.facts.is_live(tensor)
            mask = node.op == "Attention" and i == 3
            row = node.op in ("MatMul", "Einsum") and self.beside(tensor)
            row = row and len(tensor.shape) == len(node.outputs[0].shape)
            if live and (0 < own < stage or not (mask or row or node.op in _TOGETHER)):
                raise BarrierError(f"joins reduced tokens with '{tensor.name}', which has others")
            # A merged token is masked as the token it was merged into; features would need merging.
            masked = mask or self.beside(tensor) or node.name in self._chains
            if live and own == 0 and not masked:
                barrier = Barrier(node.name, node.op, f"joins '{tensor.name}' of every token")
                self.result.merge_barriers.append(barrier)
            fill = self.facts.unrotated.get(tensor.name) if node.op == "Mul" else None
            if fill is None:
                barrier = Barrier(
                    node.name, node.op, f"joins '{tensor.name}', which has no row for a fused token"
                )
                self.result.fuse_barriers.append(barrier)
            edits.append(Side(i, tuple(axes), live, fill))
        return edits

    def _meeting_axes(self, node: gs.Node, operand: int, behind: bool) -> list[SideAxis]:
        """The axes of an operand along which it has tokens that have left.

        Args:
            behind: the operand is of an earlier stage; otherwise its token axes already follow,
                and only axes that nothing is known of can be too long.
        """
        tensor = node.inputs[operand]
        live = self.facts.is_live(tensor)
        found = self._own(tensor) if behind and live else []
        taken = {a.axis + k for a in found for k in range(a.span)}
        against = self._against(node, operand, live)
        if against is None:
            return found
        offset = len(against) - len(tensor.shape)
        sizes, dense = shape(tensor), self._dense(node, against)
        axis = -1
        while (axis := axis + 1) < len(sizes):
            dim = against[axis + offset] if axis + offset >= 0 else None
            if axis in taken or sizes[axis] == 1 or dim is None or not self.patchy(dim):
                continue
            if not behind and self.patchy(self.dims(tensor)[axis]):
                continue
            if dim.order:
                raise BarrierError(f"joins tokens in another order with '{tensor.name}'")
            if dim.batch or dim.factor != 1 or dim.run is None:
                raise BarrierError(f"joins tokens merged with another axis and '{tensor.name}'")
            span = 1
            while axis + offset + span < len(against) and _rest(against[axis + offset + span]):
                span += 1
            here = slice(axis + offset, axis + offset + span)
            if dim.part == "rest" or sizes[axis : axis + span] != dense[here]:
                raise BarrierError(
                    f"joins a grid of tokens and '{tensor.name}', a table of one side of it"
                )
            found.append(SideAxis(axis, dim.run, dim.part, span))
            axis += span - 1
        return found

    def _own(self, tensor: gs.Tensor) -> list[SideAxis]:
        """The axes of a tensor that run over patches."""
        dims = self.dims(tensor)
        found: list[SideAxis] = []
        for i, dim in enumerate(dims):
            if dim is None or dim.run is None or not self.patchy(dim) or dim.part == "rest":
                continue
            if dim.order:
                raise BarrierError(f"joins '{tensor.name}', whose tokens have another order")
            span = 1
            while i + span < len(dims) and _rest(dims[i + span]):
                span += 1
            found.append(SideAxis(i, dim.run, dim.part, span))
        return found

    def _against(self, node: gs.Node, operand: int, live: bool) -> Dims | None:
        """The dims that an operand's last axes line up with; None where they line up with none."""
        out = node.outputs[0]
        if node.op == "Attention" and operand == 3:
            one = Dim(1, False, None)
            return (one, one, self.dims(node.inputs[0])[-2], self.dims(node.inputs[1])[-2])
        if node.op in tf.BROADCAST.split() or (node.op == "Gemm" and operand == 2):
            return self.dims(out)
        if node.op == "Concat":
            along = int(attr(node, "axis")) % len(out.shape)
            return None if self.patchy(self.dims(out)[along]) else self.dims(out)
        if node.op in ("MatMul", "Gemm", "Einsum") and not live:
            self._no_mixing(node, operand)
        return None

    def _dense(self, node: gs.Node, against: Dims) -> tuple[int, ...]:
        """Dense sizes of the dims that an operand lines up with."""
        if node.op == "Attention":
            return (1, 1, shape(node.inputs[0])[-2], shape(node.inputs[1])[-2])
        return shape(node.outputs[0])[-len(against) :]

    def _no_mixing(self, node: gs.Node, operand: int) -> None:
        """A stored matrix may multiply features, and tokens where it treats them all alike."""
        if uniform(node.inputs[operand]) is not None:
            return
        if node.op == "Einsum":
            letters = str(attr(node, "equation")).replace(" ", "").split("->")[0].split(",")
            dims = {
                c: d
                for term, t in zip(letters, node.inputs, strict=True)
                for c, d in zip(term, self.dims(t), strict=True)
                if self.stage(t)
            }
            if any(self.patchy(dims[c]) for c in letters[operand] if c in dims):
                raise BarrierError("mixes tokens with a stored tensor")
        elif self.patchy(self.dims(node.inputs[1 - operand])[tf.contracted(node)[1 - operand]]):
            raise BarrierError("mixes tokens with a stored matrix")


def _rest(dim: Dim | None) -> bool:
    return dim is not None and dim.part == "rest"
