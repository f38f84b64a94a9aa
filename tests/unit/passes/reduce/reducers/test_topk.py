"""`topk`: by token, by row, the same of every window, DyCoke's frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tcompile.core.schedule import Spec
from tcompile.passes.reduce.reducers import find_reducer
from tests.support.reducing import ask_of, problem, reduced
from tests.unit.passes.reduce.reducers.given import (
    CASES,
    Tokens,
    best,
    check,
    cosines,
    sane,
    score_of,
    tokens,
)


def by_token(score: Any, keep: int, grid: tuple[int, ...]) -> list[int]:
    return best(score, keep)


def by_row(score: Any, keep: int, grid: tuple[int, ...]) -> list[int]:
    wide = grid[-1]
    rows = best(score.reshape(-1, wide).sum(1), keep // wide)
    return [row * wide + i for row in rows for i in range(wide)]


def by_window(score: Any, keep: int, grid: tuple[int, ...]) -> list[int]:
    """Windows of 2 x 3, in every frame."""
    places = np.arange(len(score)).reshape(-1, *grid[-2:])
    frames, h, w = places.shape
    kept: list[int] = []
    each = keep // (frames * (h // 2) * (w // 3))
    for frame in places:
        for y in range(0, h, 2):
            for x in range(0, w, 3):
                window = frame[y : y + 2, x : x + 3].reshape(-1)
                kept += window[best(score[window], each)].tolist()
    return sorted(kept)


def by_frame(score: Any, keep: int, grid: tuple[int, ...]) -> list[int]:
    """The first frame of four whole, as many of each other frame."""
    size, frames = grid[1] * grid[2], grid[0]
    whole = [f for f in range(frames) if f % 4 == 0]
    others = [f for f in range(frames) if f % 4]
    each = (keep - len(whole) * size) // max(len(others), 1)
    kept = [f * size + i for f in whole for i in range(size)]
    kept += [f * size + i for f in others for i in best(score[f * size : (f + 1) * size], each)]
    return sorted(kept)


VARIANTS: dict[str, tuple[Any, dict[str, Any], tuple[int, ...], int]] = {
    "token": (by_token, {}, (4, 6), 7),
    "row": (by_row, {"unit": "row"}, (4, 6), 12),
    "row-video": (by_row, {"unit": "row"}, (2, 4, 3), 15),
    "window": (by_window, {"within": [2, 3]}, (4, 6), 12),
    "window-video": (by_window, {"within": [2, 3]}, (2, 2, 6), 4),
    "frames": (by_frame, {"within": "frames"}, (6, 2, 2), 8 + 4 * 3),
    "frames-of-eight": (by_frame, {"within": "frames"}, (8, 1, 3), 6 + 6),
}


def expected(t: Tokens, n: int, name: str) -> tuple[list[int], list[int]]:
    choice, _, grid, keep = VARIANTS[name]
    kept = choice(score_of(t, n), keep, grid)
    owner = cosines(t.patches[n], t.patches[n][kept]).argmax(1)
    owner[kept] = np.arange(keep)
    return kept, owner.tolist()


@CASES
@pytest.mark.parametrize("name", VARIANTS)
def test_formula(name: str, batch: int, prefix: int, sized: bool) -> None:
    _, given, grid, keep = VARIANTS[name]
    t = tokens(24, batch, prefix, sized=sized, grid=grid)
    found = reduced("topk", t, keep, **given)
    sane(t, found, keep)
    for n in range(batch):
        kept, owner = expected(t, n, name)
        check(t, found, n, t.patches[n][kept], kept, owner)
        np.testing.assert_array_equal(found.local[n], kept)
        if t.size is not None:
            np.testing.assert_array_equal(found.size[n], t.size[n][kept])


@pytest.mark.parametrize("name", VARIANTS)
def test_ties(name: str) -> None:
    _, given, grid, keep = VARIANTS[name]
    x = np.full((2, 25, 6), 300, np.float32)
    t = Tokens(x, x, np.zeros((2, 24), np.float32), prefix=1, grid=grid)
    found = reduced("topk", t, keep, half=True, **given)
    sane(t, found, keep)
    np.testing.assert_array_equal(found.index, [VARIANTS[name][0](np.zeros(24), keep, grid)] * 2)


def test_the_first_frames_alone() -> None:
    """A video of one frame in each group has nothing to choose from."""
    assert "1 frames are kept whole" in problem("topk", 12, 6, (1, 3, 4), within="frames")


@pytest.mark.parametrize(
    ("grid", "keep", "given", "words"),
    [
        ((4, 6), 13, {"unit": "row"}, "12 or 18 of 24 can stay, not 13"),
        ((), 12, {"unit": "row"}, "need tokens that are a grid"),
        ((4, 6), 12, {"unit": "row", "within": [2, 3]}, "do not go together"),
        ((4, 6), 9, {"within": [2, 3]}, "8 or 12 of 24 can stay, not 9"),
        ((4, 6), 12, {"within": [3, 3]}, "do not tile what these tokens are: 4 x 6"),
        ((), 12, {"within": [2, 3]}, "no grid"),
        ((4, 6), 12, {"within": [2]}, "within is"),
        ((4, 6), 12, {"within": "rows"}, "within is"),
        ((4, 6), 12, {"within": [2, True]}, "within is"),
        ((6, 2, 2), 10, {"within": "frames"}, "12 of 24 can stay, not 10"),
        ((4, 6), 10, {"within": "frames"}, "tokens of a video"),
    ],
)
def test_what_is_impossible(
    grid: tuple[int, ...], keep: int, given: dict[str, Any], words: str
) -> None:
    assert words in problem("topk", 24, keep, grid, **given)


def test_the_grid_that_is_left() -> None:
    values = {"unit": "row", "within": None}
    topk = find_reducer("topk")
    assert topk.grid(ask_of(24, 12, values, (4, 6))) == (2, 6)
    assert topk.grid(ask_of(24, 12, values, (2, 2, 6))) == ()
    assert topk.grid(ask_of(24, 12, {"unit": "token", "within": None}, (4, 6))) == ()
    assert topk.bind(Spec("topk"))[0].groups
    assert not topk.bind(Spec("topk", values))[0].segments
