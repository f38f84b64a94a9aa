"""R7: the best tokens run through one block, the others pass it unchanged (IdleViT)."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.passes.reduce.reducers.base import Reducer, ReducerInput
from tcompile.passes.reduce.reducers.common import choose
from tcompile.passes.reduce.token_state import TokenState


def bypass(inputs: ReducerInput) -> tuple[gs.Tensor, TokenState]:
    """x' = [prefix | x_S | suffix], S = the K best, ascending; the map is put together again after
    the block, so a token that is not in S has no owner: any row may stand for it meanwhile.
    """
    b = inputs.builder
    index = choose(inputs, inputs.keep)
    patches = inputs.of_patches(inputs.x, fp32=False)
    kept = b.call("TcGatherTokens", patches, index, dtypes=[inputs.x.dtype], fp32=False)[0]
    first = b.slice(index, 1, 0, 1)
    zero = b.op("Sub", first, first, dtype=np.int64)
    nowhere = b.op("Add", zero, b.const(np.zeros((1, inputs.dense_count))), dtype=np.int64)
    slots = b.op(
        "Add",
        b.op("Sub", index, index, dtype=np.int64),
        b.const(np.arange(inputs.keep)),
        dtype=np.int64,
    )
    owner = b.op("ScatterElements", nowhere, index, slots, dtype=np.int64, axis=1)
    after = TokenState(inputs.keep, index=index, local=index, owner=owner)
    return inputs.joined(kept, fp32=False), after


REDUCER = Reducer("bypass", bypass, segments=True, around=True)
