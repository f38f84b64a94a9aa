"""Applying the edits of `analysis.effects` to one node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis import effects as fx
from tcompile.analysis.facts import Facts
from tcompile.analysis.structure import TokenSpace
from tcompile.errors import InternalError, ModelError, UsageError
from tcompile.ir import BATCH, attr, ints, is_const, replace_uses
from tcompile.passes.normalize.batch import set_target
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.stage import Stage, index_on_run, sizes_on_run


@dataclass
class Editor:
    """Edits nodes downstream of a cut.

    Attributes:
        batch: literal batch, or None when it is free.
        facts: of the dense graph.
        first_input: node → name of its first input in the dense graph.
        biased: `Attention` nodes that were given log sizes.
    """

    b: Builder
    space: TokenSpace
    batch: int | None
    facts: Facts
    first_input: Mapping[str, str]
    biased: set[str] = field(default_factory=set)

    def batch_axis(self, name: str) -> int | None:
        """The axis of a dense tensor that is exactly the batch, or None."""
        for i, axis in enumerate(self.facts.axes[name]):
            if len(axis) == 1 and axis[0].root.kind == "batch":
                return i
        return None

    def apply(self, node: gs.Node, edit: fx.Edit, stage: Stage) -> None:
        """Apply one edit in place; `stage` is that of the node's inputs."""
        self.b.scope(node.name.strip("/"))
        if isinstance(edit, fx.SetShape):
            self._shape(node, edit, stage)
        elif isinstance(edit, fx.SetSlice):
            self._slice(node, edit, stage)
        elif isinstance(edit, fx.SetSplit):
            self._split(node, edit, stage)
        elif isinstance(edit, fx.SetGather):
            self._gather(node, edit, stage)
        elif isinstance(edit, fx.Side):
            self._side(node, edit, stage)
        elif isinstance(edit, fx.Pool):
            if stage.size is not None:
                self._pool(node, edit, stage)
        elif stage.size is not None and stage.prop_attn:
            self._bias(node, edit, stage)

    def _shape(self, node: gs.Node, edit: fx.SetShape, stage: Stage) -> None:
        if not is_const(node.inputs[1]):
            raise InternalError("shape of tokens is computed at run time", where=node.name)
        old = ints(node.inputs[1])
        dims = [d.size(self.space, stage.count, self.batch or 1) for d in edit.dims]
        loose = [n if n in (0, -1) and d.batch else s
                 for n, d, s in zip(old, edit.dims, dims, strict=True)]  # fmt: skip
        if node.op == "Reshape":
            set_target(node, loose)
        else:
            name = self.b.name("dims")
            node.inputs[1] = gs.Constant(name, np.asarray(dims, dtype=np.int64))

    def _offset(self, whole: fx.Run, part: fx.Run, count: int) -> int:
        return fx.Run(whole.first, part.first).size(self.space, count)

    def _slice(self, node: gs.Node, edit: fx.SetSlice, stage: Stage) -> None:
        starts, ends = ints(node.inputs[1]), ints(node.inputs[2])
        given = len(node.inputs) > 3 and not node.inputs[3].is_empty()
        axes = ints(node.inputs[3]) if given else list(range(len(starts)))
        rank = len(node.inputs[0].shape)
        position = [a % rank for a in axes].index(edit.axis)
        starts[position] = self._offset(edit.whole, edit.part, stage.count)
        ends[position] = starts[position] + edit.part.size(self.space, stage.count)
        node.inputs[1], node.inputs[2] = self.b.const(starts), self.b.const(ends)

    def _split(self, node: gs.Node, edit: fx.SetSplit, stage: Stage) -> None:
        sizes = self.b.const([p.size(self.space, stage.count) for p in edit.parts])
        node.attrs.pop("num_outputs", None)
        if len(node.inputs) > 1:
            node.inputs[1] = sizes
        else:
            node.inputs.append(sizes)

    def _gather(self, node: gs.Node, edit: fx.SetGather, stage: Stage) -> None:
        count, space = stage.count, self.space
        if edit.part is not None:
            start = self._offset(edit.whole, edit.part, count)
            node.inputs[1] = self.b.const(start + np.arange(edit.part.size(space, count)))
            return
        # Positions after the patches move up by what left.
        low = fx.Run(edit.whole.first, space.patch).size(space, 0)
        moved = [p if p < low else p - space.patches + count for p in edit.positions]
        shape = list(node.inputs[1].shape)
        node.inputs[1] = self.b.const(np.asarray(moved).reshape(shape))

    # -- side inputs -----------------------------------------------------------------------------

    def _side(self, node: gs.Node, edit: fx.Side, stage: Stage) -> None:
        if not stage.positioned:
            raise UsageError(
                f"a fused token has no row in the side input '{node.inputs[edit.operand].name}' of "
                f"{node.op} '{node.name}'",
                where="--method",
                hint="use a method without fused tokens, such as topk",
            )
        tensor = node.inputs[edit.operand]
        # The mask of an Attention meets its logits [B, h, rows, columns], not its output.
        to_logits = node.op == "Attention"
        rank = 4 if to_logits else len(node.outputs[0].shape)
        batch_axis = 0 if to_logits else self.batch_axis(node.outputs[0].name)
        key = f"side/{tensor.name}/{edit.axes}/{rank}/{batch_axis}"
        if key not in stage.cache:
            if self.batch == 1:
                stage.cache[key] = self._gather_one(tensor, edit, stage)
            elif batch_axis is None:
                raise ModelError(
                    f"the side input '{tensor.name}' cannot be gathered per sample",
                    where=f"{node.op} '{node.name}'",
                    hint="export with batch 1",
                )
            else:
                stage.cache[key] = self._gather_each(tensor, edit, stage, rank, batch_axis)
            # Scores that recompute rows of an attention must see whether a table has rows.
            stage.cache[key].shape = self._gathered_shape(tensor, edit, stage, rank, batch_axis)
        node.inputs[edit.operand] = stage.cache[key]

    def _gathered_shape(
        self, tensor: gs.Tensor, edit: fx.Side, stage: Stage, rank: int, batch_axis: int | None
    ) -> list[int | str]:
        missing = 0 if self.batch == 1 else rank - len(tensor.shape)
        dims: list[int | str] = [1] * missing + list(tensor.shape)
        for axis, run in edit.axes:
            dims[axis + missing] = run.size(self.space, stage.count)
        if self.batch != 1 and batch_axis is not None:
            dims[batch_axis] = self.batch or BATCH
        return dims

    def _gather_one(self, tensor: gs.Tensor, edit: fx.Side, stage: Stage) -> gs.Tensor:
        """The rows of the kept tokens of a side input, for batch 1."""
        b = self.b
        for axis, run in edit.axes:
            index = b.reshape(index_on_run(b, self.space, stage, run), [-1], fp32=False)
            tensor = b.op("Gather", tensor, index, dtype=tensor.dtype, axis=axis, fp32=False)
        return tensor

    def _gather_each(
        self, tensor: gs.Tensor, edit: fx.Side, stage: Stage, rank: int, batch_axis: int
    ) -> gs.Tensor:
        """The rows of the kept tokens of a side input, sample by sample."""
        b, space = self.b, self.space
        missing = rank - len(tensor.shape)
        x = b.unsqueeze(tensor, *range(missing), fp32=False) if missing else tensor
        axes = [(axis + missing, run) for axis, run in edit.axes]
        order = list(range(rank))

        def arrange(wanted: list[int], x: gs.Tensor) -> gs.Tensor:
            moved = b.transpose(x, [order.index(i) for i in wanted], fp32=False)
            order[:] = wanted
            return moved

        if batch_axis < missing or tensor.shape[batch_axis - missing] == 1:
            # One table for all samples: [n, rest] gathered by [B, K] → [B, K, rest].
            (first, run), *axes = axes
            rest = [i for i in range(rank) if i not in (first, batch_axis)]
            x = b.squeeze(arrange([batch_axis, first, *rest], x), 0, fp32=False)
            index = index_on_run(b, space, stage, run)
            x = b.op("Gather", x, index, dtype=x.dtype, axis=0, fp32=False)
        for axis, run in axes:
            # [B, n, rest] gathered by [B, K, 1] with the batch in step.
            x = arrange([batch_axis, axis, *(i for i in order if i not in (batch_axis, axis))], x)
            column = b.unsqueeze(index_on_run(b, space, stage, run), 2, fp32=False)
            x = b.op("GatherND", x, column, dtype=x.dtype, batch_dims=1, fp32=False)
        return arrange(list(range(rank)), x)

    # -- what merging needs ----------------------------------------------------------------------

    def _pool(self, node: gs.Node, edit: fx.Pool, stage: Stage) -> None:
        """Mean over tokens → Σ s·x / Σ s; sum → Σ s·x."""
        b, x = self.b, node.inputs[0]
        rank = len(x.shape)
        batch_axis = self.batch_axis(self.first_input[node.name])
        sizes = sizes_on_run(b, self.space, stage, edit.run)
        if batch_axis is not None and batch_axis > edit.axis:
            sizes = b.transpose(sizes, [1, 0])
        around = [i for i in range(rank) if i not in (edit.axis, batch_axis)]
        if batch_axis is None:
            sizes = b.squeeze(sizes, 0)
        weights = b.unsqueeze(sizes, *around) if around else sizes
        weighted = b.op("Mul", x, weights, dtype=x.dtype)
        node.inputs[0] = weighted
        b.fp32.add(node.name)
        if node.op == "ReduceMean":
            mean = node.outputs[0]
            total = b.reduce("Mean", weights, [edit.axis], int(attr(node, "keepdims", 1)))
            raw = gs.Variable(b.name("weighted_mean"), mean.dtype)
            node.outputs[0] = raw
            ratio = b.op("Div", raw, total, dtype=mean.dtype)
            maker = ratio.inputs[0]
            maker.outputs[0] = mean

    def _bias(self, node: gs.Node, edit: fx.Bias, stage: Stage) -> None:
        """logits += log size of each key (proportional attention)."""
        b = self.b
        columns = fx.locate(edit.attention.columns, self.space)
        if columns is None or columns.run is None:
            raise InternalError("an attention's keys are no tokens", where=node.name)
        key = f"log{columns.run}"
        if key not in stage.cache:
            sizes = sizes_on_run(b, self.space, stage, columns.run)
            stage.cache[key] = b.unsqueeze(b.op("Log", sizes), 1, 2)
            count = columns.run.size(self.space, stage.count)
            stage.cache[key].shape = [self.batch or BATCH, 1, 1, count]
        bias = stage.cache[key]
        if node.op == "Softmax":
            logits = node.inputs[0]
            if len(logits.shape) == 3:
                bias = self._per_head(bias, edit.attention.heads, columns.run, stage)
            node.inputs[0] = b.op("Add", logits, bias, dtype=logits.dtype, fp32=False)
            return
        self.biased.add(node.name)
        mask = node.inputs[3] if len(node.inputs) > 3 else None
        if mask is not None and not mask.is_empty():
            if mask.dtype == np.bool_:
                low = b.const([np.finfo(np.float32).min], np.float32)
                allowed, mask = mask, b.op("Where", mask, b.const([0], np.float32), low)
                mask.shape = allowed.shape
            rows = mask.shape[-2] if len(mask.shape) > 1 else 1
            bias = b.op("Add", mask, bias, fp32=False)
            bias.shape = [self.batch or BATCH, 1, rows, columns.run.size(self.space, stage.count)]
        if len(node.inputs) > 3:
            node.inputs[3] = bias
        else:
            node.inputs.append(bias)

    def _per_head(self, bias: gs.Tensor, heads: int, run: fx.Run, stage: Stage) -> gs.Tensor:
        """[B,1,1,N] → [(B h),1,N] for logits that merge batch and heads."""
        key = f"heads{run}"
        if key not in stage.cache:
            b = self.b
            spread = b.op("Add", bias, b.const(np.zeros((1, heads, 1, 1)), np.float32))
            count = run.size(self.space, stage.count)
            stage.cache[key] = b.reshape(spread, [-1, 1, count])
        return stage.cache[key]


def redirect(old: gs.Tensor, new: gs.Tensor, readers: list[gs.Node], graph: gs.Graph) -> None:
    """Let the readers, and the graph output if it is one, take the reduced stream."""
    replace_uses(old, new, readers)
    for i, out in enumerate(graph.outputs):
        if out is old:
            graph.outputs[i] = new
            old.name, new.name = f"{old.name}/dense", old.name
