"""Axes and edits of the analysis in words."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.axes import Axis
from tcompile.analysis.effects import (
    Bias,
    Dim,
    Edit,
    Pool,
    Recount,
    Regroup,
    Reorder,
    Rescale,
    Restore,
    Run,
    SetGather,
    SetShape,
    SetSlice,
    SetSplit,
    Side,
    Trim,
)
from tcompile.analysis.structure import TokenSpace


def axis_words(dim: Dim | None, axis: Axis, space: TokenSpace) -> str:
    """What a dim runs over: `all 197 tokens`, `batch`, `features`."""
    if dim is None:
        return f"cuts through the tokens: {ax.show(axis)}"
    if dim.part == "rest":
        return "the grid's other side"
    parts = ["batch"] if dim.batch else []
    if dim.run is not None:
        parts.append(_run(dim.run, space) if dim.part == "tokens" else "groups of patches")
        parts += [str(dim.factor)] if dim.factor > 1 else []
    elif ax.size(axis) > 1 and not dim.batch:
        weak = all(d.root.kind == "weak" for d in axis)
        parts.append("features" if weak else ax.show(axis))
    elif dim.factor > 1:
        parts.append(str(dim.factor))
    return " × ".join(parts) or "1"


def _run(run: Run, space: TokenSpace) -> str:
    count = run.size(space, space.patches)
    if run.first == 0 and run.last == len(space.pieces):
        return f"all {count} tokens"
    if not run.has_patches(space):
        return f"{count} fixed tokens"
    alone = (run.first, run.last) == (space.patch, space.end)
    return f"{count} patches" if alone else f"{count} tokens, patches among them"


def edit_words(edit: Edit, node: gs.Node, space: TokenSpace) -> str:
    """An edit in words."""
    if isinstance(edit, SetShape):
        dims = ", ".join(_target(d, space) for d in edit.dims)
        return f"its target shape becomes [{dims}]"
    if isinstance(edit, SetSlice):
        return f"takes {_run(edit.part, space)} of {_run(edit.whole, space)} along axis {edit.axis}"
    if isinstance(edit, SetSplit):
        return f"splits into {' | '.join(_run(r, space) for r in edit.parts)}"
    if isinstance(edit, SetGather):
        what = _run(edit.part, space) if edit.part else f"positions {list(edit.positions)}"
        return f"takes {what} of {_run(edit.whole, space)}"
    if isinstance(edit, Side):
        axes = ", ".join(str(a.axis) for a in edit.axes)
        fused = "" if edit.fill is None else f"; a fused token reads {edit.fill:g}"
        tensor = node.inputs[edit.operand].name
        return f"the rows of '{tensor}' follow the tokens that stay, along axis {axes}{fused}"
    if isinstance(edit, Pool):
        return (
            f"pools {_run(edit.run, space)} along axis {edit.axis}, weighed by size after merging"
        )
    if isinstance(edit, Bias):
        return "its keys are fewer; after merging, log size is added to its logits"
    if isinstance(edit, Restore):
        return f"gets every token of '{node.inputs[edit.operand].name}' back before it reads it"
    if isinstance(edit, Reorder):
        return f"puts {_run(edit.run, space)} that are left in the order '{edit.order.name}'"
    if isinstance(edit, Trim):
        return f"its operand {edit.operand} is as long as there are tokens"
    if isinstance(edit, Recount):
        return f"its operand {edit.operand} is computed anew, from the mask of the tokens left"
    if isinstance(edit, Rescale):
        return "what it gives is scaled from the number of all tokens to that of those left"
    assert isinstance(edit, Regroup)
    pool = f", with the {edit.pool} of each group" if edit.pool else ""
    return f"ends a region of views, which becomes one view of '{edit.source}'{pool}"


def _target(dim: Dim, space: TokenSpace) -> str:
    parts = ["batch"] if dim.batch else []
    if dim.part == "rest":
        return "1"
    if dim.run is not None:
        kept = "kept" if dim.run.has_patches(space) else _run(dim.run, space)
        parts.append("kept groups" if dim.part == "groups" else kept)
    if dim.factor != 1 or not parts:
        parts.append(str(dim.factor))
    return " × ".join(parts)
