"""Latencies of a report, from the rounds that were timed and from the points of a profile."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import lsq_linear

from tests.oracles.report.graph import Recorded

median = statistics.median


def interval(dense: Sequence[float], reduced: Sequence[float]) -> tuple[float, float]:
    """From 2.5 to 97.5 % of the ratios of medians of 2000 resamples of the rounds (seed 0)."""
    drawn = np.random.default_rng(0).integers(0, len(dense), (2000, len(dense)))
    ratios = sorted(
        median([dense[i] for i in rows]) / median([reduced[i] for i in rows])
        for rows in drawn.tolist()
    )

    def quantile(share: float) -> float:
        at = share * (len(ratios) - 1)
        low = int(at)
        return ratios[low] + (at - low) * (ratios[low + 1] - ratios[low])

    return quantile(0.025), quantile(0.975)


@dataclass(frozen=True)
class Predicted:
    """ms of the whole model: dense, of the plan, and of so many tokens from the first block on."""

    dense: float
    chosen: float
    curve: Callable[[int], float]


def predicted(
    profile: Path, source: Path, manifest: dict[str, Any], reduced: Recorded
) -> Predicted:
    """T = stem + Σ blocks (attention(n) + MLP(n)) + head(n) + Σ steps reducer(n → k).

    Halves and head are scaled so that the dense model takes what it took as a whole. Which curve is
    of which half, the profile says by names of structures alone: these are the compiler's.
    """
    p, names = json.loads(profile.read_text(encoding="utf-8")), _names(source, manifest)
    last = p["subject"]["tokens"]
    halves = {k: _curve(rows) for k, rows in {**p["halves"], **p["heads"]}.items()}
    stem = p["stem"][names.stem][0]
    steps = _step_cost(p["reducers"][manifest["schedule"]["method"]])
    blocks = list(zip(names.dense, names.reduced, strict=True))

    def part(which: tuple[str, str], n: int) -> float:
        dense, later = which
        return halves[dense if n == last and dense else later](n)

    def parts(attention: Sequence[int], mlp: Sequence[int], final: int) -> float:
        total = part((names.head_dense, names.head), final)
        for (dense, later), a, b in zip(blocks, attention, mlp, strict=True):
            total += part((dense[0], later[0]), a) + part((dense[1], later[1]), b)
        return total

    every = [last] * len(blocks)
    scale = (p["dense"][0] - stem) / parts(every, every, last)
    carried = [
        n for pair in zip(reduced.attention_tokens, reduced.mlp_tokens, strict=True) for n in pair
    ]
    leaving = [(n, k) for n, k in pairwise(carried) if k < n]
    chosen = parts(reduced.attention_tokens, reduced.mlp_tokens, carried[-1])
    return Predicted(
        stem + scale * parts(every, every, last),
        stem + scale * chosen + sum(steps(n, k) for n, k in leaving),
        lambda n: stem + scale * parts([n] * len(blocks), [n] * len(blocks), n),
    )


def _names(source: Path, manifest: dict[str, Any]) -> Any:
    from tcompile import pipeline
    from tcompile.methods.method import method_for
    from tcompile.planning.constraints import site_constraints
    from tcompile.profiling.structure import layout_of

    read, how = pipeline.read(source), manifest["outputs_mode"]
    constraints = site_constraints(read.analysis, how)
    return layout_of(
        read.graph, method_for(read.analysis, constraints, manifest["schedule"]["method"], how)
    )


def _curve(rows: list[list[float]]) -> Callable[[int], float]:
    """Straight between points, and on along the outermost two; for profiles of a model, or of times
    that rise: nothing is fitted."""
    n, ms = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    assert not any(r[4] for r in rows) or (np.diff(ms) > 0).all()

    def at(count: int) -> float:
        if count < n[0] and len(n) > 1:
            return float(max(ms[0] + (count - n[0]) * (ms[1] - ms[0]) / (n[1] - n[0]), 0))
        return float(np.interp(count, n, ms))

    return at


def _step_cost(rows: list[list[float]]) -> Callable[[int, int], float]:
    """Launches, tokens before, tokens after, pairs of tokens, and pairs of one that leaves and one
    that stays, each with a weight ≥ 0, by least squares of relative errors."""

    def terms(n: float, k: float) -> list[float]:
        return [1, n, k, n * n, (n - k) * k]

    lines = np.array([terms(r[0], r[1]) for r in rows]) / np.array([[r[2]] for r in rows])
    unit = np.linalg.norm(lines, axis=0)
    weights = lsq_linear(lines / unit, np.ones(len(rows)), (0, np.inf), tol=1e-14, method="bvls").x
    return lambda n, k: float(np.dot(terms(n, k), weights / unit))
