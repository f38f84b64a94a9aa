"""Scenes against photos: ranks, ratios of losses, and the page made of them."""

from __future__ import annotations

import pytest

from benchmarks.scenes import compared, page, spearman


def test_ranks_are_what_counts_and_equal_values_share_theirs() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 1000]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # Ranks 1, 2.5, 2.5, 4 against 1, 3, 2, 4.
    assert spearman([1, 2, 2, 3], [1, 3, 2, 4]) == pytest.approx(0.9487, abs=1e-4)


def test_losses_are_compared_with_those_on_photos() -> None:
    rows = {
        f"{name} 0.6": {"photos": {"CLS": [1 - loss]}, "scenes": {"CLS": [1 - 2 * loss]}}
        for name, loss in (("a", 0.01), ("b", 0.02), ("c", 0.1))
    }
    rows["d 0.6"] = {"missing": {}}
    count, rank, ratio = compared(rows, "scenes", "CLS", "0.6")
    assert (count, rank, ratio) == (3, pytest.approx(1), pytest.approx(2, abs=1e-3))
    text = page({"model": rows})
    assert "| scenes | 0.6 | 3 | 1.00 | 2.00 |" in text
    assert "| b 0.6 | 0.9800 (0.980) | 0.9600 (0.960) |" in text
