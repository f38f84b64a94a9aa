"""What each op kind needs once its inputs carry fewer tokens: one short rule an op kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_graphsurgeon as gs

from tcompile.analysis import transfer as tf
from tcompile.analysis.attention import Attention
from tcompile.analysis.counts import Counts
from tcompile.analysis.effects import (
    Barrier,
    Bias,
    Dim,
    Dims,
    Edit,
    Effects,
    Pool,
    Reorder,
    Run,
    SetGather,
    SetShape,
    SetSlice,
    SetSplit,
    Trim,
    locate,
)
from tcompile.analysis.facts import Facts
from tcompile.analysis.literals import uniform
from tcompile.analysis.space import TokenSpace
from tcompile.core.graph import attr, is_const, reduced_axes, shape, value


class BarrierError(Exception):
    """Raised inside a rule; becomes a `Barrier` at the node."""


class Rules:
    """The rules, and what they look at: dims, runs and stages of tensors."""

    def __init__(
        self,
        facts: Facts,
        space: TokenSpace,
        attentions: Mapping[str, Attention],
        result: Effects,
        known: dict[str, Dims],
        counts: Counts,
    ) -> None:
        self.facts, self.space, self.attentions, self.result = facts, space, attentions, result
        self._contexts = {a.context for a in attentions.values()}
        self._chains = {n for a in attentions.values() for n in a.chain}
        self._dims, self.counts = known, counts
        self._rules = self._table()

    def stage(self, tensor: gs.Tensor) -> int:
        return self.result.stage.get(tensor.name, 0)

    def dims(self, tensor: gs.Tensor) -> Dims:
        known = self._dims.get(tensor.name)
        if known is None:
            known = self._dims[tensor.name] = locate(self.facts.of(tensor), self.space)
        return known

    def all_dims(self, tensor: gs.Tensor) -> tuple[Dim, ...]:
        """Dims of a tensor; opaque ones count as plain."""
        return tuple(
            d or Dim(n, False, None) for d, n in zip(self.dims(tensor), shape(tensor), strict=True)
        )

    def patchy(self, dim: Dim | None) -> bool:
        return bool(dim is not None and dim.run and dim.run.patches(self.space))

    def run(self, tensor: gs.Tensor, axis: int) -> Run | None:
        """The run along the axis, if the patches are in it."""
        dim = self.dims(tensor)[axis]
        return dim.run if dim is not None and self.patchy(dim) else None

    def plain(self, tensor: gs.Tensor, axis: int) -> bool:
        """Whether the axis by itself holds every token of its run, one position each."""
        dims = self.dims(tensor)
        axis %= len(dims)
        after = dims[axis + 1] if axis + 1 < len(dims) else None
        dim = dims[axis]
        alone = not (after and after.part == "rest")
        return dim is not None and dim.part == "tokens" and alone and not dim.order

    def rule(self, node: gs.Node) -> list[Edit]:
        """What the op itself needs. An op without a rule of its own is a barrier.

        Raises:
            BarrierError: tokens may not have left before this op.
        """
        if not self.knows(node):
            raise BarrierError("is not an op that tcompile knows how to carry tokens through")
        return self._rules[node.op](node)

    def knows(self, node: gs.Node) -> bool:
        """Whether the op has a rule."""
        return node.op in self._rules and node.domain in (None, "", "ai.onnx")

    def _table(self) -> dict[str, Callable[[gs.Node], list[Edit]]]:
        groups: tuple[tuple[str, Callable[[gs.Node], list[Edit]]], ...] = (
            (tf.ELEMENTWISE, self._nothing),
            (tf.BROADCAST, self._nothing),
            ("Transpose Squeeze Unsqueeze Flatten Concat", self._nothing),
            (tf.REDUCTIONS, self._reduce),
            (tf.SPATIAL, self._spatial),
            (tf.CHANNELWISE, self._channelwise),
            ("LayerNormalization RMSNormalization SimplifiedLayerNormalization", self._normalise),
            ("LogSoftmax LpNormalization", self._along),
            ("Pad SpaceToDepth DepthToSpace", self._grid),
            ("Softmax Attention", self._softmax),
            ("MatMul Gemm", self._contract),
            ("Einsum", self._einsum),
            ("Reshape Expand", self._set_shape),
            ("Tile", self._tile),
            ("Slice", self._slice),
            ("Split", self._split),
            ("Gather", self._gather),
            ("CumSum", self._cumsum),
        )
        return {op: rule for ops, rule in groups for op in ops.split()}

    def _nothing(self, node: gs.Node) -> list[Edit]:
        """Every token is treated alike: shapes follow by themselves."""
        return []

    def _set_shape(self, node: gs.Node) -> list[Edit]:
        return [SetShape(tuple(d for d in self.dims(node.outputs[0]) if d is not None))]

    def _tile(self, node: gs.Node) -> list[Edit]:
        for before, after in zip(
            self.dims(node.inputs[0]), self.dims(node.outputs[0]), strict=True
        ):
            if self.patchy(before) and before != after:
                raise BarrierError("repeats tokens")
        return []

    def _slice(self, node: gs.Node) -> list[Edit]:
        edits: list[Edit] = []
        for axis, (_, _, step) in (tf.slice_bounds(node) or {}).items():
            whole = self.run(node.inputs[0], axis)
            if whole is None or (step == 1 and self._takes_all(node, axis)):
                continue
            self._needs_plain(node, axis)
            dim = self.dims(node.inputs[0])[axis]
            part = self.dims(node.outputs[0])[axis]
            if step != 1 or part is None or part.run is None or dim is None or dim.batch:
                raise BarrierError("takes particular patch tokens")
            edits.append(SetSlice(axis, whole, part.run))
        return edits

    def _takes_all(self, node: gs.Node, axis: int) -> bool:
        """A Slice that takes every position of the axis, which it may do of a grid as well."""
        return shape(node.inputs[0])[axis] == shape(node.outputs[0])[axis]

    def _needs_plain(self, node: gs.Node, axis: int) -> None:
        if not self.plain(node.inputs[0], axis):
            raise BarrierError("takes rows or columns of the grid of tokens")

    def _split(self, node: gs.Node) -> list[Edit]:
        axis = int(attr(node, "axis", 0)) % len(node.inputs[0].shape)
        if self.run(node.inputs[0], axis) is None:
            return []
        self._needs_plain(node, axis)
        runs = [self.dims(t)[axis] for t in node.outputs]
        parts = tuple(d.run for d in runs if d is not None and d.run is not None)
        if len(parts) != len(runs):
            raise BarrierError("takes particular patch tokens")
        return [SetSplit(parts)]

    def _gather(self, node: gs.Node) -> list[Edit]:
        axis = int(attr(node, "axis", 0)) % len(node.inputs[0].shape)
        whole = self.run(node.inputs[0], axis)
        if whole is None:
            return []
        order = self.space.orders.get(self.facts.of(node.outputs[0])[axis])
        before = self.dims(node.inputs[0])[axis]
        if order is not None and before is not None and before.order == "":
            if (before.part == "groups") != order.groups:
                raise BarrierError("puts tokens in another order than their groups'")
            return [Reorder(axis, order, whole)]
        self._needs_plain(node, axis)
        if not is_const(node.inputs[1]) or len(node.inputs[1].shape) > 1:
            raise BarrierError("permutes or selects tokens by a computed index")
        if len(node.inputs[1].shape) == 1:
            part = self.dims(node.outputs[0])[axis]
            if part is not None and part.run is not None and part.run.patches(self.space):
                return [SetGather(whole, part.run, ())]
        total = shape(node.inputs[0])[axis]
        positions = tuple(int(v) % total for v in value(node.inputs[1]).reshape(-1))
        low = Run(whole.first, self.space.patch).size(self.space, 0)
        high = low + self.space.patches
        if any(low <= p < high for p in positions):
            raise BarrierError("takes particular patch tokens")
        return [SetGather(whole, None, positions)]

    def _reduce(self, node: gs.Node) -> list[Edit]:
        rank = len(node.inputs[0].shape)
        if node.op.startswith("Arg"):
            axes = [int(attr(node, "axis", 0)) % rank]
        else:
            axes = list(range(2, rank)) if node.op.startswith("Global") else reduced_axes(node)
        pooled = [a for a in axes if self.run(node.inputs[0], a)]
        if not pooled:
            return []
        run = self.run(node.inputs[0], pooled[0])
        spread = [i for i in range(rank) if self.run(node.inputs[0], i)]
        if pooled != spread:
            raise BarrierError("reduces rows or columns of the grid of tokens")
        self._pools_all(node, pooled)
        if node.op in ("ReduceMax", "ReduceMin", "GlobalMaxPool"):
            return []
        if node.op not in ("ReduceMean", "ReduceSum", "GlobalAveragePool") or run is None:
            raise BarrierError("is not meaningful on fewer tokens")
        others = [a for a in axes if a not in pooled and shape(node.inputs[0])[a] > 1]
        if others:
            self._no_merge(node, "pools tokens together with another axis")
        return [Pool(pooled[0], run)]

    def _pools_all(self, node: gs.Node, pooled: list[int]) -> None:
        """Pooling groups must not keep their members apart: that would be a grid of its own."""
        dim = self.dims(node.inputs[0])[pooled[0]]
        grouping = self.space.grouping
        if dim is None or dim.part != "groups" or grouping is None:
            return
        for axis in self.facts.of(node.inputs[0]):
            if axis and all(d in grouping.inner for d in axis):
                raise BarrierError("pools groups of tokens, their members apart")

    def _softmax(self, node: gs.Node) -> list[Edit]:
        if node.op == "Softmax":
            axis = int(attr(node, "axis", -1)) % len(node.inputs[0].shape)
            over_tokens = self.run(node.inputs[0], axis) is not None
        else:
            over_tokens = self.run(node.inputs[1], -2) is not None
            if self.stage(node.inputs[1]) != self.stage(node.inputs[2]):
                raise BarrierError("has keys and values with different tokens")
        if not over_tokens:
            return []
        core = self.attentions.get(node.name)
        if core is None:
            self._no_merge(node, "runs over tokens but is no attention we recognise")
            return []
        return [Bias(core)]

    def _contract(self, node: gs.Node) -> list[Edit]:
        a, b = node.inputs[:2]
        i, j = tf.contracted(node)
        return self._sum_along(node, [(0, i % len(a.shape)), (1, j % len(b.shape))])

    def _einsum(self, node: gs.Node) -> list[Edit]:
        equation = str(attr(node, "equation")).replace(" ", "")
        edits: list[Edit] = []
        for letter in sorted(set(equation) - set(equation.partition("->")[2]) - set(",->")):
            terms = equation.partition("->")[0].split(",")
            places = [(k, term.index(letter)) for k, term in enumerate(terms) if letter in term]
            edits += self._sum_along(node, places)
        return edits

    def _sum_along(self, node: gs.Node, places: list[tuple[int, int]]) -> list[Edit]:
        """The operands' axes that a product sums along together: (operand, axis) each."""
        held = [(k, axis) for k, axis in places if self.run(node.inputs[k], axis) is not None]
        if not held:
            return []
        first, axis = held[0]
        dim = self.dims(node.inputs[first])[axis]
        alike = [
            (k, i) for k, i in places if (k, i) not in held and uniform(node.inputs[k]) is not None
        ]
        if alike and len(held) == 1 and dim is not None and dim.run is not None:
            # A matrix of ones is a sum, one of 1/N a mean.
            if dim.batch or dim.factor != 1 or dim.part == "rest":
                raise BarrierError("sums over tokens merged with another axis")
            trims: list[Edit] = [Trim(k, i, dim) for k, i in alike]
            return [*trims, Pool(axis, dim.run, first)]
        if len(held) == 1 and len(places) == 1 and dim is not None and dim.run is not None:
            return [Pool(axis, dim.run, first)]
        beside = [k for k, _ in held if self.beside(node.inputs[k])]
        if len(held) == 2 and len(beside) == 1 and dim is not None and dim.run is not None:
            # A mask as a row that multiplies tokens; the other operand is the tokens.
            operand, along = next(h for h in held if h[0] not in beside)
            return [Pool(along, dim.run, operand)]
        others = [self.dims(node.inputs[k])[i] for k, i in held[1:]]
        if (
            len(held) < len(places)
            or any(
                o is None
                or dim is None
                or (o.run, o.order, o.part) != (dim.run, dim.order, dim.part)
                for o in others
            )
            or len({self.stage(node.inputs[k]) for k, _ in held}) > 1
        ):
            raise BarrierError("mixes tokens with a tensor that has other tokens")
        if node.outputs[0].name not in self._contexts:
            self._no_merge(node, "sums over tokens outside an attention we recognise")
        return []

    def beside(self, tensor: gs.Tensor) -> bool:
        """Whether it is a mask or the like: computed from inputs that are no images."""
        return self.facts.is_live(tensor) and tensor.name not in self.facts.imaged

    def _no_merge(self, node: gs.Node, why: str) -> None:
        """Forbid merging, whose sizes would be ignored here; dropping tokens is fine."""
        self.result.merge_barriers.append(Barrier(node.name, node.op, why))

    def _cumsum(self, node: gs.Node) -> list[Edit]:
        raise BarrierError("accumulates over tokens")

    def _normalise(self, node: gs.Node) -> list[Edit]:
        rank = len(node.inputs[0].shape)
        for axis in range(int(attr(node, "axis", -1)) % rank, rank):
            if self.run(node.inputs[0], axis):
                raise BarrierError("normalises over tokens")
        return []

    def _along(self, node: gs.Node) -> list[Edit]:
        if self.run(node.inputs[0], int(attr(node, "axis", -1))):
            raise BarrierError("normalises over tokens")
        return []

    def _channelwise(self, node: gs.Node) -> list[Edit]:
        if node.op != "BatchNormalization" or self.run(node.inputs[0], 1):
            raise BarrierError("normalises over tokens")
        return []

    def _grid(self, node: gs.Node) -> list[Edit]:
        if any(self.run(node.inputs[0], a) for a in range(len(node.inputs[0].shape))):
            raise BarrierError("needs the grid of tokens")
        return []

    def _spatial(self, node: gs.Node) -> list[Edit]:
        runs = [self.run(node.inputs[0], a) for a in range(len(node.inputs[0].shape))]
        if not any(runs):
            return []
        if node.op.startswith("Global") and not runs[1]:
            return self._reduce(node)
        kept = self.dims(node.inputs[0])[2:] == self.dims(node.outputs[0])[2:]
        if node.op != "Conv" or runs[1] or not kept:
            raise BarrierError("needs the neighbourhood of each token")
        return []
