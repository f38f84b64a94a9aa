"""Reduced against dense: aligned by the tokens that were kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tcompile.artifact.manifest import OutputFidelity
from tcompile.artifact.page import fidelity_notes, fidelity_table, fidelity_words, share
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


def test_samples_have_a_digest(dense: dict[str, np.ndarray]) -> None:
    others = replace(IMAGES, arrays={"image": np.ones((2, 3, 4, 4))})
    again = replace(IMAGES, arrays={"image": np.zeros((2, 3, 4, 4))})
    one, two, three = (compare(dense, dense, s).digest for s in (IMAGES, others, again))
    assert one == three != two


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


def outputs(want: np.ndarray, have: np.ndarray, **more: object) -> OutputFidelity:
    (found,) = compare({"y": want}, {"y": have}, images(len(want)), **more).outputs  # type: ignore[arg-type]
    return found


def images(count: int) -> Samples:
    names = tuple(f"photos/{name}.jpg" for name in ("ant", "bee", "cat", "dog")[:count])
    return Samples({"image": np.zeros((count, 3, 4, 4))}, "images", real=True, ids=names)


def test_a_hole_in_a_map_is_seen_and_the_image_named() -> None:
    maps = 5 + np.random.default_rng(0).standard_normal((3, 1, 8, 8))
    holes = maps.copy()
    holes[1, :, :4, :4] = 4
    found = outputs(maps, holes)
    assert found.cosine_min > 0.98
    assert found.correlation_min is not None
    assert found.correlation_min < 0.9
    assert found.correlation_mean == pytest.approx((2 + found.correlation_min) / 3)
    assert found.error_max == pytest.approx(
        np.linalg.norm((maps - holes)[1]) / np.linalg.norm(maps[1])
    )
    assert (found.worst, found.remark) == ("bee.jpg", "")


def test_classes_and_vectors_have_no_correlation() -> None:
    logits = np.eye(4)
    found = outputs(logits, logits + 0.1)
    assert (found.correlation_mean, found.token_cosine_p05) == (None, None)
    assert found.error_max == pytest.approx(0.2)


def test_one_number_a_sample_answers_to_its_error() -> None:
    found = outputs(np.array([[1.0], [2.0], [4.0]]), np.array([[1.0], [3.0], [4.0]]))
    assert (found.error_max, found.worst, found.top1_agreement) == (0.5, "bee.jpg", None)


def test_the_worst_tokens_of_patch_features() -> None:
    tokens = np.random.default_rng(0).standard_normal((2, 40, 8))
    ruined = tokens.copy()
    ruined[0, :6] *= -1
    assert outputs(tokens, ruined).token_cosine_p05 is None  # a map, for all that is known
    found = outputs(tokens, ruined, schedule={"model": {"tokens": 41, "patches": 40}})
    assert found.token_cosine_p05 == pytest.approx(-1)


def test_what_there_is_no_figure_for_is_said() -> None:
    maps = np.random.default_rng(0).standard_normal((3, 8, 8))
    maps[0] = 0
    have = maps + 0.01
    found = outputs(maps, have)
    assert found.error_mean is None
    assert found.correlation_min is not None
    assert found.correlation_min > 0.99
    assert found.remark == (
        "no relative error: not finite, or 0 in dense, in 1 of 3; "
        "no correlation: constant in dense, in 1 of 3"
    )
    have[2, 3, 3] = np.nan
    found = outputs(maps, have)
    assert (found.correlation_min, found.worst) == (0, "cat.jpg")
    assert "in 2 of 3" in found.remark
    still = outputs(np.ones((2, 4, 4)), np.ones((2, 4, 4)))
    assert (still.correlation_mean, still.worst, still.error_max) == (None, "", 0)


def test_one_sample_has_no_worst() -> None:
    maps = np.random.default_rng(0).standard_normal((1, 8, 8))
    found = outputs(maps, maps + 1)
    assert found.worst == ""
    assert found.correlation_mean == pytest.approx(1)


@pytest.mark.parametrize("kind", ["data", "scenes", "noise"])
def test_what_figures_rest_on_is_said(kind: str) -> None:
    maps = np.random.default_rng(0).standard_normal((2, 8, 8))
    samples = replace(images(2), real=kind == "data", scenes=kind == "scenes")
    found = compare({"y": maps}, {"y": maps + 1}, samples)
    assert found.kind == kind
    said = "; ".join(fidelity_notes(found))
    assert ("your own say more" in said) == (kind == "scenes")
    assert ("white noise says little" in said) == (kind == "noise")
    (line,) = map(fidelity_words, found.outputs)
    assert line.startswith("correlation 1.0000 to dense, worst 1.0000 (")
    head, _ = fidelity_table(found)
    assert head[:4] == ["output", "compared on", "correlation", "its worst"]
    assert "top-1 the same" not in head


def test_nearly_all_is_not_all() -> None:
    """One image of 1000 has another class: 100 % would be read as none."""
    dense = np.eye(2, dtype=np.float32)[[0] * 1000]
    reduced = np.eye(2, dtype=np.float32)[[0] * 999 + [1]]
    samples = replace(IMAGES, arrays={"image": np.zeros((1000, 1))}, ids=())
    (found,) = compare({"logits": dense}, {"logits": reduced}, samples).outputs
    assert found.top1_agreement == 0.999
    assert "top-1 99% the same" in fidelity_words(found)
    assert share(0.9996, 1) == "99.9%"
    assert (share(0.5), share(1.0), share(1.0, 1)) == ("50%", "100%", "100.0%")
