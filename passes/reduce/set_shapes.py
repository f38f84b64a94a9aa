"""Edits of what a node says of shapes and places: target shapes, bounds, sizes, indices."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis import effects as fx
from tcompile.analysis.token_dims import Run
from tcompile.core.graph import ints, is_const, is_free
from tcompile.passes.reduce.edit_state import Editor
from tcompile.passes.reduce.token_state import TokenState


def set_shape(editor: Editor, node: gs.Node, edit: fx.SetShape, stage: TokenState) -> None:
    """Reshape or Expand to the tokens that are left."""
    if not is_const(node.inputs[1]):
        node.inputs[1] = _at_run_time(editor, node, edit, stage)
        return
    dims = [
        d.size(editor.space, stage.count, 1 if is_free(d.extent) else d.extent) for d in edit.dims
    ]
    if node.op == "Reshape":
        old = ints(node.inputs[1])
        dims = [
            n if n in (0, -1) and d.batch else s
            for n, d, s in zip(old, edit.dims, dims, strict=True)
        ]
        node.attrs.pop("allowzero", None)
    node.inputs[1] = editor.b.const(dims)


def _at_run_time(editor: Editor, node: gs.Node, edit: fx.SetShape, stage: TokenState) -> gs.Tensor:
    """A target that is computed from the batch: its batch dims are taken from the old one."""
    b, parts, space = editor.b, [], editor.space
    for i, dim in enumerate(edit.dims):
        if not is_free(dim.extent):
            parts.append(b.const([dim.size(space, stage.count, dim.extent)]))
            continue
        part = b.slice(node.inputs[1], 0, i, i + 1, fp32=False)
        if dim.has_patches(space):
            # As many batches as in the dense model, of the tokens that are left in each.
            dense, left = (b.const([dim.size(space, n, 1)]) for n in (space.patches, stage.count))
            part = b.op("Div", part, dense, dtype=np.int64, fp32=False)
            part = b.op("Mul", part, left, dtype=np.int64, fp32=False)
        parts.append(part)
    return b.op("Concat", *parts, dtype=np.int64, axis=0, fp32=False)


def _offset(editor: Editor, whole: Run, part: Run, count: int) -> int:
    return Run(whole.first, part.first).size(editor.space, count)


def set_slice(editor: Editor, node: gs.Node, edit: fx.SetSlice, stage: TokenState) -> None:
    """Slice the same part of the tokens that are left."""
    starts, ends = ints(node.inputs[1]), ints(node.inputs[2])
    given = len(node.inputs) > 3 and not node.inputs[3].is_empty()
    axes = ints(node.inputs[3]) if given else list(range(len(starts)))
    rank = len(node.inputs[0].shape)
    position = [a % rank for a in axes].index(edit.axis)
    starts[position] = edit.others[0] + _offset(editor, edit.whole, edit.part, stage.count)
    ends[position] = starts[position] + edit.part.size(editor.space, stage.count)
    node.inputs[1], node.inputs[2] = editor.b.const(starts), editor.b.const(ends)


def set_split(editor: Editor, node: gs.Node, edit: fx.SetSplit, stage: TokenState) -> None:
    """Split into as many as are left of each run."""
    space, count = editor.space, stage.count
    sizes = editor.b.const([p if isinstance(p, int) else p.size(space, count) for p in edit.parts])
    node.attrs.pop("num_outputs", None)
    if len(node.inputs) > 1:
        node.inputs[1] = sizes
    else:
        node.inputs.append(sizes)


def set_gather(editor: Editor, node: gs.Node, edit: fx.SetGather, stage: TokenState) -> None:
    """Gather the same run, or the same fixed tokens, of those that are left."""
    count, space = stage.count, editor.space
    if edit.part is not None:
        start = _offset(editor, edit.whole, edit.part, count)
        node.inputs[1] = editor.b.const(start + np.arange(edit.part.size(space, count)))
        return
    # Positions after the patches move up by what left.
    low = Run(edit.whole.first, space.patch).size(space, 0)
    moved = [p if p < low else p - space.patches + count for p in edit.positions]
    node.inputs[1] = editor.b.const(np.asarray(moved).reshape(list(node.inputs[1].shape)))


def trim(editor: Editor, node: gs.Node, edit: fx.Trim, stage: TokenState) -> None:
    """Let a stored operand be as long as there are tokens."""
    count = edit.dim.size(editor.space, stage.count, 1)
    stored = node.inputs[edit.operand]
    rows = np.asarray(stored.values).take(np.arange(count), edit.axis)
    node.inputs[edit.operand] = editor.b.const(rows, rows.dtype)
