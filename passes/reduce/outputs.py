"""Outputs with a token axis: reduced with their index, or restored through the owner map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from tcompile.analysis.effects import SideAxis
from tcompile.analysis.model import Analysis
from tcompile.analysis.space import TokenSpace
from tcompile.analysis.token_dims import Dims, Part, Run, locate, span_of
from tcompile.core.errors import ModelError
from tcompile.core.graph import tensors_of
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.edit_state import Editor, literal_dims
from tcompile.passes.reduce.side_inputs import restored
from tcompile.passes.reduce.token_state import (
    TokenState,
    in_order,
    index_on_run,
    owner_on_run,
    sizes_on_run,
)


@dataclass(frozen=True)
class Carried:
    """An output with tokens: the axes that hold them, what they are, and their stage."""

    axis: int
    span: int
    run: Run
    part: Part
    stage: int
    order: str = ""


def token_outputs(
    editor: Editor,
    stages: Sequence[TokenState],
    outputs: Mapping[str, Carried],
    mode: str,
    label: str = "",
) -> dict[str, str]:
    """Finish every output that carries tokens; returns which `token_index` belongs to each.

    `reduced`: adds `token_index` [B, K] (−1: a fused token), and after merging `token_owner` [B, N]
    and `token_size` [B, K], each with `_LABEL` of its tower where it has one; further outputs of
    another depth or range get `_NAME` appended. Where
    tokens were only ever dropped, outputs of every depth have the tokens that are left at the end;
    a grid from before the first reduction stays whole.
    `restored`: each dense token gets the row of its owner, or what `restoring` gives it.
    """
    b, space = editor.b, editor.space
    named: dict[tuple[int, Run, Part, str], str] = {}
    told: dict[str, str] = {}
    dropped = all(s.positioned and s.size is None for s in stages)
    last = max((c.stage for c in outputs.values()), default=0)
    for name, place in outputs.items():
        b.scope(f"output/{name}", "output")
        stage = stages[place.stage]
        if mode == "restored":
            if place.stage:
                _restore(editor, name, stage)
            continue
        if dropped and place.stage < last and place.span == 1:
            _catch_up(editor, stages, name, place, last)
            stage = stages[last]
        elif place.stage == 0:
            continue
        key = (id(stage), place.run, place.part, place.order)
        if key in named:
            told[name] = named[key]
            continue
        suffix = (f"_{label}" if label else "") + (f"_{name}" if named else "")
        named[key] = told[name] = f"token_index{suffix}"
        if place.order:
            order = editor.order(place.order)
            _add_output(b, f"token_index{suffix}", in_order(b, space, stage, place.run, order)[0])
            if stage.size is not None:
                raise ModelError(
                    f"output '{name}' puts merged tokens in another order",
                    hint="build with --outputs restored",
                )
            continue
        index = index_on_run(b, space, stage, place.run, place.part)
        _add_output(b, f"token_index{suffix}", index)
        if stage.size is not None:
            _add_output(b, f"token_owner{suffix}", owner_on_run(b, space, stage, place.run))
            _add_output(b, f"token_size{suffix}", sizes_on_run(b, space, stage, place.run))
    return told


def _add_output(b: Builder, name: str, tensor: gs.Tensor) -> None:
    if name in tensors_of(b.graph):
        raise ModelError(
            f"it has a tensor named '{name}' of its own, which is what an output of tcompile's is "
            "called",
            hint="build with --outputs restored, or rename it",
        )
    out = gs.Variable(name, tensor.dtype)
    b.graph.nodes.append(gs.Node("Identity", b.name(name), {}, [tensor], [out]))
    b.fp32.add(b.graph.nodes[-1].name)
    b.graph.outputs.append(out)


def _replace(editor: Editor, name: str, new: gs.Tensor, old: gs.Tensor) -> None:
    """Let the output be another tensor under the same name; its shape is inferred anew."""
    old.name = editor.b.name("inner")
    out = gs.Variable(name, old.dtype)
    node = gs.Node("Identity", editor.b.name(name), {}, [new], [out])
    editor.b.graph.nodes.append(node)
    position = next(i for i, t in enumerate(editor.b.graph.outputs) if t is old)
    editor.b.graph.outputs[position] = out


def _restore(editor: Editor, name: str, stage: TokenState) -> None:
    old = next(t for t in editor.b.graph.outputs if t.name == name)
    _replace(editor, name, restored(editor, old, name, stage), old)


def _catch_up(
    editor: Editor, stages: Sequence[TokenState], name: str, place: Carried, last: int
) -> None:
    """Take from an output of an earlier depth the tokens that are left at the end."""
    b = editor.b
    old = next(t for t in b.graph.outputs if t.name == name)
    if place.order and place.stage == 0:
        order = editor.order(place.order)
        index, _ = in_order(b, editor.space, stages[last], place.run, order)
    elif place.stage == 0:
        index = index_on_run(b, editor.space, stages[last], place.run, place.part)
    else:
        index = _since(editor, stages, place, last)
    side = SideAxis(place.axis, place.run, place.part, place.span)
    axes, count = editor.facts.axes[name], editor.size_at(side, stages[last].count)
    new = editor.moved(old, axes, [side], [index], [count], literal_dims(old))
    _replace(editor, name, new, old)


def _since(editor: Editor, stages: Sequence[TokenState], place: Carried, last: int) -> gs.Tensor:
    """[B, n]: where the tokens left at the end are in a run of an earlier stage."""
    b, space = editor.b, editor.space
    if place.part == "groups":
        raise ModelError(
            "outputs of several depths join groups of tokens", hint="reduce once, or restored"
        )
    found: gs.Tensor | None = None
    for number in range(last, place.stage, -1):
        before = stages[number - 1]
        step = index_on_run(b, space, stages[number], place.run, "tokens", before)
        found = (
            step if found is None else b.op("GatherElements", step, found, dtype=step.dtype, axis=1)
        )
    assert found is not None
    return found


def carries_patches(tensor: gs.Tensor, analysis: Analysis) -> bool:
    """Return whether a tensor of the dense graph holds patches of the analysis's tower."""
    dims = locate(analysis.facts.of(tensor), analysis.space)
    return carried(dims, analysis.space, 0) is not None


def carried(dims: Dims, space: TokenSpace, stage: int) -> Carried | None:
    """The place of the patches in an output; None where it carries none."""
    for axis, dim in enumerate(dims):
        if dim is not None and dim.run is not None and dim.has_patches(space):
            return Carried(axis, span_of(dims, axis), dim.run, dim.part, stage, dim.order)
    return None
