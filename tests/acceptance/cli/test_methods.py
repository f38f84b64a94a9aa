"""`tcompile methods`, `--calibration`, and the page that is made of the presets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tcompile.methods.presets import PRESETS, Preset
from tests.support.command import Command
from tools.methods_page import page

DOCS = Path(__file__).parents[3] / "docs"


def test_the_list_is_a_table(tcompile: Command) -> None:
    shown = tcompile("methods")
    assert shown.code == 0
    rows = [line.split()[0] for line in shown.out.splitlines()[2:] if line]
    assert rows[: len(PRESETS)] == [p.name for p in PRESETS]
    listed = tcompile("methods", "--json").json()
    assert [m["name"] for m in listed][: len(PRESETS)] == [p.name for p in PRESETS]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.name)
def test_one_is_told_in_full(tcompile: Command, preset: Preset) -> None:
    name = preset.name
    shown = tcompile("methods", name)
    assert shown.code == 0
    for word in ("Formula: ", "Schedule: ", "Needs: ", "Attention ", "patch tokens left"):
        assert word in shown.out
    told = tcompile("methods", name, "--json").json()
    assert told["name"] == name
    assert told["composition"]
    assert {"formula", "reference", "parameters", "attention_stays_fused"} <= set(told)


def test_a_name_that_is_none_gets_the_nearest(tcompile: Command) -> None:
    shown = tcompile("methods", "pitone")
    assert shown.code == 2
    assert "did you mean 'pitome'?" in shown.err
    assert shown.err.count("\n") == 1


def test_the_page_is_current() -> None:
    made = "python -m tools.methods_page > docs/methods.md"
    assert (DOCS / "methods.md").read_text(encoding="utf-8") == page(), made


def test_plan_learns_counts_from_images(tcompile: Command, vit: Path) -> None:
    np.savez("images.npz", np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype("f"))
    asked = ("plan", vit, "--target", "cpu", "--method", "g-search", "--keep", "0.5")
    told = tcompile(*asked, "--calibration", "images.npz", "--json").json()
    assert told["reductions"][-1]["keep"] == 8
    Path("s.json").write_text(tcompile(*asked, "--calibration", "images.npz", "--json").out)
    other = ("plan", vit, "--target", "cpu")
    on_scenes = tcompile(*asked, "--json").json()
    assert any("learned on 16 procedural scenes" in note for note in on_scenes["notes"])
    for refused in (
        tcompile(*asked, "--calibration", "none"),
        tcompile(*asked, "--calibration", "none.npz"),
        tcompile(*other, "--keep", "0.5", "--method", "topk", "--calibration", "images.npz"),
        tcompile(*other, "--schedule", "s.json", "--calibration", "images.npz"),
    ):
        assert refused.code == 2
        assert refused.err.count("\n") == 1


def test_plan_tells_what_differs(tcompile: Command, vit: Path) -> None:
    shown = tcompile("plan", vit, "--target", "cpu", "--method", "pyra", "--keep", "0.5")
    assert "note: what leaves is shared out over the depth as in pyra:level=high" in shown.out
