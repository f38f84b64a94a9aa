"""Edits that merging needs: pools weighted by size, log sizes added to logits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis import effects as fx
from tcompile.analysis.counts import sums_over
from tcompile.analysis.token_dims import locate
from tcompile.core.errors import InternalError, ModelError
from tcompile.core.graph import attr, one_image
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.edit_state import Editor
from tcompile.passes.reduce.token_state import TokenState, sizes_on_run


def pool(editor: Editor, node: gs.Node, edit: fx.Pool, stage: TokenState) -> None:
    """Mean over tokens → Σ s·x / Σ s; sum → Σ s·x. Without sizes, as it is."""
    if stage.size is None:
        return
    b, x = editor.b, node.inputs[edit.operand]
    rank, over = len(x.shape), [axis for _, axis in sums_over(node)]
    batch_axis = editor.batch_axis(editor.dense_inputs[node.name][edit.operand])
    sizes = sizes_on_run(b, editor.space, stage, edit.run)
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


def _as_floats(b: Builder, node: gs.Node, operand: int) -> gs.Tensor:
    """Let a sum of integers sum in floating point (sizes are); its result is cast back."""
    given, out = node.inputs[operand], node.outputs[0]
    node.inputs[operand] = b.cast(given, np.float32)
    node.inputs[operand].shape = given.shape
    node.outputs[0] = gs.Variable(b.name("summed"), np.float32)
    b.cast(node.outputs[0], np.dtype(out.dtype)).inputs[0].outputs[0] = out
    return node.inputs[operand]


def follow(
    b: Builder, node: gs.Node, out: gs.Tensor, write: Callable[[gs.Tensor], gs.Tensor]
) -> None:
    """Put what `write` makes of the node's result in the place of its result."""
    raw = gs.Variable(b.name("raw"), out.dtype)
    node.outputs[0] = raw
    b.fp32.add(node.name)
    made = write(raw)
    made.inputs[0].outputs[0] = out


def bias(editor: Editor, node: gs.Node, edit: fx.Bias, stage: TokenState) -> None:
    """logits += log size of each key (proportional attention), where the method asks for it."""
    if stage.size is None or not stage.prop_attn:
        return
    b = editor.b
    (columns,) = locate((edit.attention.seen,), editor.space)
    if columns is None or columns.run is None:
        raise InternalError("an attention's keys are not tokens", where=node.name)
    count = columns.size(editor.space, stage.count, 1)
    key = f"log{columns.run}{columns.others}"
    if key not in stage.cache:
        sizes = b.op("Log", sizes_on_run(b, editor.space, stage, columns.run))
        if columns.others != (0, 0):  # learned keys and sinks stand for themselves
            before, behind = columns.others
            zero = b.const([0], np.float32)
            sizes = b.op("Pad", sizes, b.const([0, before, 0, behind]), zero)
        stage.cache[key] = b.unsqueeze(sizes, 1, 2)
        stage.cache[key].shape = [editor.first, 1, 1, count]
    logs = stage.cache[key]
    joined = node.inputs[0].shape[0] == 1 and editor.batch != 1  # batch and heads on one axis
    if node.op == "Softmax":
        logits = node.inputs[0]
        joined = joined and len(logits.shape) == 4
        if len(logits.shape) == 3 or joined:
            logs = _per_head(b, logs, edit.attention.heads, count, stage, f"heads{key}")
        if joined:
            logs = b.unsqueeze(logs, 0)
        rank = len(logits.shape)
        if rank == 2:
            logs = b.reshape(logs, [1, count])
        place = int(attr(node, "axis", -1)) % rank
        if place < rank - 1:  # heads behind the keys
            order = list(range(rank - 1))
            logs = b.transpose(logs, [*order[:place], rank - 1, *order[place:]])
        node.inputs[0] = b.op("Add", logits, logs, dtype=logits.dtype, fp32=False)
        return
    if joined:
        raise ModelError(
            "its attention has batch and heads on one axis, where merged tokens cannot be weighed",
            where=node.name,
            hint=f"export it with an opset of 22 or older, or {one_image(editor.b.graph)}",
        )
    editor.biased.add(node.name)
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    if mask is not None and not mask.is_empty():
        if mask.dtype == np.bool_:
            low = b.const([np.finfo(np.float32).min], np.float32)
            allowed, mask = mask, b.op("Where", mask, b.const([0], np.float32), low)
            mask.shape = allowed.shape
        rows = mask.shape[-2] if len(mask.shape) > 1 else 1
        logs = b.op("Add", mask, logs, fp32=False)
        logs.shape = [editor.first, 1, rows, count]
    if len(node.inputs) > 3:
        node.inputs[3] = logs
    else:
        node.inputs.append(logs)


def _per_head(
    b: Builder, logs: gs.Tensor, heads: int, count: int, stage: TokenState, key: str
) -> gs.Tensor:
    """[B,1,1,N] → [(B h),1,N] for logits that merge batch and heads."""
    if key not in stage.cache:
        spread = b.op("Add", logs, b.const(np.zeros((1, heads, 1, 1)), np.float32))
        stage.cache[key] = b.reshape(spread, [-1, 1, count])
    return stage.cache[key]
