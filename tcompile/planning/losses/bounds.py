"""One-sided confidence bounds, without SciPy: shares exactly, means with a correction for skew."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def binomial_tail(k: int, n: int, p: float) -> float:
    """P(X ≤ k) of X ~ Binomial(n, p), summed term by term."""
    if k < 0 or p >= 1.0:
        return 1.0 if k >= n else 0.0
    if k >= n or p <= 0.0:
        return 1.0
    i = np.arange(k + 1)
    logs = _log_choose(n)[: k + 1] + i * math.log(p) + (n - i) * math.log1p(-p)
    return min(1.0, float(np.exp(logs).sum()))


@lru_cache(maxsize=4)
def _log_choose(n: int) -> Floats:
    """[n + 1], log C(n, i)."""
    logs = np.array([math.lgamma(i + 1) for i in range(n + 1)])
    return np.asarray(logs[-1] - logs - logs[::-1])


@lru_cache(maxsize=1024)
def share_at_most(k: int, n: int, alpha: float) -> float:
    """Clopper and Pearson's upper bound: the largest p at which k or fewer of n has probability
    alpha. The true share exceeds it in at most alpha of all samples, whatever n."""
    if k >= n:
        return 1.0
    low, high = k / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if binomial_tail(k, n, middle) > alpha else (low, middle)
    return high


def share_at_least(k: int, n: int, alpha: float) -> float:
    """Clopper and Pearson's lower bound: that of the others, from above."""
    return 1.0 - share_at_most(n - k, n, alpha)


@lru_cache(maxsize=1024)
def student_quantile(level: float, degrees: int) -> float:
    """t with P(T ≤ t) = level > 0.5 for Student's T with that many degrees of freedom.

    P(0 ≤ T ≤ t) = c ∫ cos^(ν−1) u du from 0 to atan(t/√ν), c = Γ((ν+1)/2) / (√π Γ(ν/2)), by
    Gauss-Legendre.
    """
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi)
    nodes, weights = np.polynomial.legendre.leggauss(64)

    def within(angle: float) -> float:
        at = (nodes + 1) * angle / 2
        return float(scale * angle / 2 * (weights * np.cos(at) ** (degrees - 1)).sum())

    # No wider than twice the normal quantile needs, or a narrow peak would fall between nodes.
    normal = NormalDist().inv_cdf(level)
    low, high = 0.0, math.pi / 2
    if degrees > 30:
        high = math.atan(2 * normal / math.sqrt(degrees))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < level - 0.5 else (low, middle)
    return math.sqrt(degrees) * math.tan(high)


def mean_at_most(values: npt.ArrayLike, alpha: float) -> float:
    """An upper bound of a mean from a skewed sample: Hall's transform of Student's t (P. Hall, On
    the removal of skewness by transformation, J. R. Statist. Soc. B 54, 1992).

    With x̄, s, γ the sample's mean, deviation and skewness, and q = −t/√n:
    x̄ − s · (3/γ) · (∛(1 + γ (q − γ/(6n))) − 1). Infinite for fewer than two values.
    """
    x = np.asarray(values, np.float64)
    n = len(x)
    if n < 2:
        return math.inf
    mean, deviation = float(x.mean()), float(x.std(ddof=1))
    if deviation <= 1e-12 * max(abs(mean), 1e-300):
        return mean
    skew = float(((x - mean) ** 3).mean()) / deviation**3
    q = -student_quantile(1 - alpha, n - 1) / math.sqrt(n)
    if abs(skew) < 1e-6:
        return mean - deviation * q
    root = math.copysign(
        abs(1 + skew * (q - skew / (6 * n))) ** (1 / 3), 1 + skew * (q - skew / (6 * n))
    )
    return mean - deviation * 3 / skew * (root - 1)
