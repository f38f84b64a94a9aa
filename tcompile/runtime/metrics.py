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


def cosine(a: Array, b: Array) -> Array:
    """Cosine of each sample, all its other axes flattened: two [B, …] arrays to [B].

    Two zero vectors agree (1), one zero vector agrees with nothing (0), nor does one that has NaN
    or Inf where the other does not.
    """
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in without_equal_nonfinite(a, b))
    sound: npt.NDArray[np.bool_] = np.asarray(np.isfinite(a).all(1) & np.isfinite(b).all(1))
    a, b = np.where(sound[:, None], a, 0), np.where(sound[:, None], b, 0)
    dots = (a * b).sum(axis=1)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1) & sound
    result = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
    return np.clip(np.where(both_zero, 1.0, result), -1.0, 1.0)


_FEATURES = ("pool", "embed", "feature", "hidden", "token")


def holds_classes(name: str, array: Array) -> bool:
    """Return whether an output [B, X] is likely to score classes, going by its name."""
    features = any(word in name.lower() for word in _FEATURES)
    return array.ndim == 2 and array.dtype.kind == "f" and not features


def top1_agreement(a: Array, b: Array) -> float:
    """Share of samples whose largest class is the same in both [B, classes] arrays."""
    return float((a.argmax(axis=-1) == b.argmax(axis=-1)).mean())


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
