"""One token that stands for all that leave."""

from __future__ import annotations

import numpy as np

from tcompile.plugins.spec import Array, TokenOp


def _fuse(x: Array, weight: Array, index: Array) -> tuple[Array, ...]:
    left = np.ones(weight.shape, bool)
    np.put_along_axis(left, index, False, axis=1)
    with np.errstate(all="ignore"):
        # Not a product with zeros: what stays has no part in it, even where it is not finite.
        terms = np.where(left[..., None], x * weight[..., None], 0)
        return (terms.sum(1, keepdims=True, dtype=np.float64).astype(np.float32),)


def _scale(x: Array, weight: Array, index: Array) -> float:
    return float(np.abs(weight).sum(1).max() * np.abs(x).max())


FUSE = TokenOp(
    "TcFuseTokens",
    ("x [B,T,C] data: tokens", "weight [B,T] f32: of each", "index [B,K] index: which ones stay"),
    ("y [B,1,C] data: the weighted sum of those that do not",),
    (),
    """  one = Constant <value: tensor = int64[1] {1}> ()
  as_float = Cast <to: int = 1> (index)
  zeros = Sub (as_float, as_float)
  left = ScatterElements <axis: int = 1> (weight, index, zeros)
  row = Unsqueeze (left, one)
  y = MatMul (row, x)""",
    _fuse,
    doc="""y[b] = sum of weight[b, j] x[b, j] over all j that are not in index[b], in fp32. `fuse`
uses it (EViT's leftover token; with equal weights SPViT's). The body multiplies what stays by zero,
so that an Inf there makes y NaN; the kernel leaves it out.""",
    limits=("K<=T", "T<=16384"),
    scale=_scale,
)
