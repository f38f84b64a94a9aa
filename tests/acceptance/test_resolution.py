"""Acceptance: `resolution` gives what PyTorch gives for a smaller image.

A file that was exported for one image size is built for a smaller one; the module it came from gets
the same image, resized, and has its own positions resized by its library's own code.
"""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest
import torch

from tcompile import pipeline
from tcompile.core.errors import UsageError
from tests.oracles.compare import infer_in_batches
from tests.oracles.exports import exported, selection, stirred
from tests.oracles.resized import check_smaller, on_smaller
from tests.support.onnx_models import to_onnx
from tests.support.zoo_matrix import BY_ID, Case

pytestmark = pytest.mark.usefixtures("read_once")

#: What positions they have.
HELD = {
    "timm-vit": "absolute",
    "timm-dinov2-reg4": "absolute, registers",
    "hf-dinov2": "absolute, tokens returned",
    "hf-siglip-vision": "absolute, attention pool",
    "timm-eva02": "absolute; rotary, scaled",
    "timm-rope-mixed": "rotary, learned speeds along both axes",
    "hf-dinov3": "rotary, centred",
    "hf-beit": "relative",
}


def cases() -> list[Case]:
    """Those above; with TCOMPILE_MATRIX all of timm and transformers."""
    if "TCOMPILE_MATRIX" not in os.environ:
        return [BY_ID[name] for name in HELD]
    return [case for case in BY_ID.values() if case.source.startswith(("timm:", "hf:"))]


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.id)
def test_it_is_the_module_on_the_smaller_image(case: Case, cache: Path) -> None:
    variant = selection(case)[0]
    path = exported(case, variant, cache)
    made = pipeline.reduce(path, target="cpu", method="resolution", keep=0.5, outputs="restored")
    resized = made.schedule.resized
    assert resized is not None
    assert case.patches / 2 <= resized.patches < case.patches
    count = {1: 2, 4: 4}.get(variant.batch, 2)  # type: ignore[call-overload]
    images = torch.randn(count, 3, case.image_size, case.image_size)
    wanted = on_smaller(stirred(case.id), case.prefix, images, resized)
    found, dense = (
        list(infer_in_batches(model, images).values())
        for model in (to_onnx(made.graph), onnx.load(path))
    )
    check_smaller(found, dense, wanted)


def test_packed_patches_are_refused(cache: Path) -> None:
    case = BY_ID["hf-qwen2-vl"]
    path = exported(case, selection(case)[0], cache)
    with pytest.raises(UsageError, match="holds patches, not an image"):
        pipeline.reduce(path, target="cpu", method="resolution", keep=0.5)
