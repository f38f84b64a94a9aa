"""Views that join patches into groups do so once tokens have left, as the model in PyTorch does."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tcompile import pipeline
from tests.oracles.compare import check, check_structure, dense_errors
from tests.oracles.exports import exported, subject
from tests.oracles.plans import reductions
from tests.support.onnx_models import to_onnx
from tests.support.zoo_matrix import BY_ID, Variant


@pytest.mark.parametrize("batch", [1, "dynamic"])
@pytest.mark.parametrize(
    "case", ["hf-internvl-projector", "hf-idefics3-connector", "hf-gemma3-vision"]
)
def test_groups_are_joined_of_those_left(case: str, batch: int | str, cache: Path) -> None:
    """Into channels, by a pixel shuffle; and into their mean."""
    path, found = (
        exported(BY_ID[case], Variant("torchscript", "eager", 17, batch), cache),
        subject(case),
    )
    reduced = pipeline.reduce(path, target="cpu", keep=0.6, method="topk")
    cuts = reductions(reduced.schedule.to_json())
    assert cuts[0].keep < found.patches
    model, dense = to_onnx(reduced.graph), onnx.load(path)
    check_structure(model)
    images = found.images(cuts, 2)
    check(model, found, images, cuts, dense_errors(dense, found, images))
