"""One-sided confidence bounds: shares exactly, means with a correction for skew."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from tcompile.targets.backends.extras import require


def share_at_most(k: int, n: int, alpha: float) -> float:
    """Clopper and Pearson's upper bound: the largest p at which k or fewer of n has probability
    alpha. The true share exceeds it in at most alpha of all samples, for every n."""
    return 1.0 if k >= n else float(_special().betaincinv(k + 1, n - k, 1 - alpha))


def share_at_least(k: int, n: int, alpha: float) -> float:
    """Clopper and Pearson's lower bound: one minus the upper bound of the others' share."""
    return 1.0 - share_at_most(n - k, n, alpha)


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
    q = -float(_special().stdtrit(n - 1, 1 - alpha)) / math.sqrt(n)
    if abs(skew) < 1e-6:
        return mean - deviation * q
    root = float(np.cbrt(1 + skew * (q - skew / (6 * n))))
    return mean - deviation * 3 / skew * (root - 1)


def _special() -> Any:
    return require("scipy.special", "cpu", "bounding what is lost")
