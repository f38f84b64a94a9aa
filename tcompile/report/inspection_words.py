"""Axes and edits of the analysis in words."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis import effects as fx
from tcompile.analysis.axes import Axis
from tcompile.analysis.space import TokenSpace
from tcompile.analysis.token_dims import Dim, Run
from tcompile.core.errors import assert_never


def axis_words(dim: Dim | None, axis: Axis, space: TokenSpace) -> str:
    """The positions that a dim runs over: `all 197 tokens`, `batch`, `features`."""
    if dim is None:
        return f"cuts through the tokens: {ax.show(axis)}"
    if dim.part == "rest":
        return "the grid's other side"
    parts = ["batch"] if dim.batch else []
    if dim.run is not None:
        parts.append(_run(dim.run, space) if dim.part == "tokens" else "groups of patches")
        parts += [str(dim.factor)] if dim.factor > 1 else []
    elif ax.size(axis) > 1 and not dim.batch:
        untracked = all(d.root.kind == "untracked" for d in axis)
        parts.append("features" if untracked else ax.show(axis))
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


def edit_words(edit: fx.Edit, node: gs.Node, space: TokenSpace) -> str:
    """An edit in words: the one place that says how each is described."""
    match edit:
        case fx.SetShape(dims):
            return f"its target shape becomes [{', '.join(_target(d, space) for d in dims)}]"
        case fx.SetSlice(axis, whole, part):
            return f"takes {_run(part, space)} of {_run(whole, space)} along axis {axis}"
        case fx.SetSplit(parts):
            return f"splits into {' | '.join(_run(r, space) for r in parts)}"
        case fx.SetGather(whole, part, positions):
            what = _run(part, space) if part else f"positions {list(positions)}"
            return f"takes {what} of {_run(whole, space)}"
        case fx.Side(operand, places, _, fill):
            axes = ", ".join(str(a.axis) for a in places)
            fused = "" if fill is None else f"; a fused token reads {fill:g}"
            name = node.inputs[operand].name
            return f"the rows of '{name}' follow the tokens that stay, along axis {axes}{fused}"
        case fx.Pool(axis, run):
            return f"pools {_run(run, space)} along axis {axis}, weighed by size after merging"
        case fx.Bias():
            return "its keys are fewer; after merging, log size is added to its logits"
        case fx.Restore(operand):
            return f"gets every token of '{node.inputs[operand].name}' back before it reads it"
        case fx.Reorder(_, order, run):
            return f"puts {_run(run, space)} that are left in the order '{order.name}'"
        case fx.Trim(operand):
            return f"its operand {operand} is as long as there are tokens"
        case fx.Recount(operand):
            return f"its operand {operand} is computed anew, from the mask of the tokens left"
        case fx.Rescale():
            return "what it gives is scaled from the number of all tokens to that of those left"
        case fx.Regroup(source, pool):
            pooled = f", with the {pool} of each group" if pool else ""
            return f"ends a region of views, which becomes one view of '{source}'{pooled}"
        case _:
            return assert_never(edit)


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
