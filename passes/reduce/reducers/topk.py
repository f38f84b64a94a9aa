"""R1: keep the best tokens in their order, drop the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.passes.reduce.reducers.common import choose, compose_owner, take
from tcompile.passes.reduce.stage import Stage

if TYPE_CHECKING:
    from tcompile.passes.reduce.reducers import ReducerInput


def topk(given: ReducerInput) -> tuple[gs.Tensor, Stage]:
    """x' = [prefix | x_S | suffix], S = the K best, ascending.

    For restored outputs a dropped token is represented by the kept one nearest in cosine here.
    """
    b, before = given.b, given.stage
    index = choose(given, given.keep)
    patches = given.of_patches(given.x, fp32=False)
    kept = b.call("TcGatherTokens", patches, index, dtypes=[given.x.dtype], fp32=False)[0]
    slots = b.const(np.arange(given.keep))
    step = b.call("TcNearestTokens", patches, index, slots, dtypes=[np.int64])[0]
    after = Stage(
        given.keep,
        index=take(b, before.index, index),
        size=None if before.size is None else take(b, before.size, index),
        owner=compose_owner(b, before.owner, step),
        positioned=before.positioned,
        prop_attn=before.prop_attn,
    )
    return given.joined(kept, fp32=False), after
