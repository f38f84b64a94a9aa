"""The optimiser's tables of a model, a method and a profile."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tcompile.core.errors import UsageError
from tcompile.methods.method import Method
from tcompile.planning.optimise import Tables
from tcompile.planning.optimise.tables import StepFunction
from tcompile.profiling.curve import Curve, StepCost
from tcompile.profiling.plateaus import grid
from tcompile.profiling.profile import Profile
from tcompile.profiling.structure import Layout

Floats = npt.NDArray[np.float64]


def counts_for(
    profile: Profile,
    layout: Layout,
    method: Method,
    *,
    align: int = 8,
    eps: float = 0.01,
    least: int | None = None,
) -> tuple[int, ...]:
    """Token counts to plan with: those that can be, aligned or at a plateau's right edge.

    Args:
        least: a count, prefix included, such as the one asked for: the first from there on that
            can be is among them.
    """
    shape = method.context.shape
    grain = max(rule.granularity for rule in method.sites)
    first = min(rule.least for rule in method.sites)
    all_counts = [n for n in range(first, shape.tokens) if (n - shape.prefix) % grain == 0]
    all_counts.append(shape.tokens)
    curves = [c for c in _curves(profile, layout).values() if len(c.points) > 1]
    found = set(grid(all_counts, [c.at(all_counts) for c in curves], align=align, eps=eps))
    if grain > 1 or shape.tokens <= 8 * align:
        found |= set(all_counts[:: max(len(all_counts) // 200, 1)]) | {shape.tokens}
    if least is not None:
        patches = math.ceil((max(least, first) - shape.prefix) / grain) * grain
        found.add(min(shape.prefix + patches, shape.tokens))
    return tuple(sorted(found))


def tables_for(
    profile: Profile, layout: Layout, method: Method, loss: StepFunction, counts: Sequence[int]
) -> Tables:
    """What the optimiser is told of a model.

    Raises:
        UsageError: the profile lacks a part of the model, or the method's steps.
    """
    shape = method.context.shape
    n = np.asarray(counts, np.int64)
    dense_of, later_of = layout.dense, layout.reduced
    curves = _curves(profile, layout)
    attn, mlp = (
        np.stack(
            [
                _row(curves, before[i], later[i], n)
                for before, later in zip(dense_of, later_of, strict=True)
            ]
        )
        for i in (0, 1)
    )
    heads = dict(profile.heads)
    head = _row(heads, layout.head_dense, layout.head, n)
    stem = profile.stem.get(layout.stem)
    if layout.stem and stem is None:
        raise _missing(profile, "the stem")
    step = profile.reducers.get(method.key)
    if step is None:
        raise _missing(profile, f"the steps of {method.key}", f"--method {method.text}")
    costs: StepCost = step

    def reducer_ms(
        site: str, before: npt.NDArray[np.int64], after: npt.NDArray[np.int64]
    ) -> Floats:
        return costs.at(before, np.minimum(after, before))

    scale = _calibration_scale(profile, stem.ms if stem else 0.0, attn, mlp, head)
    attn, mlp, head = scale * attn, scale * mlp, scale * head
    return Tables.of(
        [int(c) for c in n],
        shape.prefix,
        attn_ms=attn,
        mlp_ms=mlp,
        head_ms=head,
        stem_ms=stem.ms if stem else 0.0,
        sites=method.sites,
        reducer_ms=reducer_ms,
        loss=loss,
    )


def _calibration_scale(profile: Profile, stem: float, *parts: Floats) -> float:
    """Return the factor by which the parts of the dense model add up to the whole.

    Each part that was timed by itself wakes the runtime's threads and finds other caches than in
    its place; in a small model that shows. The whole was timed in the same rounds.
    """
    if profile.dense is None:
        return 1.0
    total = float(sum(part[..., -1].sum() for part in parts))
    return max(profile.dense.ms - stem, 0.5 * total) / total if total > 0 else 1.0


def _row(curves: dict[str, Curve], dense: str, later: str, n: npt.NDArray[np.int64]) -> Floats:
    """ms by count: of the structure behind a step, and at the last count of the dense one."""
    row = np.zeros(len(n))
    if later:
        row = curves[later].at(n)
    if dense:
        row[-1] = float(curves[dense].at(n[-1:])[0])
    return np.asarray(row)


def _curves(profile: Profile, layout: Layout) -> dict[str, Curve]:
    names = {s for pair in (*layout.dense, *layout.reduced) for s in pair if s}
    lacking = sorted(names - set(profile.halves))
    if lacking:
        raise _missing(profile, f"{len(lacking)} of {len(names)} kinds of halves of blocks")
    heads = {s for s in (layout.head_dense, layout.head) if s}
    if heads - set(profile.heads):
        raise _missing(profile, "the head")
    return {name: profile.halves[name] for name in names}


def _missing(profile: Profile, what: str, options: str = "") -> UsageError:
    """A profile of another model, or one that was measured without the method."""
    extra = f" {options}" if options else ""
    return UsageError(
        f"the profile of {profile.subject.source} does not have {what}",
        where="--profile",
        hint=f"`tcompile profile MODEL --target T{extra}` measures it",
    )
