"""What fidelity is shown on: images that were not planned with, where there are any."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tcompile.builder.checks import evidence_of
from tcompile.core.errors import UsageError
from tcompile.planning.request import Request
from tcompile.planning.solve.plan_report import PlanReport
from tests.support.tiny_vit import VitSpec, save_tiny_vit


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny_vit(tmp_path / "vit.onnx", VitSpec(depth=1))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    size = VitSpec().image
    rows = np.arange(10.0).reshape(10, 1, 1, 1) * np.ones((1, 3, size, size))
    np.save(tmp_path / "x.npy", rows.astype(np.float32))
    return tmp_path / "x.npy"


def test_what_was_not_planned_with(model: Path, images: Path) -> None:
    planned = object.__new__(PlanReport)
    request = Request(keep=0.5, calibration=images, seed=3)
    found = evidence_of(model, request, planned, 10**9)
    assert found.source == ("2 of 10 samples from x.npy that the plan was not made with (seed 3)")
    assert (len(found), found.kind) == (2, "data")
    assert found.name_of(0).startswith("sample ")


def test_all_of_them_where_a_method_learned_from_all(model: Path, images: Path) -> None:
    request = Request(keep=0.5, calibration=images)
    found = evidence_of(model, request, None, 10**9)
    assert (len(found), found.source) == (10, "10 samples from x.npy, which the plan was made with")


@pytest.mark.parametrize("calibration", [None, "none"])
def test_scenes_where_there_are_no_images(model: Path, calibration: str | None) -> None:
    found = evidence_of(model, Request(keep=0.5, calibration=calibration), None, 10**12)
    assert found.source.startswith("2 procedural scenes (seed 0")
    assert evidence_of(model, Request(keep=0.5), None, 10**9).source.startswith("8 ")


def test_too_few_to_hold_any_back(model: Path, images: Path) -> None:
    np.save(images, np.load(images)[:1])
    with pytest.raises(UsageError, match="two images at least"):
        evidence_of(model, Request(calibration=images), object.__new__(PlanReport), 1)
