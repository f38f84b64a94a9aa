"""Intervals of 95 % for figures of two models on the same images."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tcompile.core.packages import require
from tcompile.evaluation.findings import Measure

Array = npt.NDArray[Any]
Interval = tuple[float, float]
#: The quantile of the normal distribution that leaves 2.5 % above it.
_Z = 1.959963984540054
#: Resamples of a bootstrap, and how many are held at a time.
TIMES, _AT_ONCE = 1000, 50


def share(name: str, right: npt.NDArray[np.bool_]) -> Measure:
    """The share of images for which something holds, with Wilson's interval."""
    stats = require("scipy.stats", "cpu", "confidence intervals")
    count, hits = len(right), int(right.sum())
    found = stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
    return Measure(
        name, None, hits / count, None, float(found.low), float(found.high), "wilson", count
    )


def paired_share(
    name: str, dense: npt.NDArray[np.bool_] | None, reduced: npt.NDArray[np.bool_]
) -> Measure:
    """The share of right answers of both models, with Agresti and Min's interval of the difference
    (2005: half an image is added to each of the four cells, so that it has a width where no answer
    changed) and McNemar's exact test. Of the reduced model alone as `share`."""
    if dense is None:
        return share(name, reduced)
    stats = require("scipy.stats", "cpu", "confidence intervals")
    count = len(dense)
    lost, won = int((dense & ~reduced).sum()), int((~dense & reduced).sum())
    more, total = won - lost, count + 2
    spread = _Z * np.sqrt((lost + won + 1 - more * more / total) / total / total)
    low, high = float(more / total - spread), float(more / total + spread)
    p_value = float(stats.binomtest(lost, lost + won).pvalue) if lost + won else 1.0
    return Measure(
        name,
        float(dense.mean()),
        float(reduced.mean()),
        (won - lost) / count,
        low,
        high,
        "agresti-min",
        count,
        p_value,
    )


def mean(
    name: str,
    reduced: Array,
    dense: Array | None = None,
    *,
    seed: int = 0,
    higher_is_better: bool = True,
) -> Measure | None:
    """The mean of a figure that each image has, with a bootstrap interval over images, paired where
    both models have it. Images where it is NaN do not count; None where it is so for all."""
    values = reduced if dense is None else reduced - dense
    known = np.isfinite(values)
    count = int(known.sum())
    if not count:
        return None
    picked = values[known].astype(np.float64)
    low = high = None
    if count > 1:
        drawn = resampled_sums(picked[:, None], seed)[:, 0] / count
        low, high = (float(q) for q in np.quantile(drawn, (0.025, 0.975)))
    base = None if dense is None else float(dense[known].mean())
    figure = float(reduced[known].mean())
    difference = None if base is None else figure - base
    kind = "bootstrap" if count > 1 else ""
    return Measure(
        name, base, figure, difference, low, high, kind, count, higher_is_better=higher_is_better
    )


def resampled_sums(rows: Array, seed: int, times: int = TIMES) -> Array:
    """Sums of [N, K] over N rows that are drawn with replacement, many times: [times, K]."""
    rng, count = np.random.default_rng(seed), len(rows)
    found = np.empty((times, rows.shape[1]))
    for start in range(0, times, _AT_ONCE):
        drawn = [
            np.bincount(rng.integers(count, size=count), minlength=count)
            for _ in range(min(_AT_ONCE, times - start))
        ]
        found[start : start + len(drawn)] = np.asarray(drawn, np.float64) @ rows
    return found


class WeightedSums:
    """The same for rows too large to be kept: each is counted as often as a Poisson variable of
    mean 1 says, in each resample (the Poisson bootstrap, which needs no number of rows).

    Args:
        columns: K.
    """

    def __init__(self, columns: int, seed: int, times: int = TIMES) -> None:
        self._rng = np.random.default_rng(seed)
        self.sums = np.zeros((times, columns))
        self.total = np.zeros(columns)

    def add(self, row: Array) -> None:
        """Count a row [K]."""
        weights = self._rng.poisson(1.0, size=len(self.sums)).astype(np.float64)
        self.sums += weights[:, None] * row
        self.total += row
