"""The drop of a reduced model on images it was not planned with, and how sure that is.

What is measured depends on what there is:
- labels and class outputs: the drop of top-1 accuracy, P(only dense right) − P(only reduced right).
  The first share is bounded from above and the second from below (Clopper-Pearson), with 4/5 and
  1/5 of the error allowed: exact for every sample size, and conservative.
- class outputs alone: the share of images whose top-1 class changes; Clopper-Pearson, exact.
- anything else: the mean of 1 − cosine or correlation. A bound for a mean in [0, 2] that holds
  whatever the distribution is never below 2·(1 − α^(1/n)), 0.07 for 64 images, since one image in
  thirty might be as wrong as can be; useless for drops of 0.01. This is a t bound corrected for
  skew (`mean_at_most`) at half the error allowed. It is approximate, and `exact` is False: for a
  promised 90 % it holds in 87 to 93 % of draws of 32 or 64 images from gamma (shape 0.5), lognormal
  (σ = 1) and the distances of 108 reduced zoo:glyphs, less often where tails are longer.

A bound is for one model chosen without these images. To pick the best of k by their bounds,
ask for a confidence of 1 − (1 − c)/k.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tcompile.core.errors import UsageError
from tcompile.core.packages import require
from tcompile.planning.losses.distance import class_outputs, dissimilarity

ACCURACY, DISAGREEMENT = "top-1 accuracy", "top-1 disagreement with dense"
UNLIKE = "1 - cosine or correlation"
#: Of the error allowed, what the share of images that turn wrong may use.
_TURNED_WRONG = 0.8


@dataclass(frozen=True)
class Drop:
    """The loss of a reduction on images.

    Attributes:
        what: `top-1 accuracy` (its drop), `top-1 disagreement with dense` or `1 - cosine or
            correlation`.
        mean: measured; a drop of accuracy may be negative.
        upper: one-sided bound: the true value lies below it with `confidence`.
        images: measured on.
        confidence: of the bound.
        exact: whether the confidence holds for every number of images, or about.
    """

    what: str
    mean: float
    upper: float
    images: int
    confidence: float
    exact: bool


def measure_drop(
    dense_outputs: Mapping[str, npt.NDArray[Any]],
    reduced_outputs: Mapping[str, npt.NDArray[Any]],
    labels: npt.ArrayLike | None = None,
    *,
    confidence: float = 0.9,
) -> Drop:
    """The drop from a dense to a reduced model on the same images.

    Args:
        dense_outputs, reduced_outputs: by name, one image a row.
        labels: [images] class numbers; ignored where no output holds classes.

    Raises:
        UsageError: no images, labels that do not fit, or outputs that cannot be compared.
    """
    alpha, total = 1 - confidence, len(next(iter(dense_outputs.values())))
    if not total:
        raise UsageError("no images to measure on", where="max-drop")
    names = [n for n in class_outputs(dense_outputs) if n in reduced_outputs]
    if not names:
        far = dissimilarity(dense_outputs, reduced_outputs)
        upper = min(mean_at_most(far, alpha / 2), 2.0)
        return Drop(UNLIKE, float(far.mean()), upper, total, confidence, False)
    before, after = (o[names[0]].argmax(axis=-1) for o in (dense_outputs, reduced_outputs))
    if labels is None:
        changed = int((before != after).sum())
        upper = share_at_most(changed, total, alpha)
        return Drop(DISAGREEMENT, changed / total, upper, total, confidence, True)
    true = np.asarray(labels)
    classes = dense_outputs[names[0]].shape[1]
    if true.shape != before.shape or np.any((true < 0) | (true >= classes)):
        raise UsageError(f"needs {total} labels from 0 to {classes - 1}", where="labels")
    lost = int(((before == true) & (after != true)).sum())
    won = int(((before != true) & (after == true)).sum())
    upper = share_at_most(lost, total, _TURNED_WRONG * alpha)
    upper -= share_at_least(won, total, (1 - _TURNED_WRONG) * alpha)
    return Drop(ACCURACY, (lost - won) / total, upper, total, confidence, True)


def images_needed(drop: float, confidence: float = 0.9, *, labels: bool = False) -> int:
    """The fewest images with which a class model can be shown to drop by at most `drop`: as many as
    it takes if not one of them changes. If some do, more.

    Args:
        drop, confidence: both between 0 and 1.
    """
    alpha = (1 - confidence) * (_TURNED_WRONG if labels else 1.0)
    # With no change in n images, the bound is 1 − alpha^(1/n).
    return math.ceil(math.log(alpha) / math.log1p(-drop) - 1e-9)


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
