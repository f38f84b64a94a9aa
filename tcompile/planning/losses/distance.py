"""Distance of a reduced model's outputs from the dense model's, one number an image.

- Classes [B, X] (`verify.metrics.holds_classes`): the total variation of the softmax,
  ½ Σ_c |p_c − q_c|, the probability that moves to other classes, and no other output is looked at.
  Where several outputs hold classes, their mean.
- Embeddings [B, C]: 1 − cosine.
- Maps and features of tokens that kept their shape or were restored: 1 − Pearson correlation, which
  sees holes that a cosine hides behind a large mean.
- Token outputs of which some left: the same, over all tokens of the dense model. Each is compared
  with the row that it was merged into; one that was dropped, with the kept one that is most like it
  in the dense output, so that dropping a token costs what can no longer be known of it.

The mean over the outputs of the last three kinds.

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
from tcompile.runtime.metrics import correlation, cosine, holds_classes
from tcompile.runtime.token_outputs import INDEX, aligned, for_output, is_bookkeeping, take_rows

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Outputs = Mapping[str, Array]

VARIATION = "class probability that moves"
LIKENESS = "1 - cosine of embeddings, 1 - correlation of maps and tokens"


def class_outputs(outputs: Outputs) -> list[str]:
    """The outputs that score classes."""
    return [
        n
        for n, a in outputs.items()
        if not is_bookkeeping(n) and holds_classes(n, a) and a.shape[1] > 1
    ]


def unit(dense: Outputs) -> str:
    """The unit of `distance` for a model with these outputs."""
    return VARIATION if class_outputs(dense) else LIKENESS


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
    """[B], the mean over all outputs that can be compared. Raises as `distance`."""
    found = [
        one
        for name, want in dense.items()
        if name in reduced
        and want.dtype.kind == "f"
        and not is_bookkeeping(name)
        and (one := _unlike(name, want, reduced[name], reduced)) is not None
    ]
    if not found:
        raise UsageError(
            "the model has no output that can be compared with the dense one's",
            where="--calibration",
        )
    return _mean(found)


def _unlike(name: str, want: Array, have: Array, extra: Outputs) -> Floats | None:
    """[B]: how much an output changed; None where it cannot be compared."""
    pair = aligned(name, want, have, extra)
    if pair is None:
        return None
    compared, a, b = pair
    if a.ndim == 2:
        return np.asarray(1.0 - cosine(a, b))
    if compared == "kept tokens":
        a, b = _all_tokens(name, want, have, extra)
    alike = correlation(a, b)
    return np.asarray(1.0 - np.where(np.isnan(alike), cosine(a, b), alike))


def _all_tokens(name: str, want: Array, have: Array, extra: Outputs) -> tuple[Array, Array]:
    """Each token of the dense output, and the kept one that it or its most alike one became: two
    [B, N, C]."""
    axis = next(i for i, (n, k) in enumerate(zip(want.shape, have.shape, strict=True)) if n != k)
    dense, kept = (np.moveaxis(a, axis, 1) for a in (want, have))
    dense, kept = (a.reshape(*a.shape[:2], -1) for a in (dense, kept))
    index = for_output(INDEX, name, extra, kept.shape[1])
    assert index is not None  # or they would not be compared over kept tokens
    unit_rows = dense / np.maximum(np.linalg.norm(dense, axis=-1, keepdims=True), 1e-12)
    likeness = unit_rows @ take_rows(unit_rows, index.clip(min=0)).swapaxes(1, 2)
    likeness = np.where((index >= 0)[:, None, :], likeness, -2.0)  # a fused one is no token
    return dense, take_rows(kept, likeness.argmax(axis=-1))


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
