"""Distance of a reduced model's outputs from the dense model's, one number an image.

- Classes [B, X] (`verify.metrics.holds_classes`): the total variation of the softmax,
  ½ Σ_c |p_c − q_c|, the probability that moves to other classes, and no other output is looked at.
  Where several outputs hold classes, their mean.
- Embeddings [B, C], maps and states that kept their shape: 1 − cosine.
- Token outputs of which some left: 1 − cosine over the tokens that both have, or over the restored
  ones, as `verify.fidelity` compares them. The mean over the outputs of the last two kinds.

Why total variation: of ten distances it predicts best. On zoo:glyphs, losses of single steps on 128
images, added up (`base.SiteLosses.step`) over 36 random schedules of 2 to 6 steps, rank the drop of
top-1 accuracy on 800 other images by (Spearman)

    topk  evit  tome
    .985  .988  .960  total variation
    .981  .984  .961  Jensen-Shannon
    .982  .985  .952  root of KL(dense ‖ reduced)
    .978  .979  .945  KL(dense ‖ reduced)
    .978  .978  .960  1 − cosine of the logits
    .973  .976  .949  disagreement
    .929  .933  .786  the prior (`optimise.prior`), which has seen no image
    .824  .827  .739  how many tokens leave

With 16 images total variation still gives .978, .979, .947: it is bounded, so that no image speaks
for all. What it adds up to is about what whole schedules lose where tokens are dropped (median
ratio 0.93), and too much where they merge (0.56).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tcompile.core.errors import UsageError
from tcompile.runtime.metrics import cosine, holds_classes
from tcompile.runtime.token_outputs import aligned, is_bookkeeping

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Outputs = Mapping[str, Array]

VARIATION, COSINE = "class probability that moves", "1 - cosine of the outputs"


def class_outputs(outputs: Outputs) -> list[str]:
    """The outputs that score classes."""
    return [
        n
        for n, a in outputs.items()
        if not is_bookkeeping(n) and holds_classes(n, a) and a.shape[1] > 1
    ]


def unit(dense: Outputs) -> str:
    """The unit of `distance` for a model with these outputs."""
    return VARIATION if class_outputs(dense) else COSINE


def distance(dense: Outputs, reduced: Outputs) -> Floats:
    """[B], ≥ 0, in the unit that `unit` says.

    Args:
        dense, reduced: outputs by name, one image a row; the reduced ones with what tells of the
            tokens (`token_index`, `token_owner`).

    Raises:
        UsageError: nothing that both give can be compared.
    """
    classes = [n for n in class_outputs(dense) if n in reduced]
    if classes:
        return _mean([variation(dense[n], reduced[n]) for n in classes])
    return dissimilarity(dense, reduced)


def dissimilarity(dense: Outputs, reduced: Outputs) -> Floats:
    """1 − cosine [B], the mean over all outputs that can be compared. Raises as `distance`."""
    found = [
        np.asarray(1.0 - cosine(*pair[1:]))
        for name, want in dense.items()
        if name in reduced
        and want.dtype.kind == "f"
        and not is_bookkeeping(name)
        and (pair := aligned(name, want, reduced[name], reduced)) is not None
    ]
    if not found:
        raise UsageError(
            "the model has no output that can be compared with the dense one's",
            where="--calibration",
        )
    return _mean(found)


def _mean(found: list[Floats]) -> Floats:
    return np.asarray(np.maximum(np.mean(found, axis=0), 0.0))


def softmax(logits: Array) -> Floats:
    """[B, X] → [B, X]; NaN as −Inf, which is a class that is never taken."""
    x = np.nan_to_num(logits.astype(np.float64), nan=-1e30, posinf=1e30, neginf=-1e30)
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(x / x.sum(axis=-1, keepdims=True))


def variation(dense: Array, reduced: Array) -> Floats:
    """Total variation [B], in [0, 1], between the softmax of two [B, X] arrays of logits."""
    return np.asarray(np.abs(softmax(dense) - softmax(reduced)).sum(axis=-1) / 2)
