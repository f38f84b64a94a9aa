"""Numbers that pass as the same, and every kind of difference that does not."""

from __future__ import annotations

import numpy as np
import pytest

from tcompile.verify.numerics import TOLERANCES, compare_numerics

FP32, FP16 = TOLERANCES["fp32"], TOLERANCES["fp16"]


@pytest.fixture
def reference() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    index = np.sort(np.stack([rng.permutation(50)[:30] for _ in range(4)]), axis=1)
    return {
        "logits": rng.standard_normal((4, 10)).astype(np.float32) * 20,
        "tokens": rng.standard_normal((4, 30, 8)).astype(np.float32),
        "token_index": index,
    }


def test_the_same_is_the_same(reference: dict[str, np.ndarray]) -> None:
    found = compare_numerics(reference, dict(reference), FP32)
    assert found.passed
    assert found.same_tokens == 4
    assert [o.output for o in found.outputs] == ["logits", "tokens"]
    assert all(o.error == 0 for o in found.outputs)


def test_rounding_to_half_passes_as_fp16_only(reference: dict[str, np.ndarray]) -> None:
    rounded = {
        name: a.astype(np.float16).astype(np.float32) if a.dtype.kind == "f" else a
        for name, a in reference.items()
    }
    assert compare_numerics(reference, rounded, FP16).passed
    assert not compare_numerics(reference, rounded, FP32).passed


def test_an_error_is_relative_to_the_output(reference: dict[str, np.ndarray]) -> None:
    shifted = {**reference, "logits": reference["logits"] + 1e-4}
    assert compare_numerics(reference, shifted, FP32).passed
    small = {**reference, "logits": reference["logits"] * 1e-3}
    shifted = {**small, "logits": small["logits"] + 1e-4}
    found = compare_numerics(small, shifted, FP32)
    assert "logits" in found.faults[0]


def test_one_wrong_sample_fails(reference: dict[str, np.ndarray]) -> None:
    wrong = {**reference, "logits": reference["logits"].copy()}
    wrong["logits"][2] = wrong["logits"][1]
    assert not compare_numerics(reference, wrong, FP16).passed


def test_other_tokens_fail(reference: dict[str, np.ndarray]) -> None:
    other = {**reference, "token_index": (reference["token_index"] + 13) % 50}
    found = compare_numerics(reference, other, FP16)
    assert "keeps other tokens" in found.faults[0]


def test_one_flipped_token_is_not_held_against_the_rows(reference: dict[str, np.ndarray]) -> None:
    flipped = {name: a.copy() for name, a in reference.items()}
    free = next(i for i in range(50) if i not in reference["token_index"][0])
    flipped["token_index"][0, 4] = free
    flipped["tokens"][0, 4] += 1
    order = flipped["token_index"][0].argsort()
    for name in ("token_index", "tokens"):
        flipped[name][0] = flipped[name][0][order]
    found = compare_numerics(reference, flipped, FP16)
    assert found.passed
    assert found.same_tokens == 3
    flipped["tokens"][0] = np.roll(flipped["tokens"][0], 1, axis=0)
    assert not compare_numerics(reference, flipped, FP16).passed


def test_missing_output_shape_and_nan(reference: dict[str, np.ndarray]) -> None:
    assert (
        "missing"
        in compare_numerics(
            reference,
            {"tokens": reference["tokens"], "token_index": reference["token_index"]},
            FP32,
        ).faults[0]
    )
    cut = {**reference, "tokens": reference["tokens"][:, :5]}
    assert "(4, 5, 8)" in compare_numerics(reference, cut, FP32).faults[0]
    bad = {**reference, "logits": reference["logits"] * np.nan}
    assert "NaN" in compare_numerics(reference, bad, FP32).faults[0]
