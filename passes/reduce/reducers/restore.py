"""U1 to U5: every token is back, so that what follows sees the whole map (Cropr, IdleViT, ALGM)."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.parameters import Parameter
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.reducers.base import Ask, Grid, Reducer, ReducerInput
from tcompile.passes.reduce.reducers.common import rows
from tcompile.passes.reduce.token_state import TokenState

FILLS = ("stale", "owner", "mean", "zero", "upsample")


def give_back(inputs: ReducerInput) -> tuple[gs.Tensor, TokenState]:
    """[prefix | T0 patches in their first order | suffix]; a token that had left is, by `fill`,

    * `stale`: what it was when it left (U2; before the last block: U3, Cropr's last-layer fusion);
    * `owner`: a copy of the token that stands for it (U1); `mean`: the mean of those left (U4);
    * `zero` (U4); `upsample`: interpolated from the grid that is left, bilinear (U5).
    """
    b, state, fill = inputs.builder, inputs.state, inputs.parameters["fill"]
    after = TokenState(inputs.dense_count)
    patches = inputs.of_patches(inputs.x, fp32=False)
    if fill == "upsample":
        return inputs.joined(_upsampled(inputs, patches), fp32=False), after
    if fill == "owner":
        assert state.owner is not None
        full = rows(b, patches, state.owner, fp32=False)
        return inputs.joined(full, fp32=False), after
    if fill == "stale":
        assert inputs.last_values is not None
        base = inputs.last_values
    else:
        one = b.reduce("Mean", patches, [1], 1)
        if fill == "zero":
            # Whole numbers: a NaN minus itself is not 0.
            corner = b.cast(b.corner(inputs.x), np.float32)
            one = b.unsqueeze(b.op("Mul", corner, b.const([0], np.float32)), 2)
        shape = (1, inputs.dense_count, inputs.width if fill == "zero" else 1)
        base = b.op("Add", one, b.const(np.zeros(shape), np.float32))
    return inputs.joined(put(b, base, patches, state, inputs.dense_count)), after


def put(b: Builder, full: gs.Tensor, kept: gs.Tensor, state: TokenState, total: int) -> gs.Tensor:
    """[B, T0, C]: `full` with the rows of `kept` [B, K, C] where each of them was at first; a token
    without a position is in no place."""
    index = state.index
    if index is None:
        return kept
    place = index
    if not state.positioned:
        lost = b.op("Less", index, [0], dtype=np.bool_)
        place = b.op("Where", lost, [total], index, dtype=np.int64)
    nothing = b.op("Mul", b.slice(index, 1, 0, 1), [0], dtype=np.int64)
    stay = b.op("Add", nothing, b.const(state.count + np.arange(total + 1)[None]), dtype=np.int64)
    none = b.op("Sub", index, index, dtype=np.int64)
    slots = b.op("Add", none, b.const(np.arange(state.count)), dtype=np.int64)
    source = b.op("ScatterElements", stay, place, slots, dtype=np.int64, axis=1)
    both = b.concat([kept, full], 1, fp32=False)
    source = b.slice(source, 1, 0, total)
    return rows(b, both, source, fp32=False)


def _upsampled(inputs: ReducerInput, patches: gs.Tensor) -> gs.Tensor:
    """Bilinear, with the corners of pixels aligned as in image resizing (half_pixel)."""
    b, (h, w), (h0, w0) = inputs.builder, inputs.grid, inputs.dense_grid
    image = b.reshape(b.transpose(patches, [0, 2, 1]), [0, 0, h, w])
    scales = b.const([1, 1, h0 / h, w0 / w], np.float32)
    nothing = gs.Variable.empty()
    large = b.op(
        "Resize", image, nothing, scales, mode="linear", coordinate_transformation_mode="half_pixel"
    )
    return b.transpose(b.reshape(large, [0, 0, h0 * w0]), [0, 2, 1])


def _problem(ask: Ask) -> str:
    if ask.parameters["fill"] == "upsample" and len(ask.grid) != 2:
        return "fill=upsample needs tokens that still are a grid of rows and columns"
    return ""


def _grid(ask: Ask) -> Grid:
    return ask.dense_grid


REDUCER = Reducer(
    "return",
    give_back,
    {"fill": Parameter(str, "stale", "what a token that had left is", FILLS)},
    scored=False,
    returns=True,
    problem=_problem,
    grid=_grid,
)
