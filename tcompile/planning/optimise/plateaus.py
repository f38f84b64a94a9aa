"""Plateaus: latency falls in steps as tokens leave, and on a step more tokens cost nothing.

The right edge of a count n is the largest n' ≥ n with t(n') ≤ (1 + ε)·t(n). Plateaus cut all counts
into runs from the left: each begins where the last one ended, at n, and ends at n's right edge. On
a smooth slope they are what ε makes them; on a staircase, its steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tcompile.core.errors import UsageError
from tcompile.planning.optimise.plan import Plan
from tcompile.planning.optimise.tables import Floats, Tables

#: The most that tokens may cost to be called free, as a share of what is proportional to them.
FREE = 0.25


@dataclass(frozen=True)
class Plateau:
    """Token counts that take the same time within ε: from, to, and the ms at the right edge."""

    first: int
    last: int
    ms: float


def right_edge(counts: Sequence[int], ms: npt.ArrayLike, count: int, eps: float = 0.01) -> int:
    """The largest count that takes no longer than this one, within a share `eps` of its time.

    Raises:
        UsageError: a count that is not on the grid.
    """
    times = _checked(counts, ms, eps)
    if count not in counts:
        raise UsageError(f"{count} tokens are not on the grid of counts", where="plateaus")
    return int(counts[_edge(times, list(counts).index(count), eps)])


def free_edge(counts: Sequence[int], ms: npt.ArrayLike, count: int, eps: float = 0.01) -> int:
    """The largest count that costs nothing over this one: the same time, and not by a small slope.

    ε alone would call the next one or two counts of any slope free. A count n' > n is free if
    t(n') ≤ (1 + ε)·t(n) and the rise is below a quarter of what is proportional to the tokens:
    t(n')/t(n) − 1 ≤ ¼·(n'/n − 1). The counts between them must be free too.

    Raises:
        UsageError: a count that is not on the grid.
    """
    times = _checked(counts, ms, eps)
    if count not in counts:
        raise UsageError(f"{count} tokens are not on the grid of counts", where="plateaus")
    at = list(counts).index(count)
    edge = at
    for more in range(at + 1, len(times)):
        rise = times[more] - times[at]
        share = min(eps, FREE * (counts[more] / count - 1))
        if rise > share * times[at]:
            break
        edge = more
    return int(counts[edge])


def plateaus(counts: Sequence[int], ms: npt.ArrayLike, eps: float = 0.01) -> tuple[Plateau, ...]:
    """All plateaus, ascending; each count lies on one."""
    times = _checked(counts, ms, eps)
    found, first = [], 0
    while first < len(times):
        last = _edge(times, first, eps)
        found.append(Plateau(int(counts[first]), int(counts[last]), float(times[last])))
        first = last + 1
    return tuple(found)


def grid(
    counts: Sequence[int], curves: Sequence[npt.ArrayLike], *, align: int = 8, eps: float = 0.01
) -> tuple[int, ...]:
    """Counts worth planning with: multiples of `align`, every curve's right edges, and all tokens.

    Args:
        counts: ascending, the last the dense model's.
        curves: ms by count, one a structure of block half.
    """
    edges = {p.last for curve in curves for p in plateaus(counts, curve, eps)}
    return tuple(c for c in counts if c % align == 0 or c in edges or c == counts[-1])


def flattened(tables: Tables, eps: float) -> Tables:
    """Each half's, and the head's, latencies raised to the highest of their plateau.

    So that what differs by noise is equal to the optimiser, which then takes more tokens; raised,
    so that a plan takes no longer than planned. t ≤ flattened t ≤ (1 + ε)·t: a count that takes
    less time than the first of its plateau begins another, and one that takes more than ε more than
    it keeps its time.
    """
    attn, mlp = (np.array([_flat(row, eps) for row in t]) for t in (tables.attn_ms, tables.mlp_ms))
    return replace(tables, attn_ms=attn, mlp_ms=mlp, head_ms=_flat(tables.head_ms, eps))


def _flat(times: Floats, eps: float) -> Floats:
    raised: Floats = times.copy()
    first = 0
    while first < len(times):
        faster = np.flatnonzero(times[first:] < times[first])
        run = times[first : first + faster[0]] if len(faster) else times[first:]
        level = np.flatnonzero(run <= (1 + eps) * times[first])
        raised[first + level] = run[level].max()
        first += int(level[-1]) + 1
    return raised


def sitting(tables: Tables, plan: Plan, eps: float = 0.01) -> tuple[Plateau, ...]:
    """By step of a plan: the plateau that its count sits on.

    The curve is of all that runs between the step and the next one, as a function of its count.
    """
    halves = np.stack([tables.attn_ms, tables.mlp_ms], axis=1).reshape(-1, len(tables.counts))
    parts = np.concatenate([halves, tables.head_ms[None]])
    place = {s.name: s.place(tables.blocks) for s in tables.sites}
    begins = [min(2 * place[s.site][0] + place[s.site][1] + 1, len(parts) - 1) for s in plan.steps]
    found = []
    for step, (begin, end) in zip(plan.steps, pairwise([*begins, len(parts)]), strict=True):
        curve = parts[begin:end].sum(axis=0)
        found.append(next(p for p in plateaus(tables.counts, curve, eps) if step.after <= p.last))
    return tuple(found)


def _edge(times: Floats, at: int, eps: float) -> int:
    return int(np.flatnonzero(times <= (1 + eps) * times[at])[-1])


def _checked(counts: Sequence[int], ms: npt.ArrayLike, eps: float) -> Floats:
    times = np.asarray(ms, np.float64)
    if times.shape != (len(counts),) or list(counts) != sorted(set(counts)):
        raise UsageError("needs ascending token counts and as many latencies", where="plateaus")
    if not np.all(np.isfinite(times)) or np.any(times < 0) or eps < 0:
        raise UsageError("latencies and ε must be finite and not negative", where="plateaus")
    return times
