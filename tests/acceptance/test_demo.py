"""The demo's model is the trained one, written without PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcompile.api.demo import demo, glyphs_model, read_safetensors, write_glyphs
from tcompile.core.errors import ModelError, UsageError
from tcompile.methods.portfolio import weighed
from tcompile.runtime import timing
from tcompile.targets.backends.ort import OrtRunner


def test_graph_computes_what_the_module_does(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from tcompile.models.glyphs import untrained

    module = untrained(seed=3)
    with torch.no_grad():
        for parameter in [*module.parameters(), *module.buffers()]:
            if parameter.is_floating_point():
                parameter.add_(0.1 * (torch.rand_like(parameter) - 0.5))
    path = tmp_path / "glyphs.onnx"
    write_glyphs(path, {name: p.detach().numpy() for name, p in module.state_dict().items()})
    images = np.random.default_rng(0).standard_normal((2, 3, 56, 56)).astype(np.float32)
    with torch.no_grad():
        wanted = [out.numpy() for out in module(torch.from_numpy(images))]
    found = OrtRunner(path).run({"image": images})
    for name, want in zip(("logits", "patch_logits"), wanted, strict=True):
        np.testing.assert_allclose(found[name], want, atol=2e-5 * abs(want).max())


def test_preprocessing_and_labels_are_recorded() -> None:
    torch = pytest.importorskip("torch")
    from tcompile.models.glyphs import untrained
    from tcompile.models.preprocess import read_preprocessing

    del torch
    model = glyphs_model({k: v.numpy() for k, v in untrained().state_dict().items()})
    settings = read_preprocessing({p.key: p.value for p in model.metadata_props})
    assert settings is not None
    assert settings["size"] == [56, 56]
    assert settings["labels"][0] == "6"


def test_safetensors_as_the_library_writes_them(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "steps": np.array([7], dtype=np.int64),
        "scalar": np.array(2.5, dtype=np.float32),
    }
    path = tmp_path / "w.safetensors"
    safetensors.save_file(arrays, str(path), metadata={"made": "here"})
    found = read_safetensors(path)
    assert sorted(found) == ["a", "scalar"]
    for name, array in found.items():
        np.testing.assert_array_equal(array, arrays[name])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 4,
        b"\xff" * 40,
        (2**60).to_bytes(8, "little") + b"{}",
        len(
            h := json.dumps({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}).encode()
        ).to_bytes(8, "little")
        + h
        + b"\0" * 4,
    ],
)
def test_damaged_safetensors(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(data)
    with pytest.raises(ModelError, match="not a safetensors file"):
        read_safetensors(path)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights in place of the trained ones: what is tested is the way, not the result."""
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.numpy")
    from tcompile.models import glyphs

    del torch
    path = tmp_path / "w.safetensors"
    arrays = {k: v.numpy() for k, v in glyphs.untrained().state_dict().items()}
    safetensors.save_file(arrays, str(path))
    monkeypatch.setattr(glyphs, "WEIGHTS", path)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both models run, and the reduced one takes half as long: which is emitted must not depend on
    what else the machine does."""

    def interleave(calls: Any, *, rounds: int, **_: Any) -> list[list[float]]:
        for call in calls:
            call()
        return [[2.0] * rounds, [1.0] * rounds]

    monkeypatch.setattr(timing, "interleave", interleave)


@pytest.mark.heavy
@pytest.mark.usefixtures("weights", "clock")
def test_demo_does_the_job(tmp_path: Path) -> None:
    out = tmp_path / "new" / "demo"
    found = demo(keep=0.5, scenes=50, folder=out)
    assert (found.scenes, found.tokens_in) == (50, 197)
    # Half of 196 patches and CLS, or more where they take no longer.
    assert 99 <= found.tokens_out <= 1 + 98 * 11 // 10
    assert found.emitted == "reduced"
    assert found.summary[0].startswith("asked 0.50 (98 of 196 patch tokens), kept 0.5")
    # Whichever of those that are weighed loses least on scenes, or several of them.
    assert set(found.method.split(" + ")) <= set(weighed())
    assert found.benchmark.speedup.ratio == 2
    assert sorted(p.name for p in out.iterdir()) == ["glyphs-cpu", "glyphs.onnx"]
    json.dumps(found.to_json())
    with pytest.raises(UsageError, match="not empty"):
        demo(keep=0.5, scenes=50, folder=out)


@pytest.mark.heavy
@pytest.mark.usefixtures("weights", "clock")
def test_demo_with_a_method_of_ones_own() -> None:
    found = demo(keep=0.5, method="topk", scenes=50)
    assert (found.method, found.tokens_out) == ("topk", 99)


@pytest.mark.usefixtures("weights")
def test_demo_leaves_nothing_when_it_fails(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="method"):
        demo(keep=0.5, method="nonsense", folder=tmp_path / "new")
    assert not (tmp_path / "new").exists()
