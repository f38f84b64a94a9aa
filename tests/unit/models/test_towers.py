"""The image halves of transformers' models: what they compute, and that every one can be exported.

With TCOMPILE_MATRIX=all every word is exported by every exporter, in both spellings of attention.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from tcompile.core.errors import ModelError
from tcompile.models import LoadedModel, export, load_source

transformers = pytest.importorskip("transformers")

EVERYTHING = os.environ.get("TCOMPILE_MATRIX") in ("all", "full")
TINY: Mapping[str, Any] = {"depth": 2, "embed_dim": 32, "num_heads": 2, "patch_size": 8}


@dataclass(frozen=True)
class Tower:
    """A word, its outputs' dims at 64 pixels, and what makes it tiny besides `TINY`."""

    word: str
    outputs: Mapping[str, tuple[int, ...]]
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def load(self, **options: Any) -> LoadedModel:
        overrides = {**TINY, **self.overrides, **options.pop("overrides", {})}
        return load_source(
            f"hf:{self.word}",
            random_weights=True,
            image_size=options.pop("image_size", 64),
            overrides=overrides,
            perturb=True,
            **options,
        )


def _tokens(count: int, *, pooled: bool = True) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"last_hidden_state": (1, count, 32)}
    return {**found, "pooler_output": (1, 32)} if pooled else found


def _features(word: str, count: int, **overrides: Any) -> Tower:
    return Tower(word, {"image_features": (1, count, 48)}, {"projection_dim": 48, **overrides})


_QFORMER = {"qformer_config": {"depth": 2, "embed_dim": 32, "num_heads": 2}, "num_query_tokens": 6}
_SAM = {"window_size": 4, "global_attn_indexes": [1], "output_channels": 16}

TOWERS = (
    Tower("beit", _tokens(65)),
    Tower("beit-classify", {"logits": (1, 5)}, {"num_classes": 5}),
    Tower("dinov3", _tokens(69)),
    Tower("siglip2-vision", _tokens(64)),
    Tower("blip2-vision", _tokens(65)),
    Tower("blip2-qformer", {"query_output": (1, 6, 32)}, _QFORMER),
    _features("llava", 64),
    _features("llava-next", 64),
    _features("llava-onevision", 64),
    _features("paligemma-vision", 64),
    _features("gemma3-vision", 4),
    Tower("internvl-vision", _tokens(65, pooled=False)),
    _features("internvl-projector", 16),
    Tower("idefics3-vision", _tokens(64, pooled=False)),
    _features("idefics3-connector", 16),
    Tower("smolvlm-vision", _tokens(64, pooled=False)),
    _features("smolvlm-connector", 4),
    Tower("sam-vision", {"image_embeddings": (1, 16, 8, 8)}, _SAM),
)
BY_WORD = {tower.word: tower for tower in TOWERS}


@pytest.mark.parametrize("tower", TOWERS, ids=lambda tower: tower.word)
def test_what_comes_out(tower: Tower) -> None:
    """Outputs by name, of the expected dims, that tell images apart; a free number of images."""
    loaded = tower.load()
    (image,) = loaded.example_inputs.values()
    images = torch.cat([image, torch.randn(2, *image.shape[1:])])
    with torch.no_grad():
        result = loaded.module(images)
    tensors = result if isinstance(result, tuple) else (result,)
    found = dict(zip(loaded.output_names, tensors, strict=True))
    assert {name: (1, *tensor.shape[1:]) for name, tensor in found.items()} == tower.outputs
    for tensor in tensors:
        assert tensor.shape[0] == 3
        assert float((tensor[0] - tensor[1]).abs().max()) > 1e-3 * float(tensor.abs().max())
    assert loaded.preprocessing["size"] == [64, 64]


def _jobs() -> list[Any]:
    """Each word with TorchScript, which is quick, and every sixth with another exporter."""
    found: list[Any] = []
    for index, tower in enumerate(TOWERS):
        exporters, batches = ["torchscript"], [("dynamic", 1)[index % 2]]
        attentions: list[str | None] = [None]
        if index % 6 == 0:
            exporters.append(("dynamo", "transformers")[index // 6 % 2])
        if EVERYTHING:
            exporters, batches = ["torchscript", "dynamo", "transformers"], ["dynamic", 1]
            attentions = ["sdpa", "eager"]
        for choice in itertools.product(exporters, attentions, batches):
            found.append(pytest.param(tower, *choice, id="-".join(map(str, (tower.word, *choice)))))
    return found


@pytest.mark.parametrize(("tower", "exporter", "attention", "batch"), _jobs())
def test_export(
    tower: Tower, exporter: str, attention: str | None, batch: int | str, tmp_path: Path
) -> None:
    """`export` compares the file with PyTorch itself, at batches that it was not traced with."""
    path = tmp_path / "m.onnx"
    report = export(tower.load(), path, exporter=exporter, attention=attention, batch=batch)
    first = "batch" if batch == "dynamic" else 1
    assert report.inputs == {"pixel_values": (first, 3, 64, 64)}
    assert report.outputs == {n: (first, *dims[1:]) for n, dims in tower.outputs.items()}
    assert report.max_abs_error is not None
    assert report.max_abs_error < 1e-5
    assert attention in (None, report.attention)


@pytest.mark.parametrize("tower", TOWERS, ids=lambda tower: tower.word)
def test_the_spelling_of_attention_can_be_chosen(
    tower: Tower, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is set on our wrappers reaches the attentions inside them."""
    from tcompile.models.attention import attention_as

    calls: list[str] = []
    fused = torch.nn.functional.scaled_dot_product_attention

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append("sdpa")
        return fused(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    loaded = tower.load()
    results, counts = [], []
    for kind in ("sdpa", "eager", "sdpa"):
        calls.clear()
        with attention_as(loaded.base, kind) as used, torch.no_grad():
            assert used == kind
            result = loaded.module(*loaded.example_inputs.values())
        results.append(result[0] if isinstance(result, tuple) else result)
        counts.append(len(calls))
    assert counts[0] == counts[2] >= 2
    assert counts[1] == 0
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-4)


def test_position_ids_are_a_constant(tmp_path: Path) -> None:
    """On a grid of 14 the Range of ONNX has an element less than `torch.arange`."""
    tower = BY_WORD["idefics3-vision"]
    path = tmp_path / "m.onnx"
    export(tower.load(image_size=112), path, exporter="dynamo", batch="dynamic")
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert not kinds & {"Range", "Resize", "Where"}, "nor a mask of what is all seen"


def test_padded_windows_at_opset_17(tmp_path: Path) -> None:
    """Windows of 3 on a grid of 8 pad it; dynamo writes Pad of opset 18."""
    loaded = BY_WORD["sam-vision"].load(overrides={"window_size": 3, "depth": 1})
    report = export(loaded, tmp_path / "m.onnx", exporter="dynamo", opset=17)
    assert report.opset == 17


def test_average_pool_follows_the_grid() -> None:
    """Gemma 3 makes one token of 4 x 4 patches at any size, unless told otherwise."""
    tower = BY_WORD["gemma3-vision"]
    for size, overrides, count in ((96, {}, 9), (64, {"mm_tokens_per_image": 16}, 16)):
        loaded = tower.load(image_size=size, overrides=overrides)
        with torch.no_grad():
            assert loaded.module(*loaded.example_inputs.values()).shape == (1, count, 48)


_SWIN = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4, "patch_size": 4}
_DEPTH = {
    **{key: value for key, value in TINY.items() if key != "patch_size"},
    "out_indices": [1, 2],
    "reassemble_factors": [2, 1],
    "reassemble_hidden_size": 32,
    "neck_hidden_sizes": [8, 16],
    "fusion_hidden_size": 8,
    "head_hidden_size": 8,
    "backbone_config.reshape_hidden_states": False,
}


@pytest.mark.parametrize(
    ("name", "size", "overrides", "outputs"),
    [
        ("Data2VecVisionModel", 64, TINY, {"last_hidden_state": (1, 65, 32)}),
        ("YolosModel", 64, TINY, {"last_hidden_state": (1, 165, 32), "pooler_output": (1, 32)}),
        ("SwinModel", 64, _SWIN, {"last_hidden_state": (1, 64, 32), "pooler_output": (1, 32)}),
        (
            "DINOv3ViTBackbone",
            64,
            {**TINY, "out_indices": [1, 2]},
            {"feature_maps_0": (1, 32, 8, 8), "feature_maps_1": (1, 32, 8, 8)},
        ),
        ("DepthAnythingForDepthEstimation", 70, _DEPTH, {"predicted_depth": (1, 70, 70)}),
        ("VideoMAEModel", 32, {**TINY, "num_frames": 4}, {"last_hidden_state": (1, 32, 32)}),
        ("CLIPModel", 64, {**TINY, "projection_dim": 24}, {"image_features": (1, 24)}),
        ("AyaVisionModel", 64, {**TINY, "projection_dim": 48}, {"image_features": (1, 16, 48)}),
    ],
)
def test_any_class_of_transformers(
    name: str,
    size: int,
    overrides: Mapping[str, Any],
    outputs: Mapping[str, tuple[int, ...]],
    tmp_path: Path,
) -> None:
    """A class without a word: its outputs, all its feature maps, or what it makes of an image."""
    loaded = load_source(
        f"hf:{name}", random_weights=True, image_size=size, overrides=overrides, perturb=True
    )
    report = export(loaded, tmp_path / "m.onnx", exporter="torchscript")
    assert report.outputs == outputs


def test_class_without_weights() -> None:
    with pytest.raises(ModelError, match="without trained weights"):
        load_source("hf:YolosModel")
    with pytest.raises(ModelError, match="no model 'load_tool'"):
        load_source("hf:load_tool", random_weights=True)
