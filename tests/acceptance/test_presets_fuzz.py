"""Any preset and any schedule on tiny models of any shape: refused in one line, or right.

TCOMPILE_FUZZ=N tries N of them in place of a few; `tests/support/fuzz_presets.py` is the script.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

from tcompile.core.schedule import Reduction, Schedule, Spec
from tcompile.methods.presets import PRESETS
from tests.support.fuzz_presets import Ask, ask, subject, tried
from tests.support.grid_vit import GridVit, forward, grid_weights, images
from tests.support.judge_presets import Subject, WrongError, check

#: How many cases, in parts, so that workers can share them.
MANY = int(os.environ.get("TCOMPILE_FUZZ", "18"))
PARTS = 3
SPEC = GridVit(rows=3, columns=5, depth=2, width=16, pool="none")


def kind_of(made: Ask) -> str:
    try:
        return tried(made).kind
    except Exception as error:
        raise AssertionError(made.words()) from error


@pytest.mark.parametrize("part", range(PARTS))
def test_presets_and_schedules(part: int) -> None:
    kinds = {kind_of(ask(seed)) for seed in range(part, MANY, PARTS)}
    assert kinds - {"refused"}


def test_a_seed_makes_a_case() -> None:
    found = [ask(seed) for seed in range(40)]
    assert {made.method.partition(":")[0] for made in found} <= {"", *(p.name for p in PRESETS)}
    assert any(made.schedule for made in found)
    assert [made.spec for made in found] == [ask(seed).spec for seed in range(40)]


def test_numpy_agrees_with_the_dense_model() -> None:
    known = subject(SPEC, None)
    schedule = Schedule("topk", known.model.analysis.shape, ())
    assert check(known, schedule, "reduced") == "whole"
    image = images(SPEC, 1).astype(np.float64)
    tokens = forward(SPEC, grid_weights(SPEC, SPEC.patches), image, {})
    assert tokens.shape == (1, 16, 16)


def test_one_patch_can_lose_none() -> None:
    """PYRA's list shared out over a grid of one patch divided by zero."""
    spec = GridVit(rows=1, columns=1, depth=1, width=16, prefix=1)
    for preset in PRESETS:
        if not {*preset.needs, *preset.required} - {"grid"}:
            kind_of(Ask(0, spec, 1, "reduced", preset.name, "0.5"))


@pytest.mark.parametrize("wrong", ["another token", "other weights"])
def test_the_judge_sees_what_is_wrong(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = subject(SPEC, None)
    steps = (Reduction("attn:0", Spec("norm"), Spec("topk"), 7),)
    schedule = Schedule("custom", known.model.analysis.shape, steps)
    assert "reckoned" in check(known, schedule, "reduced")
    if wrong == "other weights":
        other = Subject(known.model, 0, known.feed, (SPEC, grid_weights(SPEC, 99)))
        with pytest.raises(WrongError, match="off by"):
            check(other, schedule, "reduced")
        return
    from tests.support import judge_presets

    honest = judge_presets.run

    def shifted(model: object, feed: object) -> dict[str, np.ndarray]:
        found = honest(model, feed)  # type: ignore[arg-type]
        if "token_index" in found:
            found["token_index"] = np.roll(found["token_index"], 1, axis=1)
        return found

    monkeypatch.setattr(judge_presets, "run", shifted)
    with pytest.raises(WrongError, match="token_index"):
        check(known, schedule, "reduced")
