"""Rows of tensors beside the stream: side inputs gathered, tokens given back, other orders."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis import effects as fx
from tcompile.analysis.token_dims import locate, span_of
from tcompile.core.errors import ModelError, UsageError
from tcompile.core.graph import int_to_dim
from tcompile.passes.reduce.edit_state import Editor, literal_dims
from tcompile.passes.reduce.gather_rows import regroup
from tcompile.passes.reduce.token_state import (
    TokenState,
    in_order,
    index_on_run,
    owner_in_order,
    owner_on_run,
)

# ---- side inputs ---------------------------------------------------------------------------------


def gather_side(editor: Editor, node: gs.Node, edit: fx.Side, stage: TokenState) -> None:
    """Let a side input have rows for the tokens that are left."""
    tensor = node.inputs[edit.operand]
    if not stage.positioned and edit.fill is None:
        raise UsageError(
            f"a fused token has no row in the side input '{tensor.name}' of "
            f"{node.op} '{node.name}'",
            where="--method",
            hint="use a method without fused tokens, such as topk",
        )
    # The mask of an Attention meets its logits [B, h, rows, columns], not its output.
    to_logits = node.op == "Attention"
    rank = 4 if to_logits else len(node.outputs[0].shape)
    batch_axis = 0 if to_logits else editor.batch_axis(node.outputs[0].name)
    axes = editor.facts.axes[node.outputs[0].name]
    if to_logits:
        # [B, h, rows, columns]; nothing else of them matters here.
        query = editor.facts.axes[editor.dense_inputs[node.name][0]]
        heads = query[1] if len(query) == 4 else ax.ONE
        axes = (query[0], heads, ax.ONE, ax.ONE)
    key = f"side/{tensor.name}/{edit.axes}/{rank}/{axes[:2]}/{edit.fill}"
    if key not in stage.cache:
        if edit.fill is not None and not stage.positioned:
            gathered = _with_own_row(editor, tensor, edit.axes[0], edit.fill, axes, stage)
        else:
            gathered = editor.left(tensor, axes, edit.axes, stage)
        # Scores that recompute rows of an attention must see whether a table has rows.
        gathered.shape = _gathered_shape(editor, tensor, edit, stage, rank, batch_axis)
        stage.cache[key] = gathered
    node.inputs[edit.operand] = stage.cache[key]


def _with_own_row(
    editor: Editor,
    tensor: gs.Tensor,
    place: fx.SideAxis,
    fill: float,
    axes: ax.Axes,
    stage: TokenState,
) -> gs.Tensor:
    """Rows of a table with one more row, which a fused token (index −1) reads."""
    b = editor.b
    index = index_on_run(b, editor.space, stage, place.run, place.part)
    table = np.asarray(tensor.values)
    row = np.full_like(table.take([0], place.axis), fill)
    longer = gs.Constant(b.name("table"), np.concatenate([table, row], place.axis))
    missing = b.op("Less", index, [0], dtype=np.bool_)
    last = b.const([table.shape[place.axis]])
    index = b.op("Where", missing, last, index, dtype=np.int64)
    count = editor.size_at(place, stage.count)
    return editor.moved(longer, axes, [place], [index], [count], literal_dims(longer))


def _gathered_shape(
    editor: Editor,
    tensor: gs.Tensor,
    edit: fx.Side,
    stage: TokenState,
    rank: int,
    batch_axis: int | None,
) -> list[int | str]:
    missing = 0 if editor.batch == 1 else rank - len(tensor.shape)
    dims: list[int | str] = [1] * missing + list(tensor.shape)
    for place in edit.axes:
        first = place.axis + missing
        dims[first : first + place.span] = [
            editor.size_at(place, stage.count),
            *[1] * (place.span - 1),
        ]
    if editor.batch != 1 and batch_axis is not None:
        dims[batch_axis] = editor.first
    return dims


# ---- every token again, and groups of them -------------------------------------------------------


def restore(editor: Editor, node: gs.Node, edit: fx.Restore, stage: TokenState) -> None:
    """Let an operand have a row for every token again."""
    tensor = node.inputs[edit.operand]
    key = f"restored/{tensor.name}"
    if key not in stage.cache:
        name = editor.dense_inputs[node.name][edit.operand]
        stage.cache[key] = restored(editor, tensor, name, stage)
    node.inputs[edit.operand] = stage.cache[key]


def restored(editor: Editor, tensor: gs.Tensor, name: str, stage: TokenState) -> gs.Tensor:
    """A row for every dense token: that of its owner, or what the rule gives it.

    Args:
        name: what the tensor is called in the dense graph.
    """
    if editor.whole is not None:
        return editor.whole(name)
    stage = editor.owners(stage)
    b, space, axes = editor.b, editor.space, editor.facts.axes[name]
    dims = locate(axes, space)
    sizes = [int(ax.size(a)) for a in axes]
    free = [i for i, a in enumerate(axes) if ax.has_batch(a)]
    found = editor.token_axes(axes)
    dim = dims[found[0].axis] if len(found) == 1 else None
    if dim is None or dim.run is None or dim.batch or dim.factor != 1:
        raise ModelError(f"'{name}' cannot get every token back: its layout is not known")
    place = found[0]
    span = span_of(dims, place.axis)
    if dim.order:
        owner = owner_in_order(b, space, stage, dim.run, editor.order(dim.order))
    else:
        owner = owner_on_run(b, space, stage, dim.run, dim.part)
    now = [0 if i in free else n for i, n in enumerate(sizes)]
    now[place.axis : place.axis + span] = [dim.size(space, stage.count, 1), *[1] * (span - 1)]
    count = dim.size(space, space.patches, 1)
    full = editor.moved(tensor, axes, [place], [owner], [count], now)
    if span > 1:
        goal = [-1 if i in free and editor.batch is None else n for i, n in enumerate(sizes)]
        full = b.reshape(full, goal, fp32=False)
    full.shape = [int_to_dim(n) for n in sizes]
    return full


def reorder(editor: Editor, node: gs.Node, edit: fx.Reorder, stage: TokenState) -> None:
    """Those that are left, in the order that the node puts all of them in."""
    _, now = in_order(editor.b, editor.space, stage, edit.run, edit.order)
    place = fx.SideAxis(edit.axis, edit.run, "groups" if edit.order.groups else "tokens")
    axes = editor.facts.axes[editor.dense_inputs[node.name][0]]
    count = editor.size_at(place, stage.count)
    dims = [0 if ax.has_batch(a) else int(ax.size(a)) for a in axes]
    dims[edit.axis] = count
    moved = editor.moved(node.inputs[0], axes, [place], [now], [count], dims)
    node.op, node.attrs, node.inputs = "Identity", {}, [moved]


def regroup_views(editor: Editor, node: gs.Node, edit: fx.Regroup, stage: TokenState) -> None:
    """Let the end of a region of views rearrange what the region begins with."""
    space, batch = editor.space, editor.batch or 1
    axes = (editor.facts.axes[edit.source], editor.facts.axes[node.outputs[0].name])
    dims = []
    for dim, axis in zip(locate(axes[1], space), axes[1], strict=True):
        size = dim.size(space, stage.count, 1) if dim else 0
        batched = ax.has_batch(axis)
        dims.append(-1 if batched and editor.batch is None else size * (batch if batched else 1))
    groups = stage.count // (space.grouping.members if space.grouping else 1)
    source = editor.current[edit.source]
    regroup(editor.b, node, source, axes, space, dims, groups, editor.batch or -1, edit.pool)
