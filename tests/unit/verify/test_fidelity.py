"""Reduced against dense: aligned by the tokens that were kept."""

from __future__ import annotations

import numpy as np
import pytest

from tcompile.runtime.samples import Samples
from tcompile.verify.fidelity import compare

IMAGES = Samples({"image": np.zeros((2, 3, 4, 4))}, "2 images", real=True)


@pytest.fixture
def dense() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "logits": np.array([[0.1, 0.9], [0.8, 0.2]], dtype=np.float32),
        "tokens": rng.standard_normal((2, 6, 4)).astype(np.float32),
    }


def test_same_shape(dense: dict[str, np.ndarray]) -> None:
    reduced = {"logits": np.array([[0.2, 0.8], [0.3, 0.7]], dtype=np.float32)}
    (found,) = compare(dense, reduced, IMAGES).outputs
    assert (found.output, found.compared, found.top1_agreement) == ("logits", "all", 0.5)
    assert found.cosine_min < found.cosine_mean < 1


def test_features_have_no_top1(dense: dict[str, np.ndarray]) -> None:
    features = {"pooler_output": dense["logits"]}
    (found,) = compare(features, features, IMAGES).outputs
    assert found.top1_agreement is None
    assert found.cosine_min == pytest.approx(1)


def test_kept_tokens_are_compared_with_themselves(dense: dict[str, np.ndarray]) -> None:
    index = np.array([[0, 2, 5], [0, 1, 4]])
    kept = np.take_along_axis(dense["tokens"], index[..., None], axis=1)
    (found,) = compare(
        {"tokens": dense["tokens"]}, {"tokens": kept, "token_index": index}, IMAGES
    ).outputs
    assert found.compared == "kept tokens"
    assert found.cosine_min == pytest.approx(1)


def test_merged_tokens_stand_for_all_of_theirs(dense: dict[str, np.ndarray]) -> None:
    owner = np.array([[0, 1, 1, 2, 2, -1]] * 2)
    tokens = dense["tokens"].copy()
    tokens[:, 2], tokens[:, 4] = tokens[:, 1], tokens[:, 3]
    reduced = {
        "tokens": tokens[:, [0, 1, 3]],
        "token_index": np.array([[0, 1, 3]] * 2),
        "token_owner": owner,
    }
    (found,) = compare({"tokens": tokens}, reduced, IMAGES).outputs
    assert found.compared == "restored tokens"
    assert found.cosine_min == pytest.approx(1)
