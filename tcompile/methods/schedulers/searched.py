"""Schedulers that learn counts from the attention that each token is paid on images."""

from __future__ import annotations

from collections.abc import Callable
from math import exp
from typing import TYPE_CHECKING, Any

from tcompile.core.schedule import Spec
from tcompile.methods.context import Context, Values
from tcompile.methods.schedulers.base import Place, Scheduler, after_blocks

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]


def fit(*scores: Spec) -> Scheduler:
    """FitPrune: in each block as many leave as cost at most alpha of every score's sum.

    Tokens go by the product of the scores, least first; counts are means over the images; alpha is
    the least, by bisection, that brings the last block to --keep.
    """

    def run(context: Context, values: Values) -> list[Place]:
        import numpy as np

        shares = context.calibration
        order = np.argsort(np.prod(shares, axis=0), axis=-1, kind="stable")
        # [blocks, images, T]: what is lost, of the score that loses most, when 1, 2, … leave.
        lost = np.max([np.cumsum(np.take_along_axis(s, order, -1), -1) for s in shares], axis=0)

        def counts(alpha: float) -> list[int]:
            left = lost.shape[-1] - np.mean(np.sum(lost <= alpha, axis=-1), axis=-1)
            return [int(n) for n in np.minimum.accumulate(np.ceil(left))]

        return _solved(context, values["alpha"], counts)

    return Scheduler(
        "in every block, as many as cost at most alpha of the attention on images",
        run,
        observes=scores,
    )


def greedy(score: Spec) -> Scheduler:
    """G-Search: from the first block on, as few as lose at most a tolerance each time.

    What is lost is a share of what the tokens still there receive. The tolerance is the least, by
    bisection, that brings the last block to --keep.
    """

    def run(context: Context, values: Values) -> list[Place]:
        import numpy as np

        (shares,) = context.calibration

        def counts(tolerance: float) -> list[int]:
            gone = np.zeros(shares.shape[1:], bool)
            found: list[int] = []
            for share in shares:
                order = _order(share, gone)
                there = np.take_along_axis(np.where(gone, 0, share), order, -1)
                lost = np.cumsum(there, -1) / np.maximum(there.sum(-1, keepdims=True), 1e-12)
                already = gone.sum(-1).max()
                leave = max(int(np.mean(np.sum(lost <= tolerance, axis=-1))), int(already))
                np.put_along_axis(gone, order[:, :leave], True, -1)
                found.append(gone.shape[-1] - leave)
            return found

        return _solved(context, values["tolerance"], counts)

    return Scheduler(
        "in every block, from the first on, as few as lose at most a tolerance",
        run,
        observes=(score,),
    )


def sigmoid(score: Spec) -> Scheduler:
    """P-Sigmoid: what has left after block l is a sigmoid of (l + 1)/L.

    Of the midpoints and widths that keep no more tokens in the mean over the blocks than a straight
    line to --keep, the pair that loses least of the score on the images, all blocks together.
    """

    def run(context: Context, values: Values) -> list[Place]:
        (shares,) = context.calibration
        total, blocks = context.shape.patches, context.shape.blocks
        line = sum(total - (total - context.final) * (i + 1) / blocks for i in range(blocks))
        tenths = [i / 10 for i in range(1, 10)]
        middles = tenths if values["middle"] is None else [values["middle"]]
        widths = [0.02, 0.05, 0.1, 0.2, 0.5] if values["width"] is None else [values["width"]]
        tried = [_sigmoid(total, context.final, blocks, m, w) for m in middles for w in widths]
        cheap = [counts for counts in tried if sum(counts) <= line] or tried
        best = min(cheap, key=lambda counts: (_lost(shares, counts), counts))
        return after_blocks(context, best)

    return Scheduler(
        "in every block, along a sigmoid that is fitted on images", run, observes=(score,)
    )


def _solved(
    context: Context, given: float | None, counts: Callable[[float], list[int]]
) -> list[Place]:
    """The counts of a threshold, given or the least that comes down to --keep."""
    if given is not None:
        goals = [max(n, 1) for n in counts(given)]
    else:
        low, high = 0.0, 1.0
        for _ in range(24):
            middle = (low + high) / 2
            low, high = (low, middle) if counts(middle)[-1] <= context.final else (middle, high)
        goals = [max(n, context.final) for n in counts(high)]
        # All that is left when everything may be lost, save for rounding in the sums.
        goals[-1] = context.final
    return after_blocks(context, goals)


def _order(share: Array, gone: Array) -> Array:
    """[images, T]: those that are gone first, then the least."""
    import numpy as np

    return np.argsort(np.where(gone, -1.0, share), axis=-1, kind="stable")


def _sigmoid(total: int, final: int, blocks: int, middle: float, width: float) -> list[int]:
    def at(x: float) -> float:
        return 1 / (1 + exp(-(x - middle) / width))

    reached = [(at(i / blocks) - at(0)) / (at(1) - at(0)) for i in range(1, blocks + 1)]
    return [total - round((total - final) * r) for r in reached]


def _lost(shares: Array, counts: list[int]) -> float:
    """The attention that the tokens that have left would receive in each block, summed."""
    import numpy as np

    gone = np.zeros(shares.shape[1:], bool)
    lost = 0.0
    for share, count in zip(shares, counts, strict=True):
        np.put_along_axis(gone, _order(share, gone)[:, : gone.shape[-1] - count], True, -1)
        lost += float(np.where(gone, share, 0).sum(-1).mean())
    return lost
