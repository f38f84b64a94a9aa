"""Distances between outputs of two models. Arrays are numpy, rows are samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def without_equal_nonfinite(a: Array, b: Array) -> tuple[Array, Array]:
    """Both with 0 where both are NaN, or the same Inf: a masked class is −Inf in every model."""
    if a.dtype.kind != "f" or (np.isfinite(a).all() and np.isfinite(b).all()):
        return a, b
    same = (np.isnan(a) & np.isnan(b)) | (np.isinf(a) & (a == b))
    return np.where(same, 0, a), np.where(same, 0, b)


def _rows(a: Array, b: Array) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    """Both as [B, values] of double precision, and which samples are sound; the others are 0.

    A sample is not sound that has NaN or Inf where the other array does not have the same.
    """
    a, b = (
        x.reshape(len(x), -1).astype(np.float64, copy=False) for x in without_equal_nonfinite(a, b)
    )
    sound: npt.NDArray[np.bool_] = np.asarray(np.isfinite(a).all(1) & np.isfinite(b).all(1))
    if not sound.all():
        a, b = np.where(sound[:, None], a, 0), np.where(sound[:, None], b, 0)
    return a, b, sound


def cosine(a: Array, b: Array) -> Array:
    """Cosine of each sample, all its other axes flattened: two [B, …] arrays to [B].

    Two zero vectors agree (1), one zero vector agrees with nothing (0), nor does one that has NaN
    or Inf where the other does not.
    """
    a, b, sound = _rows(a, b)
    dots = np.einsum("bi,bi->b", a, b)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1) & sound
    result = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
    return np.clip(np.where(both_zero, 1.0, result), -1.0, 1.0)


def correlation(want: Array, have: Array) -> Array:
    """Pearson correlation of each sample, all its other axes flattened: two [B, …] to [B].

    Other than a cosine, it sees what a large mean hides: holes in a map. NaN where `want` is
    constant, so that there is none; 0 where only `have` is, or has NaN or Inf of its own.
    """
    want, have, sound = _rows(want, have)
    # What is left of a constant after its mean is rounding alone.
    size = np.maximum(np.abs(want).max(axis=1, initial=0), 1e-30)
    want = want - want.mean(axis=1, keepdims=True)
    have = have - have.mean(axis=1, keepdims=True)
    constant = np.abs(want).max(axis=1, initial=0) <= 1e-6 * size
    return np.where(constant & sound, np.nan, np.where(sound, cosine(want, have), 0.0))


def relative_error(want: Array, have: Array) -> Array:
    """L2 norm of the difference of each sample, over that of `want`: two [B, …] arrays to [B].

    0 where both are 0. Inf where only `want` is, or where `have` has NaN or Inf of its own.
    """
    want, have, sound = _rows(want, have)
    apart, norms = np.linalg.norm(have - want, axis=1), np.linalg.norm(want, axis=1)
    found = np.divide(apart, norms, out=np.where(apart > 0, np.inf, 0.0), where=norms > 0)
    return np.where(sound, found, np.inf)


def token_cosine(want: Array, have: Array) -> Array:
    """Cosine of each token with itself: two [B, N, C] arrays to [B, N]; rules as `cosine`."""
    channels = want.shape[-1]
    return cosine(want.reshape(-1, channels), have.reshape(-1, channels)).reshape(want.shape[:-1])


_FEATURES = ("pool", "embed", "feature", "hidden", "token")


def holds_classes(name: str, array: Array) -> bool:
    """Return whether an output [B, X] is likely to score classes, going by its name."""
    features = any(word in name.lower() for word in _FEATURES)
    return array.ndim == 2 and array.dtype.kind == "f" and not features


def top1_agreement(a: Array, b: Array) -> float:
    """Share of samples whose largest class is the same in both [B, classes] arrays; what is not
    finite is no answer."""
    first, second = (np.where(np.isfinite(x), x, -np.inf) for x in (a, b))
    answered = np.isfinite(second).any(axis=-1)
    return float(((first.argmax(axis=-1) == second.argmax(axis=-1)) & answered).mean())


def jaccard(a: Array, b: Array) -> Array:
    """Overlap of two sets of token indices for each sample: two [B, K] arrays to [B].

    Negative entries are padding and belong to neither.
    """

    def one(x: Array, y: Array) -> float:
        first, second = ({int(i) for i in z.ravel() if i >= 0} for z in (x, y))
        union = first | second
        return len(first & second) / len(union) if union else 1.0

    return np.array([one(x, y) for x, y in zip(a, b, strict=True)])


def same_owner(a: Array, b: Array) -> Array:
    """Share of tokens that two owner maps group alike: two [B, N] arrays to [B].

    A group is named by its first member, so that a shift in slot numbers changes nothing.
    """

    def canonical(owner: Array) -> Array:
        _, first, slots = np.unique(owner, return_index=True, return_inverse=True)
        return np.where(owner >= 0, first[slots], -1)

    pairs = zip(a, b, strict=True)
    return np.array([(canonical(x) == canonical(y)).mean() for x, y in pairs])


def not_finite(outputs: Mapping[str, Array], expected: Mapping[str, Array]) -> list[str]:
    """Plain sentences about NaN and Inf, one an output that has any.

    Args:
        expected: outputs that may have them at the same places.
    """
    found = []
    for name, array in outputs.items():
        if not np.issubdtype(array.dtype, np.floating):
            continue
        if name in expected and expected[name].shape == array.shape:
            array, _ = without_equal_nonfinite(array, expected[name])
        nan, inf = int(np.isnan(array).sum()), int(np.isinf(array).sum())
        if nan or inf:
            kinds = [f"{n} {k}" for n, k in ((nan, "NaN"), (inf, "Inf")) if n]
            found.append(f"output '{name}' has {' and '.join(kinds)} among {array.size} values")
    return found
