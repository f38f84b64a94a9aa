"""Plans and plateaus: times that differ only by noise made equal, and where a plan's steps lie."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from tcompile.planning.optimise.plan import Plan
from tcompile.planning.optimise.tables import Floats, Tables
from tcompile.profiling.plateaus import Plateau, plateaus


def flattened(tables: Tables, eps: float) -> Tables:
    """Raise the latencies of each half, and of the head, to the highest of their plateau.

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


def plateau_of(tables: Tables, plan: Plan, eps: float = 0.01) -> tuple[Plateau, ...]:
    """Return the plateau on which the count of each step of a plan lies.

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
