"""Edits of what follows the number of tokens: literals rescaled, masks counted anew."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis import effects as fx
from tcompile.analysis.counts import sums_over
from tcompile.analysis.token_dims import Dim, locate
from tcompile.core.errors import ModelError
from tcompile.core.graph import int_to_dim, is_const, one_image, producer
from tcompile.core.op_traits import BROADCASTS
from tcompile.passes.reduce.edit_state import Editor
from tcompile.passes.reduce.set_shapes import set_shape
from tcompile.passes.reduce.token_state import TokenState, index_on_run, sizes_on_run
from tcompile.passes.reduce.weigh import follow, pool


def rescale(editor: Editor, node: gs.Node, edit: fx.Rescale, stage: TokenState) -> None:
    """Multiply a node's result by the ratio of a count now and in the dense model."""
    summed = edit.summed
    masked = summed.weights is not None and any(f.base == "weights" for f in edit.factors)
    if not masked and stage.size is None:
        _by_number(editor, node, edit, _ratio(editor, edit, stage))
        return
    sums: dict[str, gs.Tensor] = {}
    total: gs.Tensor | None = None
    number = 1.0
    for factor in edit.factors:
        power = float(factor.power)
        before = summed.count(factor.base, editor.space) + factor.offset
        if factor.base == "size" and stage.size is None:
            after = _size(editor, summed, stage)
            number *= ((after + factor.offset) / before) ** power
            continue
        if factor.base not in sums:
            made = _mask_sum if factor.base == "weights" else _size_sum
            sums[factor.base] = made(editor, summed, stage)
        part = editor.b.op("Mul", sums[factor.base], editor.b.const([summed.terms], np.float32))
        if factor.offset:
            part = editor.b.op("Add", part, editor.b.const([factor.offset], np.float32))
        part = editor.b.op("Div", part, editor.b.const([before], np.float32))
        if power != 1:
            part = editor.b.op("Pow", part, editor.b.const([power], np.float32))
        total = part if total is None else editor.b.op("Mul", total, part)
    assert total is not None
    if number != 1:
        total = editor.b.op("Mul", total, editor.b.const([number], np.float32))
    out = node.outputs[0]
    ratio = _for_images(editor, total, out)
    if np.dtype(out.dtype) != np.float32:
        ratio = editor.b.cast(ratio, out.dtype)
    follow(editor.b, node, out, lambda raw: editor.b.op("Mul", raw, ratio, dtype=out.dtype))


def _size(editor: Editor, summed: fx.Summed, stage: TokenState) -> float:
    return float(summed.dim.size(editor.space, stage.count, 1) * summed.terms)


def _ratio(editor: Editor, edit: fx.Rescale, stage: TokenState) -> float:
    ratio = 1.0
    for factor in edit.factors:
        before = edit.summed.count(factor.base, editor.space) + factor.offset
        after = _size(editor, edit.summed, stage) + factor.offset
        if after <= 0:
            raise ModelError(
                "divides by the number of tokens less one, and one is left", hint="keep more tokens"
            )
        ratio *= (after / before) ** float(factor.power)
    return ratio


def _by_number(editor: Editor, node: gs.Node, edit: fx.Rescale, ratio: float) -> None:
    """Into the literal where there is one, else behind the node."""
    stored = node.inputs[edit.operand] if edit.operand is not None else None
    if edit.operand is not None and stored is not None and is_const(stored):
        values = np.asarray(stored.values)
        if values.dtype.kind == "f":
            scaled = values / ratio if edit.inverse else values * ratio
            node.inputs[edit.operand] = editor.b.const(scaled, values.dtype)
            return
    out = node.outputs[0]
    factor = editor.b.const([ratio], out.dtype)
    follow(editor.b, node, out, lambda raw: editor.b.op("Mul", raw, factor, dtype=out.dtype))


def _mask_sum(editor: Editor, summed: fx.Summed, stage: TokenState) -> gs.Tensor:
    """[B] sum of a constant mask over the tokens that are left, each by its size."""
    b = editor.b
    assert summed.weights is not None
    run = summed.dim.run
    assert run is not None
    index = index_on_run(b, editor.space, stage, run, summed.dim.part)
    kept = b.op("Gather", b.const(summed.weights, np.float32), index, axis=0)
    if stage.size is not None:
        kept = b.op("Mul", kept, sizes_on_run(b, editor.space, stage, run))
    return b.reduce("Sum", kept, [1])


def _size_sum(editor: Editor, summed: fx.Summed, stage: TokenState) -> gs.Tensor:
    """[B] how many tokens those that are left stand for: fewer than there were, where some were
    dropped or sizes grow by less."""
    assert summed.dim.run is not None
    return editor.b.reduce("Sum", sizes_on_run(editor.b, editor.space, stage, summed.dim.run), [1])


def _for_images(editor: Editor, numbers: gs.Tensor, like: gs.Tensor) -> gs.Tensor:
    """A number for each image, so that it multiplies a tensor."""
    place = editor.batch_axis(like.name)
    rank = len(editor.facts.axes[like.name])
    if place is None and editor.batch != 1:
        raise ModelError(
            f"'{like.name}' merges the batch with another axis, so each image cannot have a "
            "count of its own there",
            hint=one_image(editor.b.graph),
        )
    if place is None:
        return editor.b.reshape(numbers, [1] * rank) if rank else editor.b.reshape(numbers, [])
    return editor.b.reshape(numbers, [-1 if i == place else 1 for i in range(rank)])


def recount(editor: Editor, node: gs.Node, edit: fx.Recount, stage: TokenState) -> None:
    """Compute an operand anew, from a mask of the tokens that are left."""
    name = editor.dense_inputs[node.name][edit.operand]
    node.inputs[edit.operand] = _anew(editor, name, stage)


def _anew(editor: Editor, name: str, stage: TokenState) -> gs.Tensor:
    """A dense tensor beside the stream, computed from the rows of the tokens that are left."""
    key = f"anew/{name}"
    if key not in stage.cache:
        stage.cache[key] = _copied(editor, name, stage)
    return stage.cache[key]


def _copied(editor: Editor, name: str, stage: TokenState) -> gs.Tensor:
    tensor = editor.current[name]
    if name not in editor.counts.beside:
        return _left(editor, name, tensor, stage)
    maker = producer(tensor)
    if maker is None:
        return tensor
    inputs: list[gs.Tensor] = []
    for source in maker.inputs:
        if source.is_empty():
            inputs.append(source)
        elif is_const(source) or source.name not in editor.facts.live:
            table = is_const(source) and maker.op in BROADCASTS
            inputs.append(_rows(editor, source, name, stage) if table else source)
        else:
            inputs.append(_anew(editor, source.name, stage))
    outputs = [
        gs.Variable(editor.b.name(t.name.strip("/")), t.dtype, t.shape) for t in maker.outputs
    ]
    out = outputs[[t.name for t in maker.outputs].index(tensor.name)]
    copy = gs.Node(
        maker.op,
        editor.b.name(f"{maker.name.strip('/')}/left"),
        dict(maker.attrs),
        inputs,
        outputs,
        maker.domain,
    )
    editor.b.graph.nodes.append(copy)
    editor.dense_inputs[copy.name] = [str(t.name) for t in maker.inputs]
    # Its result stands for the dense one where an edit looks for the axes of it.
    editor.facts.axes[out.name] = editor.facts.axes[name]
    if maker.name in editor.counts.summed and sums_over(maker):
        if stage.size is not None:
            _weigh(editor, copy, editor.counts.summed[maker.name].dim, stage)
    elif copy.op in ("Reshape", "Expand"):
        dims_of = locate(editor.facts.axes[name], editor.space)
        edit = fx.SetShape(tuple(d for d in dims_of if d is not None))
        editor.b.scope(copy.name.strip("/"))
        set_shape(editor, copy, edit, stage)
    scaled = editor.counts.rescales.get(maker.name)
    if scaled is not None:
        rescale(editor, copy, scaled, stage)
    out.shape = _shape_now(editor, name, stage)
    return out


def _weigh(editor: Editor, node: gs.Node, dim: Dim, stage: TokenState) -> None:
    """Let a sum of a mask count merged tokens by their sizes."""
    axes = editor.facts.axes[editor.dense_inputs[node.name][0]]
    axis = locate(axes, editor.space).index(dim)
    assert dim.run is not None
    editor.b.scope(node.name.strip("/"))
    pool(editor, node, fx.Pool(axis, dim.run), stage)


def _rows(editor: Editor, table: gs.Tensor, name: str, stage: TokenState) -> gs.Tensor:
    """The rows of a stored table that belong to the tokens that are left, where a dense tensor is
    made from it position by position."""
    axes = editor.facts.axes[name]
    behind = len(axes) - len(table.shape)
    places = [
        replace(p, axis=p.axis - behind)
        for p in editor.token_axes(axes)
        if p.axis >= behind and table.shape[p.axis - behind] > 1
    ]
    return editor.left(table, axes, places, stage) if places else table


def _left(editor: Editor, name: str, tensor: gs.Tensor, stage: TokenState) -> gs.Tensor:
    """The rows of a tensor with every token of those that are left; as it is where it has
    none."""
    axes = editor.facts.axes[name]
    places = editor.token_axes(axes)
    if not places:
        return tensor
    moved = editor.left(tensor, axes, places, stage)
    moved.shape = _shape_now(editor, name, stage)
    return moved


def _shape_now(editor: Editor, name: str, stage: TokenState) -> list[int | str]:
    """Dims of a dense tensor once tokens have left."""
    dims = locate(editor.facts.axes[name], editor.space)
    return [int_to_dim(d.size(editor.space, stage.count, d.extent) if d else 0) for d in dims]
