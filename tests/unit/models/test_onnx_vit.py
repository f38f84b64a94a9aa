"""The ViT written by hand is timm's ViT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tcompile.targets.backends.ort import OrtRunner
from tests.support.tiny_vit import VitSpec, build_vit, save_tiny_vit


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("pool", ["cls", "avg", "none"])
@pytest.mark.parametrize("batch", [1, 3, None])
def test_every_form_runs(tmp_path: Path, prefix: int, pool: str, batch: int | None) -> None:
    if pool == "cls" and prefix == 0:
        pytest.skip("no CLS to pool")
    spec = VitSpec(depth=1, prefix=prefix, pool=pool)  # type: ignore[arg-type]
    path = save_tiny_vit(tmp_path / "vit.onnx", spec, batch=batch)
    count = batch or 2
    (found,) = OrtRunner(path).run({"image": np.ones((count, 3, 32, 32))}).values()
    assert found.shape == ((count, spec.tokens, 32) if pool == "none" else (count, 10))


def test_same_as_timm(tmp_path: Path) -> None:
    timm, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
    torch.manual_seed(0)
    module = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, embed_dim=48, num_heads=4, depth=2, num_classes=7
    ).eval()
    spec = VitSpec(image=64, patch=16, width=48, heads=4, depth=2, classes=7, mlp_ratio=4)
    path = tmp_path / "vit.onnx"
    onnx.save(build_vit(spec, {k: v.numpy() for k, v in module.state_dict().items()}), str(path))
    image = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32)
    with torch.no_grad():
        want = module(torch.from_numpy(image)).numpy()
    found = OrtRunner(path).run({"image": image})["logits"]
    np.testing.assert_allclose(found, want, atol=1e-5 * abs(want).max())


def test_weights_depend_on_the_seed_alone() -> None:
    first, again = (build_vit(VitSpec()).SerializeToString(deterministic=True) for _ in range(2))
    assert first == again
