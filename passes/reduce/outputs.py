"""Outputs with a token axis: reduced with their index, or restored through the owner map."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis.effects import Dim, Run
from tcompile.analysis.structure import TokenSpace
from tcompile.errors import ModelError, UsageError
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.stage import Stage, index_on_run, owner_on_run, sizes_on_run


def token_outputs(
    b: Builder,
    space: TokenSpace,
    outputs: Mapping[str, tuple[int, Run, Stage, int | None]],
    mode: str,
) -> None:
    """Finish every output that carries reduced tokens.

    `reduced`: adds `token_index` [B, K] (−1: a fused token), and after merging `token_owner` [B, N]
    and `token_size` [B, K]; further outputs of another depth or range get `_NAME` appended.
    `restored`: each dense token gets the row of its owner.

    Args:
        outputs: output name → (token axis, run, stage, batch axis).
    """
    named: dict[tuple[int, Run], str] = {}
    for name, (axis, run, stage, batch_axis) in outputs.items():
        b.scope(f"output/{name}")
        if mode == "restored":
            _restore(b, space, name, axis, run, stage, batch_axis)
            continue
        key = (id(stage), run)
        if key in named:
            continue
        suffix = f"_{name}" if named else ""
        named[key] = name
        _add_output(b, f"token_index{suffix}", index_on_run(b, space, stage, run))
        if stage.size is not None:
            _add_output(b, f"token_owner{suffix}", owner_on_run(b, space, stage, run))
            _add_output(b, f"token_size{suffix}", sizes_on_run(b, space, stage, run))


def _add_output(b: Builder, name: str, tensor: gs.Tensor) -> None:
    if name in b.graph.tensors():
        raise ModelError(
            f"it has a tensor named '{name}' of its own, which is what an output of tcompile's is "
            "called",
            hint="rename it, or build with --outputs restored",
        )
    out = gs.Variable(name, tensor.dtype)
    b.graph.nodes.append(gs.Node("Identity", b.name(name), {}, [tensor], [out]))
    b.fp32.add(b.graph.nodes[-1].name)
    b.graph.outputs.append(out)


def _restore(
    b: Builder,
    space: TokenSpace,
    name: str,
    axis: int,
    run: Run,
    stage: Stage,
    batch_axis: int | None,
) -> None:
    position = next(i for i, t in enumerate(b.graph.outputs) if t.name == name)
    reduced = b.graph.outputs[position]
    rank = len(reduced.shape)
    if rank != 3 or (batch_axis is None and reduced.shape[0 if axis else 1] != 1):
        raise UsageError(
            f"output '{name}' has no [batch, tokens, features] form and cannot be restored",
            where="--outputs",
        )
    batch_axis = (0 if axis else 1) if batch_axis is None else batch_axis
    perm = [batch_axis, axis, 3 - batch_axis - axis]
    reduced.name = b.name("reduced")
    rows = b.transpose(reduced, perm, fp32=False)
    owner = owner_on_run(b, space, stage, run)
    full = b.call("TcGatherTokens", rows, owner, dtypes=[reduced.dtype], fp32=False)[0]
    inverse = [int(i) for i in np.argsort(perm)]
    out = b.transpose(full, inverse, fp32=False)
    out.name = name
    b.graph.outputs[position] = out


def carried(dims: tuple[Dim | None, ...], space: TokenSpace) -> tuple[int, Run] | None:
    """(axis, run) of the first axis that carries patches."""
    for axis, dim in enumerate(dims):
        if dim is not None and dim.run is not None and dim.run.patches(space):
            return axis, dim.run
    return None
