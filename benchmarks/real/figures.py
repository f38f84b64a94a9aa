"""Figures about outputs of a reduced model beside the dense one's, and about lists of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr  # type: ignore[import-untyped]

from benchmarks.real.models import CLS, PATCHES, SALIENCY
from tcompile.runtime.metrics import correlation, cosine, token_cosine

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Task:
    """What a model is used for.

    Attributes:
        name, words: for tables.
        output: of the model.
        figure: of each image, from the dense model's output and the reduced one's: 1 is the same.
    """

    name: str
    words: str
    output: str
    figure: Callable[[Array, Array], Array]


def same_classes(dense: Array, reduced: Array) -> Array:
    """1 − the total variation of two softmaxes [B, classes]: the share that lies alike."""
    a, b = (np.exp(x - x.max(-1, keepdims=True)) for x in (dense, reduced))
    a, b = (x / x.sum(-1, keepdims=True) for x in (a, b))
    return np.asarray(np.minimum(a, b).sum(-1))


def mean_token_cosine(dense: Array, reduced: Array) -> Array:
    """The mean over the tokens of an image of each one's cosine: a hole counts as much as it is
    large, whatever its norm."""
    return np.asarray(token_cosine(dense, reduced).mean(-1))


SALIENCY_TASK = Task("saliency", "correlation of the map", SALIENCY, correlation)
CLS_TASK = Task("cls", "cosine of the CLS features", CLS, cosine)
PATCHES_TASK = Task("patches", "mean cosine of the patch features", PATCHES, mean_token_cosine)
CLASSES_TASK = Task("classes", "share of the softmax that is alike", "logits", same_classes)
TASKS = {t.name: t for t in (SALIENCY_TASK, CLS_TASK, PATCHES_TASK, CLASSES_TASK)}


def summary(values: Sequence[float]) -> dict[str, float]:
    """Mean, 5th percentile and worst of some images' figures; images without one are left out."""
    sound = np.asarray(values, np.float64)
    sound = sound[~np.isnan(sound)]
    if not len(sound):
        return {"mean": 0.0, "p5": 0.0, "worst": 0.0}
    return {
        "mean": float(sound.mean()),
        "p5": float(np.percentile(sound, 5)),
        "worst": float(sound.min()),
    }


def nearest(features: Array) -> npt.NDArray[np.int64]:
    """Of each row [images, C] the other row of the largest cosine."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-30)
    alike = unit @ unit.T
    np.fill_diagonal(alike, -np.inf)
    return np.asarray(alike.argmax(1), np.int64)


def same_neighbour(dense: Array, reduced: Array) -> Array:
    """Of each image 1 where its nearest neighbour is the dense model's, else 0."""
    return np.asarray(nearest(dense) == nearest(reduced), np.float64)


def retrieved(features: Array, labels: Sequence[str]) -> float:
    """The share of images whose nearest neighbour has their label."""
    names = np.asarray(labels)
    return float((names[nearest(features)] == names).mean())


def rank_correlation(a: Mapping[str, float], b: Mapping[str, float]) -> float | None:
    """Spearman's, over the names that both have; None for fewer than three, or all alike."""
    names = sorted(set(a) & set(b))
    pair = [[each[n] for n in names] for each in (a, b)]
    if len(names) < 3 or any(len(set(values)) == 1 for values in pair):
        return None
    return float(spearmanr(*pair).statistic)
