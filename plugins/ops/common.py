"""Pieces that several ops share: parts of bodies, and of references."""

from __future__ import annotations

import numpy as np

from tcompile.plugins.spec import Array

#: Squares of lengths of no less: zeros have the direction zero.
TINY = 1e-12

#: `{1}` = {0}/‖{0}‖ along the last axis, in names that end in {2}.
_UNIT = """  last{2} = Constant <value: tensor = int64[1] {{-1}}> ()
  tiny{2} = Constant <value_float: float = 1e-12> ()
  squares{2} = Mul ({0}, {0})
  summed{2} = ReduceSum <keepdims: int = 1> (squares{2}, last{2})
  safe{2} = Max (summed{2}, tiny{2})
  length{2} = Sqrt (safe{2})
  {1} = Div ({0}, length{2})"""

#: `{2}` = the {1} numbers {0}, ascending.
SORT = """  as_float = Cast <to: int = 1> ({0})
  ascending, unused = TopK <axis: int = -1, largest: int = 0, sorted: int = 1> (as_float, {1})
  {2} = Cast <to: int = 7> (ascending)"""

#: Slicing into even and odd places.
HALVES = """  zero = Constant <value: tensor = int64[1] {0}> ()
  one = Constant <value: tensor = int64[1] {1}> ()
  two = Constant <value: tensor = int64[1] {2}> ()
  end = Constant <value: tensor = int64[1] {9223372036854775807}> ()"""


def unit_body(x: str, result: str = "unit", suffix: str = "") -> str:
    """Text of a body: x divided by its length along the last axis."""
    return _UNIT.format(x, result, suffix)


def top(scores: Array, k: int) -> Array:
    """[B, k] indices of the k largest along the last axis, best first; ties go to the lower index,
    NaN is less than everything."""
    return np.argsort(-scores, axis=-1, kind="stable")[..., :k]


def take(x: Array, index: Array) -> Array:
    """x[b, index[b]] for [B, T] and [B, T, C]."""
    return np.take_along_axis(x, index if x.ndim == 2 else index[..., None], axis=1)


def cosines(a: Array, b: Array) -> Array:
    """[B, M, N] of [B, M, D] and [B, N, D]; NaN counts as −Inf, so that it is never chosen."""
    with np.errstate(all="ignore"):
        found = _unit(a) @ _unit(b).transpose(0, 2, 1)
    return np.where(np.isnan(found), -np.inf, found)


def _unit(x: Array) -> Array:
    squares = np.maximum((x * x).sum(-1, keepdims=True), TINY)
    return np.asarray(x / np.sqrt(squares))
