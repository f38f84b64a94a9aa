"""Outputs of a body against the specification: exactly, or to its tolerance.

Indices agree exactly. Where an index is that of a largest cosine and rounding could have chosen
another, the cosine of the one chosen is compared instead, and only within `KernelTolerance.near`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.gpu.cases import Case, rounded
from tcompile.plugins.ops.common import cosines, take
from tcompile.plugins.spec import Array


@dataclass(frozen=True)
class KernelTolerance:
    """The bound of a float: |got − want| ≤ relative·|want| + absolute·scale.

    `absolute` covers sums that cancel; the scale is that of the terms (`TokenOp.scale`). Indices
    have none: they are equal, but where two candidates are within `near` of each other by the
    reference itself, so that rounding may choose either.
    """

    relative: float
    absolute: float
    near: float


#: By the type of the data; accumulation is in fp32 always.
TOLERANCES: Mapping[str, KernelTolerance] = {
    "f32": KernelTolerance(2e-5, 2e-6, 5e-6),
    "f16": KernelTolerance(2e-3, 2e-3, 5e-6),
    "bf16": KernelTolerance(1.6e-2, 1.6e-2, 5e-6),
}


def problems(case: Case, got: tuple[Array, ...]) -> list[str]:
    """Return what is wrong with the outputs of a case, floats as float32; empty: nothing."""
    want = case.op.reference(*case.inputs, **case.numbers)
    if len(got) != len(want):
        return [f"{len(got)} outputs, not {len(want)}"]
    found = []
    for tensor, g, w in zip(case.op.gives, got, want, strict=True):
        if g.shape != w.shape:
            found.append(f"{tensor.name} is {g.shape}, not {w.shape}")
    if found:
        return found
    if case.op.name in _BY_COSINE and not case.exact:
        return _BY_COSINE[case.op.name](case, got, want)
    for tensor, g, w in zip(case.op.gives, got, want, strict=True):
        if tensor.kind == "index":
            wrong = int((g != w).sum())
        elif tensor.name in case.op.exact:
            wrong = _differ(g, w)
        else:
            wrong = _apart(case, case.types[tensor.kind], g, w)
        if wrong:
            found.append(f"{tensor.name}: {wrong} of {g.size} are wrong")
    return found


def _differ(got: Array, want: Array) -> int:
    return int((~((got == want) | (np.isnan(got) & np.isnan(want)))).sum())


def _apart(case: Case, to: str, got: Array, want: Array) -> int:
    """Return how many floats are further off than the tolerance of their type."""
    tolerance = TOLERANCES[to]
    scale = _scale(case)
    want = rounded(want, to)
    with np.errstate(all="ignore"):
        close = np.abs(got - want) <= tolerance.relative * np.abs(want) + tolerance.absolute * scale
    same = close | (got == want) | (np.isnan(got) & np.isnan(want))
    # At the end of the range rounding may or may not reach infinity.
    edge = 65504 * (1 - tolerance.relative) if to == "f16" else 3.3e38
    same |= (np.abs(got) >= edge) & (np.abs(want) >= edge) & (np.sign(got) == np.sign(want))
    return int((~same).sum())


def _scale(case: Case) -> float:
    floats = [np.where(np.isfinite(a), a, 0) for a in case.inputs if a.dtype == np.float32]
    if case.op.scale is not None:
        safe = [np.where(np.isfinite(a), a, 0) if a.dtype == np.float32 else a for a in case.inputs]
        return case.op.scale(*safe, **case.numbers)
    return max(float(np.abs(a).max()) for a in floats)


def _partner(case: Case, got: tuple[Array, ...], want: tuple[Array, ...]) -> list[str]:
    found = cosines(*case.inputs)
    return _chosen(case, "partner", found, got[0]) + _similar(case, "similarity", got[1], want[1])


def _nearest(case: Case, got: tuple[Array, ...], want: tuple[Array, ...]) -> list[str]:
    x, index, slots = case.inputs
    own = take(got[0], index)
    if (own != slots).any():
        return ["owner: a token that stays is not its own"]
    return _chosen(case, "owner", cosines(x, take(x, index)), got[0], index)


def _match_all(case: Case, got: tuple[Array, ...], want: tuple[Array, ...]) -> list[str]:
    (x,) = case.inputs
    return _chosen(case, "target", cosines(x[:, 0::2], x[:, 1::2]), got[0])


def _match(case: Case, got: tuple[Array, ...], want: tuple[Array, ...]) -> list[str]:
    (x,) = case.inputs
    keep, source, target = got
    both = np.sort(np.concatenate([keep, source], 1), 1)
    if (both != np.arange(case.numbers["half"])).any() or (np.diff(keep, axis=1) < 1).any():
        return ["keep and source: not every even position once, or keep is not ascending"]
    found = cosines(x[:, 0::2], x[:, 1::2])
    edges = found.max(-1)
    ranked = -np.sort(-edges, axis=1)[:, : source.shape[1]]
    rows = np.take_along_axis(found, source[..., None], 1)
    wrong = _similar(case, "source", take(edges, source), ranked)
    return wrong + _chosen(case, "target", rows, target)


def _chosen(
    case: Case, name: str, found: Array, index: Array, but: Array | None = None
) -> list[str]:
    """Return whether index [B, M] points at the largest of found [B, M, N], or as good as it.

    Args:
        but: rows that are not looked at.
    """
    if index.min() < 0 or index.max() >= found.shape[-1]:
        return [f"{name}: out of range"]
    near = TOLERANCES[case.types["data"]].near
    best = found.max(-1)
    value = np.take_along_axis(found, index[..., None], -1)[..., 0]
    with np.errstate(invalid="ignore"):
        right = (value >= best - near) | (value == best)
    # Where all of a row are NaN, or zeros, nothing is rounded.
    flat = (found == found[..., :1]).all(-1) & ((best == 0) | (best == -np.inf))
    right &= ~flat | (index == 0)
    if but is not None:
        np.put_along_axis(right, but, True, axis=1)
    return [] if right.all() else [f"{name}: {(~right).sum()} of {right.size} are not the best"]


def _similar(case: Case, name: str, got: Array, want: Array) -> list[str]:
    near = TOLERANCES[case.types["data"]].near
    with np.errstate(invalid="ignore"):
        right = (np.abs(got - want) <= near) | (got == want)
    return [] if right.all() else [f"{name}: {(~right).sum()} of {right.size} similarities differ"]


_BY_COSINE = {
    "TcPartnerTokens": _partner,
    "TcNearestTokens": _nearest,
    "TcMatchTokens": _match,
    "TcMatchAllTokens": _match_all,
}
