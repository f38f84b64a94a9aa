"""U1 to U5: every token is back, so that what follows sees the whole map (Cropr, IdleViT, ALGM)."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.parameters import Parameter
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.reducers.base import Ask, Grid, Reducer, ReducerInput
from tcompile.passes.reduce.token_state import TokenState

FILLS = ("stale", "owner", "mean", "zero", "upsample")


def give_back(given: ReducerInput) -> tuple[gs.Tensor, TokenState]:
    """[prefix | T0 patches in their first order | suffix]; a token that had left is, by `fill`,

    * `stale`: what it was when it left (U2; before the last block: U3, Cropr's last-layer fusion);
    * `owner`: a copy of the token that stands for it (U1); `mean`: the mean of those left (U4);
    * `zero` (U4); `upsample`: interpolated from the grid that is left, bilinear (U5).
    """
    b, stage, fill = given.b, given.stage, given.parameters["fill"]
    patches = given.of_patches(given.x, fp32=False)
    if fill == "upsample":
        return given.joined(_upsampled(given, patches), fp32=False), TokenState(given.patches)
    if fill == "owner":
        owner = stage.owner
        assert owner is not None
        full = b.call("TcGatherTokens", patches, owner, dtypes=[given.x.dtype], fp32=False)[0]
        return given.joined(full, fp32=False), TokenState(given.patches)
    if fill == "stale":
        assert given.full is not None
        base = given.full
    else:
        one = b.reduce("Mean", patches, [1], 1)
        if fill == "zero":
            # Of whole numbers, since a NaN minus itself is none.
            corner = b.cast(b.corner(given.x), np.float32)
            one = b.unsqueeze(b.op("Mul", corner, b.const([0], np.float32)), 2)
        shape = (1, given.patches, given.width if fill == "zero" else 1)
        base = b.op("Add", one, b.const(np.zeros(shape), np.float32))
    return given.joined(put(b, base, patches, stage, given.patches)), TokenState(given.patches)


def put(b: Builder, full: gs.Tensor, kept: gs.Tensor, stage: TokenState, total: int) -> gs.Tensor:
    """[B, T0, C]: `full` with the rows of `kept` [B, K, C] where each of them was at first; a token
    without a position is in no place."""
    index = stage.index
    if index is None:
        return kept
    place = index
    if not stage.positioned:
        lost = b.op("Less", index, [0], dtype=np.bool_)
        place = b.op("Where", lost, [total], index, dtype=np.int64)
    nothing = b.op("Mul", b.slice(index, 1, 0, 1), [0], dtype=np.int64)
    stay = b.op("Add", nothing, b.const(stage.count + np.arange(total + 1)[None]), dtype=np.int64)
    none = b.op("Sub", index, index, dtype=np.int64)
    slots = b.op("Add", none, b.const(np.arange(stage.count)), dtype=np.int64)
    source = b.op("ScatterElements", stay, place, slots, dtype=np.int64, axis=1)
    both = b.concat([kept, full], 1, fp32=False)
    source = b.slice(source, 1, 0, total)
    return b.call("TcGatherTokens", both, source, dtypes=[full.dtype], fp32=False)[0]


def _upsampled(given: ReducerInput, patches: gs.Tensor) -> gs.Tensor:
    """Bilinear, with the corners of pixels aligned as in image resizing (half_pixel)."""
    b, (h, w), (h0, w0) = given.b, given.grid, given.whole
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
    return ask.whole


REDUCER = Reducer(
    "return",
    give_back,
    {"fill": Parameter(str, "stale", "what a token that had left is", FILLS)},
    scored=False,
    returns=True,
    problem=_problem,
    grid=_grid,
)
