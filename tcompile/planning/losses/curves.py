"""A loss as a function of the token count, from a few counts at which it was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tcompile.targets.backends.extras import require

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LossCurve:
    """A loss that never falls as tokens leave.

    Between two counts it is linear. Below the fewest, n₀, its odds grow as the prior does:
    v/(1 − v) ∝ g(r) = (1 − r)²/r (`optimise.prior`), r the share of the patches that stay. A loss
    that stayed flat where nothing was measured would lure the planner there; distances and shares
    end at 1, so that g alone is far too steep. On zoo:glyphs (topk, evit), measured down to 0.5,
    0.3 or 0.2 of the patches, it is off by 0.08 to 0.10 at counts down to 0.05 on average, a
    straight line by 0.16 to 0.28, g cut off at 1 by 0.12 to 0.14.

    Attributes:
        counts: [G] ascending, prefix included; the last is N.
        values: [G], the last 0.
        prefix: tokens that never leave.
    """

    counts: tuple[int, ...]
    values: tuple[float, ...]
    prefix: int

    def __call__(self, n: npt.ArrayLike) -> Floats:
        """The loss of going from N tokens to n, any shape."""
        wanted, first, start = np.asarray(n, np.float64), float(self.counts[0]), self.values[0]
        between = np.interp(wanted, self.counts, self.values)
        if first == self.counts[-1] or start >= 1.0:
            return np.asarray(between)
        odds = start / (1 - start) * self._shape(np.minimum(wanted, first)) / self._shape(first)
        return np.where(wanted < first, odds / (1 + odds), between)

    def _shape(self, n: npt.ArrayLike) -> Floats:
        left = np.maximum(np.asarray(n, np.float64) - self.prefix, 1.0)
        left = left / (self.counts[-1] - self.prefix)
        return np.asarray((1 - left) ** 2 / left)


def fitted(measured: Mapping[int, float], tokens: int, prefix: int) -> LossCurve:
    """The curve through losses at some counts: 0 at N, made monotone where noise made them fall.

    Args:
        measured: whole token count → loss, below `tokens`; any order.
        tokens: N.
    """
    counts, falling = sorted(n for n in measured if n < tokens), np.zeros(0)
    if counts:
        optimize = require("scipy.optimize", "cpu", "measuring what steps lose")
        losses = [measured[n] for n in counts]
        falling = np.maximum(optimize.isotonic_regression(losses, increasing=False).x, 0.0)
    return LossCurve((*counts, tokens), (*falling.tolist(), 0.0), prefix)
