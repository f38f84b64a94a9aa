"""POMT's choice of a token count (arXiv 2407.05941; restated in formulas, nothing copied).

U(n) = α·(1 − L(n)/max L) + (1 − α)·A(n)/max A,   n* = argmax U,   one step at block 3

with L(n) the latency and A(n) the accuracy of the model that carries n tokens, prefix included.

Off by two: the released code removes R = N_patches − (n* + prefix) tokens, so that with one prefix
token n* + 2 run, not the n* whose latency and accuracy were weighed, which may lie beyond a step.
Here n* run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tcompile.core.errors import UsageError

#: The block, from 0, between whose attention and MLP tokens leave; POMT does not search it.
BLOCK = 3


@dataclass(frozen=True)
class PomtChoice:
    """The count of most utility; of several, the largest.

    Attributes:
        tokens: n*, prefix included.
        utility: U by count, as the counts were given.
    """

    tokens: int
    utility: tuple[float, ...]


def pomt_choice(
    counts: Sequence[int], latency: npt.ArrayLike, accuracy: npt.ArrayLike, alpha: float = 0.5
) -> PomtChoice:
    """Weigh latency against accuracy.

    Args:
        counts: n, prefix included, in any order.
        latency: L(n), any unit; accuracy: A(n), any unit.
        alpha: the weight of latency, from 0 to 1.

    Raises:
        UsageError: lengths that differ, no positive latency or accuracy, alpha out of range.
    """
    n = np.asarray(counts, np.int64)
    t, a = np.asarray(latency, np.float64), np.asarray(accuracy, np.float64)
    if n.ndim != 1 or not len(n) or t.shape != n.shape or a.shape != n.shape:
        raise UsageError("needs as many latencies and accuracies as counts", where="pomt")
    for name, values in (("latencies", t), ("accuracies", a)):
        if not np.all(np.isfinite(values)) or np.any(values < 0) or values.max() <= 0:
            raise UsageError(f"{name} must be finite, not negative and not all 0", where="pomt")
    if not 0 <= alpha <= 1:
        raise UsageError(f"{alpha} is not between 0 and 1", where="alpha")
    utility = alpha * (1 - t / t.max()) + (1 - alpha) * a / a.max()
    return PomtChoice(int(n[utility == utility.max()].max()), tuple(map(float, utility)))
