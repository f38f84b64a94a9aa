"""Applying the edits of `analysis.effects`: the one place that says how each is applied."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from tcompile.analysis import effects as fx
from tcompile.core.errors import assert_never
from tcompile.core.graph import replace_uses
from tcompile.passes.reduce.edit_state import Editor
from tcompile.passes.reduce.recount import recount, rescale
from tcompile.passes.reduce.set_shapes import set_gather, set_shape, set_slice, set_split, trim
from tcompile.passes.reduce.side_inputs import gather_side, regroup_views, reorder, restore
from tcompile.passes.reduce.token_state import TokenState
from tcompile.passes.reduce.weigh import bias, pool


def apply(editor: Editor, node: gs.Node, edit: fx.Edit, stage: TokenState) -> None:
    """Apply one edit in place; `stage` is that of the node's inputs."""
    editor.b.scope(node.name.strip("/"))
    match edit:
        case fx.SetShape():
            set_shape(editor, node, edit, stage)
        case fx.SetSlice():
            set_slice(editor, node, edit, stage)
        case fx.SetSplit():
            set_split(editor, node, edit, stage)
        case fx.SetGather():
            set_gather(editor, node, edit, stage)
        case fx.Trim():
            trim(editor, node, edit, stage)
        case fx.Side():
            gather_side(editor, node, edit, stage)
        case fx.Restore():
            restore(editor, node, edit, stage)
        case fx.Regroup():
            regroup_views(editor, node, edit, stage)
        case fx.Reorder():
            reorder(editor, node, edit, stage)
        case fx.Rescale():
            rescale(editor, node, edit, stage)
        case fx.Recount():
            recount(editor, node, edit, stage)
        case fx.Pool():
            pool(editor, node, edit, stage)
        case fx.Bias():
            bias(editor, node, edit, stage)
        case _:
            assert_never(edit)


def redirect(old: gs.Tensor, new: gs.Tensor, readers: list[gs.Node], graph: gs.Graph) -> None:
    """Let the readers, and the graph output if it is one, take the reduced stream."""
    replace_uses(old, new, readers)
    for i, out in enumerate(graph.outputs):
        if out is old:
            graph.outputs[i] = new
            old.name, new.name = f"{old.name}/dense", old.name
