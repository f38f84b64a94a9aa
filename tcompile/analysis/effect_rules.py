"""The rules of `effects`: what each op kind needs once some of its inputs carry fewer tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis import transfer as tf
from tcompile.analysis.attention import Attention
from tcompile.analysis.effects import (
    Barrier,
    Bias,
    Dim,
    Edit,
    Effects,
    Pool,
    Run,
    SetGather,
    SetShape,
    SetSlice,
    SetSplit,
    Side,
    locate,
)
from tcompile.analysis.propagate import Facts
from tcompile.analysis.structure import TokenSpace
from tcompile.ir import attr, axes_argument, is_const, shape, value


class _BarrierError(Exception):
    """Raised inside a rule; becomes a `Barrier` at the node."""


class Walker:
    """Visits nodes in execution order and writes into `result`."""

    def __init__(
        self,
        facts: Facts,
        space: TokenSpace,
        attentions: Mapping[str, Attention],
        result: Effects,
    ) -> None:
        self.facts, self.space, self.attentions, self.result = facts, space, attentions, result
        self._dims: dict[str, tuple[Dim | None, ...]] = {}

    def visit(self, node: gs.Node) -> int:
        """Record the node's edits or barrier; returns the stage of its inputs."""
        stage = max((self.stage(t) for t in node.inputs if not t.is_empty()), default=0)
        if stage == 0:
            return 0
        try:
            self._known(node)
            for out in node.outputs:
                self._check_axes(out)
            edits = self._joins(node, stage) + self._rule(node)
            if edits:
                self.result.edits[node.name] = edits
        except _BarrierError as error:
            self.result.barriers.append(Barrier(node.name, node.op, str(error)))
        for out in node.outputs:
            self.result.dims[out.name] = self.all_dims(out)
            if not out.is_empty() and any(self._patchy(d) for d in self.dims(out)):
                self.result.stage[out.name] = stage
        return stage

    def stage(self, tensor: gs.Tensor) -> int:
        return self.result.stage.get(tensor.name, 0)

    def dims(self, tensor: gs.Tensor) -> tuple[Dim | None, ...]:
        if tensor.name not in self._dims:
            self._dims[tensor.name] = tuple(locate(a, self.space) for a in self.facts.of(tensor))
        return self._dims[tensor.name]

    def all_dims(self, tensor: gs.Tensor) -> tuple[Dim, ...]:
        """Dims of a tensor; one that cannot be located (a barrier was raised) counts as size 1."""
        return tuple(d or Dim(1, False, None) for d in self.dims(tensor))

    def _patchy(self, dim: Dim | None) -> bool:
        return dim is None or (dim.run is not None and dim.run.patches(self.space))

    def _run(self, tensor: gs.Tensor, axis: int) -> Run | None:
        """The run along the axis, if the patches are in it."""
        dim = self.dims(tensor)[axis]
        return dim.run if dim is not None and self._patchy(dim) else None

    def _known(self, node: gs.Node) -> None:
        if node.op not in tf.TRANSFER or node.domain not in (None, "", "ai.onnx"):
            raise _BarrierError("is not an op that tcompile knows how to carry tokens through")

    def _check_axes(self, out: gs.Tensor) -> None:
        if out.name in self.facts.opaque:
            raise _BarrierError("loses track of the token axis")
        for axis, dim in zip(self.facts.of(out), self.dims(out), strict=True):
            if dim is None:
                raise _BarrierError(f"splits or permutes the token axis: {ax.show(axis)}")

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
                raise _BarrierError(
                    f"joins reduced tokens with '{tensor.name}', which has them all"
                )
            edits.append(Side(i, tuple(axes)))
        return edits

    def _meeting_axes(self, node: gs.Node, operand: int) -> list[tuple[int, Run]]:
        """(axis of the operand, run) for each axis along which it meets the patches."""
        tensor, out = node.inputs[operand], node.outputs[0]
        sizes, live = shape(tensor), self.facts.is_live(tensor)
        own = [(i, d.run) for i, d in enumerate(self.dims(tensor))
               if live and d is not None and d.run is not None and self._patchy(d)]  # fmt: skip
        if own:
            return own
        if node.op in tf.BROADCAST.split() or (node.op == "Attention" and operand == 3):
            against = self._logits(node) if node.op == "Attention" else self.dims(out)
        elif node.op == "Concat":
            against = self.dims(out)
            along = int(attr(node, "axis")) % len(sizes)
            if self._patchy(against[along]):
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
            if length == 1 or dim is None or not self._patchy(dim) or dim.run is None:
                continue
            if dim.batch or dim.factor != 1:
                raise _BarrierError(f"joins tokens merged with another axis and '{tensor.name}'")
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
            if any(self._patchy(dims[c]) for c in letters[operand] if c in dims):
                raise _BarrierError("mixes tokens with a stored tensor")
            return []
        contracted = _contracted(node)[1 - operand]
        if self._patchy(other[contracted]):
            raise _BarrierError("mixes tokens with a stored matrix")
        return []

    # -- what the op itself needs ----------------------------------------------------------------

    def _rule(self, node: gs.Node) -> list[Edit]:
        rules: dict[str, Callable[[gs.Node], list[Edit]]] = {
            "Reshape": self._set_shape, "Expand": self._set_shape, "Tile": self._tile,
            "Slice": self._slice, "Split": self._split, "Gather": self._gather,
            "Softmax": self._softmax, "Attention": self._softmax, "MatMul": self._contract,
            "Gemm": self._contract, "CumSum": self._cumsum,
        }  # fmt: skip
        for ops, shared in (
            (tf.REDUCTIONS, self._reduce),
            (tf.SPATIAL, self._spatial),
            (tf.CHANNELWISE, self._channelwise),
        ):
            rules.update(dict.fromkeys(ops.split(), shared))
        normalising = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
        rules.update(dict.fromkeys(normalising, self._normalise))
        rules.update(dict.fromkeys(("LogSoftmax", "LpNormalization"), self._along))
        rule = rules.get(node.op)
        return rule(node) if rule else []

    def _set_shape(self, node: gs.Node) -> list[Edit]:
        return [SetShape(tuple(d for d in self.dims(node.outputs[0]) if d is not None))]

    def _tile(self, node: gs.Node) -> list[Edit]:
        for before, after in zip(
            self.dims(node.inputs[0]), self.dims(node.outputs[0]), strict=True
        ):
            if self._patchy(before) and before != after:
                raise _BarrierError("repeats tokens")
        return []

    def _slice(self, node: gs.Node) -> list[Edit]:
        edits: list[Edit] = []
        for axis, (_, _, step) in (tf.slice_bounds(node) or {}).items():
            whole = self._run(node.inputs[0], axis)
            if whole is None:
                continue
            dim = self.dims(node.inputs[0])[axis]
            part = self.dims(node.outputs[0])[axis]
            if step != 1 or part is None or part.run is None or dim is None or dim.batch:
                raise _BarrierError("takes particular patch tokens")
            edits.append(SetSlice(axis, whole, part.run))
        return edits

    def _split(self, node: gs.Node) -> list[Edit]:
        axis = int(attr(node, "axis", 0)) % len(node.inputs[0].shape)
        if self._run(node.inputs[0], axis) is None:
            return []
        runs = [self.dims(t)[axis] for t in node.outputs]
        parts = tuple(d.run for d in runs if d is not None and d.run is not None)
        if len(parts) != len(runs):
            raise _BarrierError("takes particular patch tokens")
        return [SetSplit(parts)]

    def _gather(self, node: gs.Node) -> list[Edit]:
        axis = int(attr(node, "axis", 0)) % len(node.inputs[0].shape)
        whole = self._run(node.inputs[0], axis)
        if whole is None:
            return []
        if not is_const(node.inputs[1]) or len(node.inputs[1].shape) > 1:
            raise _BarrierError("permutes or selects tokens by a computed index")
        if len(node.inputs[1].shape) == 1:
            part = self.dims(node.outputs[0])[axis]
            if part is not None and part.run is not None and part.run.patches(self.space):
                return [SetGather(whole, part.run, ())]
        total = shape(node.inputs[0])[axis]
        positions = tuple(int(v) % total for v in value(node.inputs[1]).reshape(-1))
        low = Run(whole.first, self.space.patch).size(self.space, 0)
        high = low + self.space.patches
        if any(low <= p < high for p in positions):
            raise _BarrierError("takes particular patch tokens")
        return [SetGather(whole, None, positions)]

    def _reduce(self, node: gs.Node) -> list[Edit]:
        rank = len(node.inputs[0].shape)
        axes = [int(attr(node, "axis", 0))] if node.op.startswith("Arg") else axes_argument(node)
        axes = [a % rank for a in axes] if axes else list(range(rank))
        pooled = [a for a in axes if self._run(node.inputs[0], a)]
        if not pooled:
            return []
        run = self._run(node.inputs[0], pooled[0])
        if node.op in ("ReduceMax", "ReduceMin"):
            return []
        if node.op not in ("ReduceMean", "ReduceSum") or run is None:
            raise _BarrierError("is not meaningful on fewer tokens")
        return [Pool(pooled[0], run)]

    def _softmax(self, node: gs.Node) -> list[Edit]:
        if node.op == "Softmax":
            axis = int(attr(node, "axis", -1)) % len(node.inputs[0].shape)
            over_tokens = self._run(node.inputs[0], axis) is not None
        else:
            over_tokens = self._run(node.inputs[1], -2) is not None
            if self.stage(node.inputs[1]) != self.stage(node.inputs[2]):
                raise _BarrierError("has keys and values with different tokens")
        if not over_tokens:
            return []
        core = self.attentions.get(node.name)
        if core is None:
            self.result.merge_barriers.append(
                Barrier(node.name, node.op, "runs over tokens but is no attention we recognise")
            )
            return []
        return [Bias(core)]

    def _contract(self, node: gs.Node) -> list[Edit]:
        a, b = node.inputs[:2]
        i, j = _contracted(node)
        if len(a.shape) < 2 or len(b.shape) < 2:
            raise _BarrierError("multiplies tokens by a vector")
        left, right = self._run(a, i), self._run(b, j)
        if (left or right) and (left != right or self.stage(a) != self.stage(b)):
            raise _BarrierError("mixes tokens with a tensor that has other tokens")
        return []

    def _cumsum(self, node: gs.Node) -> list[Edit]:
        raise _BarrierError("accumulates over tokens")

    def _normalise(self, node: gs.Node) -> list[Edit]:
        rank = len(node.inputs[0].shape)
        for axis in range(int(attr(node, "axis", -1)) % rank, rank):
            if self._run(node.inputs[0], axis):
                raise _BarrierError("normalises over tokens")
        return []

    def _along(self, node: gs.Node) -> list[Edit]:
        if self._run(node.inputs[0], int(attr(node, "axis", -1))):
            raise _BarrierError("normalises over tokens")
        return []

    def _channelwise(self, node: gs.Node) -> list[Edit]:
        if node.op != "BatchNormalization" or self._run(node.inputs[0], 1):
            raise _BarrierError("normalises over tokens")
        return []

    def _spatial(self, node: gs.Node) -> list[Edit]:
        runs = [self._run(node.inputs[0], a) for a in range(len(node.inputs[0].shape))]
        if not any(runs):
            return []
        kept = self.dims(node.inputs[0])[2:] == self.dims(node.outputs[0])[2:]
        if node.op != "Conv" or runs[1] or not kept:
            raise _BarrierError("needs the neighbourhood of each token")
        return []


def _contracted(node: gs.Node) -> tuple[int, int]:
    """The contracted axis of each operand of MatMul or Gemm."""
    if node.op == "Gemm":
        return (0 if attr(node, "transA", 0) else 1), (1 if attr(node, "transB", 0) else 0)
    return -1, -2
