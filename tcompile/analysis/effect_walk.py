"""Following cuts downstream: every node is visited once, in execution order."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis import transfer as tf
from tcompile.analysis.attention import Attention
from tcompile.analysis.effect_ops import BarrierError, Rules, contracted
from tcompile.analysis.effects import Barrier, Dim, Edit, Effects, Run, Side
from tcompile.analysis.facts import Facts
from tcompile.analysis.structure import TokenSpace
from tcompile.ir import attr, shape


def effects(
    graph: gs.Graph,
    facts: Facts,
    space: TokenSpace,
    attentions: Sequence[Attention],
    cuts: Sequence[str],
) -> Effects:
    """Follow the cuts (tensor names, in execution order) to the outputs."""
    result = Effects()
    walker = Walker(facts, space, {a.node: a for a in attentions}, result)
    number = {name: i + 1 for i, name in enumerate(cuts)}
    for node in graph.nodes:
        stage = walker.visit(node)
        if result.stage and any(isinstance(a, gs.Graph) for a in node.attrs.values()):
            result.barriers.append(Barrier(node.name, node.op, "holds a sub-graph"))
        if stage:
            result.node_stage[node.name] = stage
        for out in node.outputs:
            if out.name in number:
                if stage != number[out.name] - 1:
                    result.barriers.append(
                        Barrier(node.name, node.op, "does not follow the reduction before it")
                    )
                result.stage[out.name] = number[out.name]
                result.dims[out.name] = walker.all_dims(out)
    return result


class Walker(Rules):
    """Visits nodes in execution order and writes into `result`."""

    def visit(self, node: gs.Node) -> int:
        """Record the node's edits or barrier; returns the stage of its inputs."""
        stage = max((self.stage(t) for t in node.inputs if not t.is_empty()), default=0)
        if stage == 0:
            return 0
        try:
            for out in node.outputs:
                self._check_axes(out)
            edits = self._joins(node, stage) + self.rule(node)
            self._check_claims(node)
            if edits:
                self.result.edits[node.name] = edits
        except BarrierError as error:
            self.result.barriers.append(Barrier(node.name, node.op, str(error)))
        for out in node.outputs:
            self.result.dims[out.name] = self.all_dims(out)
            if not out.is_empty() and any(self.patchy(d) for d in self.dims(out)):
                self.result.stage[out.name] = stage
        return stage

    def _check_claims(self, node: gs.Node) -> None:
        claims = self.facts.conflicts.get(node.name)
        if claims is not None:
            raise BarrierError(f"joins axes that contradict each other: {claims}")

    def _check_axes(self, out: gs.Tensor) -> None:
        if out.name in self.facts.opaque:
            raise BarrierError("loses track of the token axis")
        for axis, dim in zip(self.facts.of(out), self.dims(out), strict=True):
            if dim is None:
                raise BarrierError(f"splits or permutes the token axis: {ax.show(axis)}")

    # -- operands that meet along the token axis -------------------------------------------------

    def _joins(self, node: gs.Node, stage: int) -> list[Edit]:
        """Every operand with tokens is at this stage, or is a side input that can be gathered."""
        edits: list[Edit] = []
        for i, tensor in enumerate(node.inputs):
            if tensor.is_empty() or self.stage(tensor) == stage:
                continue
            axes = self._meeting_axes(node, i)
            if not axes:
                continue
            if self.facts.is_live(tensor):
                raise BarrierError(f"joins reduced tokens with '{tensor.name}', which has them all")
            edits.append(Side(i, tuple(axes)))
        return edits

    def _meeting_axes(self, node: gs.Node, operand: int) -> list[tuple[int, Run]]:
        """(axis of the operand, run) for each axis along which it meets the patches."""
        tensor, out = node.inputs[operand], node.outputs[0]
        sizes, live = shape(tensor), self.facts.is_live(tensor)
        own = [(i, d.run) for i, d in enumerate(self.dims(tensor))
               if live and d is not None and d.run is not None and self.patchy(d)]  # fmt: skip
        if own:
            return own
        if node.op in tf.BROADCAST.split() or (node.op == "Attention" and operand == 3):
            against = self._logits(node) if node.op == "Attention" else self.dims(out)
        elif node.op == "Concat":
            against = self.dims(out)
            along = int(attr(node, "axis")) % len(sizes)
            if self.patchy(against[along]):
                return []
        elif node.op == "Gemm" and operand == 2:
            against = self.dims(out)
        elif node.op in ("MatMul", "Gemm", "Einsum"):
            return [] if live else self._no_mixing(node, operand)
        else:
            return []
        found: list[tuple[int, Run]] = []
        for axis, length in enumerate(sizes):
            dim = against[axis - len(sizes)] if len(sizes) - axis <= len(against) else None
            if length == 1 or dim is None or not self.patchy(dim) or dim.run is None:
                continue
            if dim.batch or dim.factor != 1:
                raise BarrierError(f"joins tokens merged with another axis and '{tensor.name}'")
            found.append((axis, dim.run))
        return found

    def _logits(self, node: gs.Node) -> tuple[Dim | None, ...]:
        one = Dim(1, False, None)
        return (one, one, self.dims(node.inputs[0])[-2], self.dims(node.inputs[1])[-2])

    def _no_mixing(self, node: gs.Node, operand: int) -> list[tuple[int, Run]]:
        """A stored matrix may multiply features, never tokens."""
        other = self.dims(node.inputs[1 - operand]) if node.op != "Einsum" else ()
        if node.op == "Einsum":
            letters = str(attr(node, "equation")).replace(" ", "").split("->")[0].split(",")
            dims = {c: d for term, t in zip(letters, node.inputs, strict=True)
                    for c, d in zip(term, self.dims(t), strict=True) if self.stage(t)}  # fmt: skip
            if any(self.patchy(dims[c]) for c in letters[operand] if c in dims):
                raise BarrierError("mixes tokens with a stored tensor")
            return []
        if self.patchy(other[contracted(node)[1 - operand]]):
            raise BarrierError("mixes tokens with a stored matrix")
        return []
