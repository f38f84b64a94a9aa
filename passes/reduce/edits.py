"""Applying the edits of `analysis.effects` to one node."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis import effects as fx
from tcompile.analysis.counts import sums_over
from tcompile.core.errors import InternalError, ModelError
from tcompile.core.graph import attr, ints, is_const, is_free, replace_uses
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.recount import follow, recount, rescale
from tcompile.passes.reduce.side_inputs import Rows
from tcompile.passes.reduce.token_state import TokenState, sizes_on_run


@dataclass
class Editor(Rows):
    """Edits nodes downstream of a cut."""

    def apply(self, node: gs.Node, edit: fx.Edit, stage: TokenState) -> None:
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
        elif isinstance(edit, fx.Restore):
            self._restore(node, edit, stage)
        elif isinstance(edit, fx.Regroup):
            self._regroup(node, edit, stage)
        elif isinstance(edit, fx.Reorder):
            self._reorder(node, edit, stage)
        elif isinstance(edit, fx.Trim):
            self._trim(node, edit, stage)
        elif isinstance(edit, fx.Rescale):
            rescale(self, node, edit, stage)
        elif isinstance(edit, fx.Recount):
            recount(self, node, edit, stage)
        elif isinstance(edit, fx.Pool):
            if stage.size is not None:
                self._pool(node, edit, stage)
        elif stage.size is not None and stage.prop_attn:
            self._bias(node, edit, stage)

    def _shape(self, node: gs.Node, edit: fx.SetShape, stage: TokenState) -> None:
        if not is_const(node.inputs[1]):
            node.inputs[1] = self._at_run_time(node, edit, stage)
            return
        old = ints(node.inputs[1])
        dims = [
            d.size(self.space, stage.count, 1 if is_free(d.extent) else d.extent) for d in edit.dims
        ]
        loose = [
            n if n in (0, -1) and d.batch else s
            for n, d, s in zip(old, edit.dims, dims, strict=True)
        ]
        if node.op == "Reshape":
            node.attrs.pop("allowzero", None)
        node.inputs[1] = self.b.const(loose if node.op == "Reshape" else dims)

    def _at_run_time(self, node: gs.Node, edit: fx.SetShape, stage: TokenState) -> gs.Tensor:
        """A target that is computed from the batch: its batch dims are taken from the old one."""
        b, parts = self.b, []
        for i, dim in enumerate(edit.dims):
            tokens = dim.run is not None and dim.run.has_patches(self.space)
            if not dim.batch:
                parts.append(b.const([dim.size(self.space, stage.count, 1)]))
            elif tokens:
                raise InternalError("a batch of tokens is computed at run time", where=node.name)
            else:
                parts.append(b.slice(node.inputs[1], 0, i, i + 1, fp32=False))
        return b.op("Concat", *parts, dtype=np.int64, axis=0, fp32=False)

    def _offset(self, whole: fx.Run, part: fx.Run, count: int) -> int:
        return fx.Run(whole.first, part.first).size(self.space, count)

    def _slice(self, node: gs.Node, edit: fx.SetSlice, stage: TokenState) -> None:
        starts, ends = ints(node.inputs[1]), ints(node.inputs[2])
        given = len(node.inputs) > 3 and not node.inputs[3].is_empty()
        axes = ints(node.inputs[3]) if given else list(range(len(starts)))
        rank = len(node.inputs[0].shape)
        position = [a % rank for a in axes].index(edit.axis)
        starts[position] = self._offset(edit.whole, edit.part, stage.count)
        ends[position] = starts[position] + edit.part.size(self.space, stage.count)
        node.inputs[1], node.inputs[2] = self.b.const(starts), self.b.const(ends)

    def _split(self, node: gs.Node, edit: fx.SetSplit, stage: TokenState) -> None:
        sizes = self.b.const([p.size(self.space, stage.count) for p in edit.parts])
        node.attrs.pop("num_outputs", None)
        if len(node.inputs) > 1:
            node.inputs[1] = sizes
        else:
            node.inputs.append(sizes)

    def _gather(self, node: gs.Node, edit: fx.SetGather, stage: TokenState) -> None:
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

    def _trim(self, node: gs.Node, edit: fx.Trim, stage: TokenState) -> None:
        count = edit.dim.size(self.space, stage.count, 1)
        stored = node.inputs[edit.operand]
        rows = np.asarray(stored.values).take(np.arange(count), edit.axis)
        node.inputs[edit.operand] = self.b.const(rows, rows.dtype)

    # -- what merging needs ----------------------------------------------------------------------

    def _pool(self, node: gs.Node, edit: fx.Pool, stage: TokenState) -> None:
        """Mean over tokens → Σ s·x / Σ s; sum → Σ s·x."""
        b, x = self.b, node.inputs[edit.operand]
        rank, over = len(x.shape), [axis for _, axis in sums_over(node)]
        batch_axis = self.batch_axis(self.dense_inputs[node.name][edit.operand])
        sizes = sizes_on_run(b, self.space, stage, edit.run)
        if batch_axis is not None and batch_axis > edit.axis:
            sizes = b.transpose(sizes, [1, 0])
        around = [i for i in range(rank) if i not in (edit.axis, batch_axis)]
        if batch_axis is None:
            sizes = b.squeeze(sizes, 0)
        weights = b.unsqueeze(sizes, *around) if around else sizes
        if np.dtype(x.dtype).kind != "f":
            x = _as_floats(b, node, edit.operand)
        weighted = b.op("Mul", x, weights, dtype=x.dtype)
        node.inputs[edit.operand] = weighted
        b.fp32.add(node.name)
        if node.op in ("ReduceMean", "GlobalAveragePool"):
            mean = node.outputs[0]
            total = b.reduce("Mean", weights, over, int(attr(node, "keepdims", 1)))
            follow(b, node, mean, lambda raw: b.op("Div", raw, total, dtype=mean.dtype))

    def _bias(self, node: gs.Node, edit: fx.Bias, stage: TokenState) -> None:
        """logits += log size of each key (proportional attention)."""
        b = self.b
        (columns,) = fx.locate((edit.attention.columns,), self.space)
        if columns is None or columns.run is None:
            raise InternalError("an attention's keys are no tokens", where=node.name)
        key = f"log{columns.run}"
        if key not in stage.cache:
            sizes = sizes_on_run(b, self.space, stage, columns.run)
            stage.cache[key] = b.unsqueeze(b.op("Log", sizes), 1, 2)
            count = columns.run.size(self.space, stage.count)
            stage.cache[key].shape = [self.first, 1, 1, count]
        bias = stage.cache[key]
        if node.op == "Softmax":
            logits = node.inputs[0]
            joined = len(logits.shape) == 4 and logits.shape[0] == 1 and self.batch != 1
            if len(logits.shape) == 3 or joined:
                bias = self._per_head(bias, edit.attention.heads, columns.run, stage)
            if joined:
                bias = b.unsqueeze(bias, 0)
            node.inputs[0] = b.op("Add", logits, bias, dtype=logits.dtype, fp32=False)
            return
        if node.inputs[0].shape[0] == 1 and self.batch != 1:
            raise ModelError(
                "its attention has batch and heads on one axis, where merged tokens cannot be "
                "weighed",
                where=node.name,
                hint="export it with an opset of 22 or older, or with batch 1",
            )
        self.biased.add(node.name)
        mask = node.inputs[3] if len(node.inputs) > 3 else None
        if mask is not None and not mask.is_empty():
            if mask.dtype == np.bool_:
                low = b.const([np.finfo(np.float32).min], np.float32)
                allowed, mask = mask, b.op("Where", mask, b.const([0], np.float32), low)
                mask.shape = allowed.shape
            rows = mask.shape[-2] if len(mask.shape) > 1 else 1
            bias = b.op("Add", mask, bias, fp32=False)
            bias.shape = [self.first, 1, rows, columns.run.size(self.space, stage.count)]
        if len(node.inputs) > 3:
            node.inputs[3] = bias
        else:
            node.inputs.append(bias)

    def _per_head(self, bias: gs.Tensor, heads: int, run: fx.Run, stage: TokenState) -> gs.Tensor:
        """[B,1,1,N] → [(B h),1,N] for logits that merge batch and heads."""
        key = f"heads{run}"
        if key not in stage.cache:
            b = self.b
            spread = b.op("Add", bias, b.const(np.zeros((1, heads, 1, 1)), np.float32))
            count = run.size(self.space, stage.count)
            stage.cache[key] = b.reshape(spread, [-1, 1, count])
        return stage.cache[key]


def _as_floats(b: Builder, node: gs.Node, operand: int) -> gs.Tensor:
    """Let a sum of integers sum in floating point (sizes are); its result is cast back."""
    given, out = node.inputs[operand], node.outputs[0]
    node.inputs[operand] = b.cast(given, np.float32)
    node.inputs[operand].shape = given.shape
    node.outputs[0] = gs.Variable(b.name("summed"), np.float32)
    b.cast(node.outputs[0], np.dtype(out.dtype)).inputs[0].outputs[0] = out
    return node.inputs[operand]


def redirect(old: gs.Tensor, new: gs.Tensor, readers: list[gs.Node], graph: gs.Graph) -> None:
    """Let the readers, and the graph output if it is one, take the reduced stream."""
    replace_uses(old, new, readers)
    for i, out in enumerate(graph.outputs):
        if out is old:
            graph.outputs[i] = new
            old.name, new.name = f"{old.name}/dense", old.name
