"""Milliseconds against token counts, and between the counts that were measured.

More tokens never take less time, so what was measured is fitted by a curve that does not decrease:
on a busy machine 72 tokens are measured slower than 88, which is noise. The points themselves stay
as they were measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from tcompile.core.errors import UsageError
from tcompile.core.packages import require

K = TypeVar("K")
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Figure:
    """Milliseconds for one batch: median and quartiles of so many runs.

    What was modelled has no runs, and its quartiles are the figure itself.
    """

    ms: float
    lower: float
    upper: float
    runs: int = 0

    @staticmethod
    def modelled(ms: float) -> Figure:
        """Return a figure that follows from a model."""
        return Figure(ms, ms, ms)

    @staticmethod
    def of(times: Sequence[float]) -> Figure:
        """Return median and quartiles of some times in ms."""
        lower, median, upper = np.percentile(np.asarray(times, np.float64), [25, 50, 75])
        return Figure(float(median), float(lower), float(upper), len(times))

    def minus(self, ms: float, share: int = 1) -> Figure:
        """(figure − ms) / share, none of it negative."""
        low, mid, high = (max(t - ms, 0.0) / share for t in (self.lower, self.ms, self.upper))
        return Figure(mid, low, high, self.runs)

    def with_(self, other: Figure) -> Figure:
        """Return both together, weighted by their runs."""
        a, b = max(self.runs, 1), max(other.runs, 1)
        low, mid, high = (
            (x * a + y * b) / (a + b)
            for x, y in zip(
                (self.lower, self.ms, self.upper), (other.lower, other.ms, other.upper), strict=True
            )
        )
        return Figure(mid, low, high, self.runs + other.runs)

    def to_json(self) -> list[float]:
        return [round(self.ms, 6), round(self.lower, 6), round(self.upper, 6), self.runs]

    @staticmethod
    def from_json(given: Sequence[float]) -> Figure:
        """Raise ValueError for what is not a figure."""
        ms, lower, upper, runs = given
        figure = Figure(float(ms), float(lower), float(upper), int(runs))
        times = (figure.lower, figure.ms, figure.upper)
        if not all(np.isfinite(times)) or min(times) < 0 or figure.runs < 0:
            raise ValueError(f"{given} is not a time")
        return figure


#: From a quarter to three quarters of a normal distribution, in standard deviations.
_QUARTILES = 1.349
#: A share of a time that no measurement is more precise than.
_FINEST = 1e-3


def non_decreasing(values: npt.ArrayLike, weights: npt.ArrayLike) -> Floats:
    """Return the non-decreasing values nearest to some, by weighted least squares."""
    return np.asarray(_optimize().isotonic_regression(values, weights=weights).x)


def _optimize() -> Any:
    """Return scipy.optimize, which takes a while to import.

    Raises:
        MissingExtraError: scipy is not installed.
    """
    return require("scipy.optimize", "cpu", "fitting a profile")


@dataclass(frozen=True)
class Curve:
    """Latency of one structure by token count.

    Attributes:
        points: token count (prefix included) → figure, ascending.
        given: ms at the points, fitted elsewhere; None: what was measured is fitted here, and what
            was modelled is taken as it is.
    """

    points: tuple[tuple[int, Figure], ...]
    given: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        counts = [n for n, _ in self.points]
        if not counts or counts != sorted(set(counts)) or counts[0] < 1:
            raise UsageError("a curve needs ascending token counts", where="profile")

    @staticmethod
    def of(points: Iterable[tuple[int, Figure]]) -> Curve:
        """Return the curve of points in any order."""
        return Curve(tuple(sorted(points, key=lambda p: p[0])))

    @cached_property
    def counts(self) -> tuple[int, ...]:
        return tuple(n for n, _ in self.points)

    @cached_property
    def raw(self) -> Floats:
        """ms at the counts, as they were measured or modelled."""
        return np.asarray([f.ms for _, f in self.points], np.float64)

    @cached_property
    def fit(self) -> Floats:
        """ms at the counts, for planning: what was measured does not decrease.

        A point weighs by its runs and its spread. Few runs tell little of their own spread, so half
        of it is that of the curve's other points.
        """
        if self.given is not None:
            return np.asarray(self.given, np.float64)
        runs = np.asarray([f.runs for _, f in self.points])
        if not runs.any():
            return self.raw
        ms = np.maximum(self.raw, 1e-9)
        spread = np.asarray([f.upper - f.lower for _, f in self.points]) / (_QUARTILES * ms)
        sigma = np.maximum((spread + np.median(spread)) / 2, _FINEST) * ms
        return non_decreasing(self.raw, np.maximum(runs, 1) / sigma**2)

    def at(self, counts: npt.ArrayLike) -> Floats:
        """ms at some counts: linear between fitted points. Below the first and beyond the last: as
        a line through the two nearest, which is at least 0."""
        n, ms = np.asarray(self.counts, np.float64), self.fit
        asked = np.asarray(counts, np.float64)
        found = np.interp(asked, n, ms)
        if len(n) > 1:
            low = ms[0] + (asked - n[0]) * max((ms[1] - ms[0]) / (n[1] - n[0]), 0.0)
            high = ms[-1] + (asked - n[-1]) * max((ms[-1] - ms[-2]) / (n[-1] - n[-2]), 0.0)
            found = np.where(asked < n[0], low, np.where(asked > n[-1], high, found))
        return np.maximum(found, 0.0)

    def with_(self, other: Curve) -> Curve:
        """The points of both; where both have one, the two together, to be fitted anew."""
        return Curve.of(combined([*self.points, *other.points]).items())

    def to_json(self) -> list[list[float]]:
        """A row a point: tokens, ms, quartiles, runs; and the ms that was fitted elsewhere."""
        more = (
            [[]] * len(self.points) if self.given is None else [[round(v, 6)] for v in self.given]
        )
        return [[n, *f.to_json(), *rest] for (n, f), rest in zip(self.points, more, strict=True)]

    @staticmethod
    def from_json(given: Sequence[Sequence[float]]) -> Curve:
        """Raise ValueError for what is not a curve."""
        rows = sorted((int(row[0]), *row[1:]) for row in given)
        fitted = tuple(float(row[5]) for row in rows if len(row) == 6)
        if (
            len(fitted) not in (0, len(rows))
            or not all(np.isfinite(fitted))
            or any(v < 0 for v in fitted)
        ):
            raise ValueError(f"{list(fitted)} are not times of {len(rows)} points")
        points = tuple(
            (int(row[0]), Figure.from_json(row[1:5] if fitted else row[1:])) for row in rows
        )
        return Curve(points, fitted or None)


@dataclass(frozen=True)
class StepCost:
    """The latency of scoring and reducing, by tokens before and after.

    Attributes:
        points: (before, after, figure), prefix included.
    """

    points: tuple[tuple[int, int, Figure], ...]

    @cached_property
    def _fit(self) -> Floats:
        """Weights of `_features`, none negative, by least squares of relative errors."""
        if not self.points:
            return np.zeros(5)
        before, after = np.asarray([p[:2] for p in self.points], np.float64).T
        ms = np.asarray([max(p[2].ms, 1e-6) for p in self.points])
        rows = _features(before, after) / ms[:, None]
        scale = np.maximum(np.linalg.norm(rows, axis=0), 1e-300)
        weights, _ = _optimize().nnls(rows / scale, np.ones(len(ms)))
        return np.asarray(weights / scale)

    def at(self, before: npt.ArrayLike, after: npt.ArrayLike) -> Floats:
        """ms of a step, any shapes that broadcast."""
        n, k = np.broadcast_arrays(np.asarray(before, float), np.asarray(after, float))
        return np.asarray(_features(n, k) @ self._fit)

    def with_(self, other: StepCost) -> StepCost:
        """The points of both; where both have one, the two together."""
        both = combined([((n, k), f) for n, k, f in (*self.points, *other.points)])
        return StepCost(tuple((n, k, f) for (n, k), f in sorted(both.items())))

    def to_json(self) -> list[list[float]]:
        return [[n, k, *f.to_json()] for n, k, f in self.points]

    @staticmethod
    def from_json(given: Sequence[Sequence[float]]) -> StepCost:
        return StepCost(tuple((int(n), int(k), Figure.from_json(rest)) for n, k, *rest in given))


def _features(before: Floats, after: Floats) -> Floats:
    """[..., 5]: launches; work per token before and per token after; n², of similarities; and what
    goes per pair of a token that leaves and one that stays."""
    return np.stack(
        [np.ones_like(before), before, after, before * before, (before - after) * after], axis=-1
    )


def combined(parts: Iterable[tuple[K, Any]]) -> dict[K, Any]:
    """Return figures, curves or step costs by key, those of one key put together."""
    found: dict[K, Any] = {}
    for key, part in parts:
        found[key] = found[key].with_(part) if key in found else part
    return found
