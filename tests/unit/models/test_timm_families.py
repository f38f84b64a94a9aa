"""Every timm family exports: with which exporter, in which form, and what had to be cured.

One cheap export a family; with TCOMPILE_MATRIX=all, every exporter, attention and batch.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

from tcompile.core.errors import ModelError
from tcompile.models import LoadedModel, export, load_source, recipes
from tcompile.models.attention import get_attention

TINY: dict[str, Any] = {"depth": 1, "embed_dim": 32, "num_heads": 2, "num_classes": 4}
#: Windows in the first block, the whole grid in the second.
WINDOWS: dict[str, Any] = TINY | {"depth": 2, "window_size": 3, "global_attn_indexes": [1]}
STAGES: dict[str, Any] = {"embed_dim": 16, "num_heads": 1, "stages": [1, 1, 1, 1], "num_classes": 4}
SWIN: dict[str, Any] = {"depths": [2], "embed_dim": 16, "num_heads": [2], "num_classes": 4}

ROTARY = "the rotary tables are taken as constants at this image size"
FORM = "fused attention is given the form that the exporter takes"
TABLE = "a table that is resized is taken as a constant at this image size"
NORM = "RMS normalisation is written out, since this exporter does not take the fused form"

#: Model, image size, overrides, and the cures that TorchScript and dynamo need.
FAMILIES: dict[str, tuple[int, dict[str, Any], tuple[str, ...], tuple[str, ...]]] = {
    "eva02_tiny_patch14_224": (28, TINY, (ROTARY, FORM), ()),
    "eva02_base_patch16_clip_224": (32, TINY, (ROTARY, FORM), ()),
    "vit_small_patch16_dinov3": (32, TINY, (ROTARY, FORM), ()),
    "vit_small_plus_patch16_dinov3": (32, TINY, (ROTARY, FORM), ()),
    "beit_base_patch16_224": (32, TINY, (), ()),
    "beitv2_base_patch16_224": (32, TINY, (), ()),
    "beit3_base_patch16_224": (32, TINY, (), ()),
    "vit_small_patch16_rope_224": (32, TINY, (ROTARY, FORM), ()),
    "vit_small_patch16_rope_mixed_224": (32, TINY, (ROTARY, FORM), ()),
    "vit_base_patch16_rope_reg1_gap_256": (32, TINY, (ROTARY, FORM), ()),
    "vit_pe_core_tiny_patch16_384": (32, TINY, (ROTARY, FORM), ()),
    "vit_pe_spatial_tiny_patch16_512": (32, TINY, (ROTARY, FORM), ()),
    "vit_base_patch16_siglip_224": (32, TINY, (), ()),
    "vit_base_patch16_siglip_gap_224": (32, TINY, (), ()),
    "vit_relpos_small_patch16_224": (32, TINY, (), ()),
    "samvit_base_patch16_224": (64, WINDOWS, (FORM,), (FORM,)),
    "swin_tiny_patch4_window7_224": (56, SWIN, (), ()),
    "hiera_tiny_224": (64, STAGES, (FORM,), (FORM,)),
    "naflexvit_base_patch16_gap": (32, TINY, (TABLE,), (TABLE,)),
    "davit_tiny": (64, {"depths": [1, 1], "embed_dims": [16, 32], "num_heads": [2, 2]}, (), ()),
    "aimv2_large_patch14_224": (28, TINY, (NORM,), ()),
}
_FULL = os.environ.get("TCOMPILE_MATRIX") == "all"
_VARIANTS: list[tuple[str, str | None, int, Any]] = [
    ("torchscript", "sdpa", 17, "dynamic"),
    *([("torchscript", "eager", 18, 4), ("torchscript", None, 17, 1)] if _FULL else []),
    *([("dynamo", "sdpa", 20, 1), ("dynamo", "eager", 18, "dynamic")] if _FULL else []),
    *([("dynamo", "sdpa", 23, 4)] if _FULL else []),
]


def _load(name: str) -> LoadedModel:
    size, overrides, *_ = FAMILIES[name]
    return load_source(
        f"timm:{name}", random_weights=True, image_size=size, overrides=overrides, perturb=True
    )


@pytest.mark.parametrize("variant", _VARIANTS, ids=lambda v: "-".join(map(str, v)))
@pytest.mark.parametrize("name", FAMILIES)
def test_family(name: str, variant: tuple[str, str | None, int, Any], tmp_path: Path) -> None:
    """The written file agrees with PyTorch (`export` checks it) and nothing was given up."""
    exporter, attention, opset, batch = variant
    loaded = _load(name)
    report = export(
        loaded,
        tmp_path / "m.onnx",
        exporter=exporter,
        attention=attention,
        opset=opset,
        batch=batch,
    )
    assert report.inputs["image"][0] == ("batch" if batch == "dynamic" else batch)
    assert report.attention == (attention or get_attention(loaded.base))
    needed = FAMILIES[name][2 if exporter == "torchscript" else 3]
    wanted = {note for note in needed if note is not FORM or attention != "eager"}
    assert set(report.notes) == wanted


@pytest.mark.parametrize("name", ["samvit_base_patch16_224", "vit_small_patch16_dinov3"])
def test_attention_is_one_op(name: str, tmp_path: Path) -> None:
    """Dynamo refuses the three axes of SAM's fused attention; with four it writes the op."""
    report = export(_load(name), tmp_path / "m.onnx", exporter="dynamo", opset=23)
    assert report.attention == "sdpa"
    ops = Counter(node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node)
    assert (ops["Attention"], ops["Softmax"]) == (len(_load(name).base.blocks), 0)


def test_backbone_of_several_depths(tmp_path: Path) -> None:
    """Maps of two blocks, and of one alone."""
    for indices, names in (([0, 1], ("features_0", "features_1")), ([0], ("features_0",))):
        loaded = load_source(
            "timm:vit_small_patch16_dinov3?features_only=true",
            random_weights=True,
            image_size=32,
            overrides={"depth": 2, "embed_dim": 32, "num_heads": 2, "out_indices": indices},
            perturb=True,
        )
        report = export(loaded, tmp_path / "m.onnx", exporter="torchscript")
        assert report.outputs == dict.fromkeys(names, (1, 32, 2, 2))


def test_size_that_the_model_cannot_take() -> None:
    """It has no argument for the size; that its bias is for 7 x 7 shows when it is run."""
    small = {"embed_dims": [16, 16, 16, 16], "depths": [1, 1, 1, 1]}
    with pytest.raises(ModelError, match="cannot be built: RuntimeError: The size of tensor"):
        load_source("timm:efficientformer_l1", random_weights=True, image_size=64, overrides=small)


# ---- what cures must not do ----------------------------------------------------------------------


def test_everything_is_as_before_after_a_failed_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def current() -> tuple[Any, ...]:
        return functional.scaled_dot_product_attention, functional.interpolate, torch.rms_norm

    def fail(job: recipes.Job) -> onnx.ModelProto:
        assert not set(before) & set(current()[:1])
        raise RuntimeError("the exporter gives up")

    before = current()
    loaded = _load("vit_small_patch16_rope_mixed_224")
    monkeypatch.setitem(recipes.RECIPES, "torchscript", fail)
    with pytest.raises(ModelError, match="gives up"):
        export(loaded, tmp_path / "m.onnx", exporter="torchscript")
    assert current() == before
    assert not any("get_embed" in vars(module) for module in loaded.base.modules())


class Resizing(nn.Module):
    """Resizes a table, and what it has been given: only the first is a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 3, 4, 4))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        half = functional.interpolate(image, scale_factor=0.5, mode="nearest")
        table = functional.interpolate(self.table, size=(8, 8), mode="bicubic", antialias=True)
        both = half + table
        return both + functional.interpolate(both.mean(1, keepdim=True), size=(8, 8))


class EmptyPart(nn.Module):
    """Joins registers to the image, of which there are none."""

    def __init__(self) -> None:
        super().__init__()
        self.registers = nn.Parameter(torch.zeros(1, 0, 16, 16))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        joined = torch.cat([image, self.registers.expand(image.shape[0], -1, -1, -1)], dim=1)
        return joined.reshape(joined.shape[0], joined.shape[1], -1).mean(2)


class TwoSizes(nn.Module):
    """Asks for its positions twice, at two sizes: they are not one constant."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 3, 2, 2))

    def interpolate_pos_encoding(self, size: int) -> torch.Tensor:
        return self.table.expand(1, 3, 2, 2).repeat(1, 1, size // 2, size // 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        wide = image + self.interpolate_pos_encoding(16)
        return wide.mean() + self.interpolate_pos_encoding(4)


def _module(module: nn.Module) -> LoadedModel:
    return LoadedModel(
        module=module.eval().requires_grad_(False),
        base=module,
        example_inputs={"image": torch.randn(1, 3, 16, 16)},
        output_names=("result",),
        source="here:module",
        library="callable",
        preprocessing={},
    )


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_only_what_is_constant_is_taken_as_a_constant(exporter: str, tmp_path: Path) -> None:
    """`export` compares the file at batches that it never saw traced."""
    path = tmp_path / "m.onnx"
    report = export(_module(Resizing()), path, exporter=exporter, batch="dynamic")
    assert report.notes == (TABLE,)
    assert Counter(node.op_type for node in onnx.load(path).graph.node)["Resize"] == 2


def test_what_is_asked_for_twice_is_no_one_constant(tmp_path: Path) -> None:
    report = export(_module(TwoSizes()), tmp_path / "m.onnx", exporter="torchscript")
    assert report.notes == ()


def test_empty_parts_of_a_concatenation(tmp_path: Path) -> None:
    report = export(_module(EmptyPart()), tmp_path / "m.onnx", exporter="torchscript")
    assert report.notes == ("empty parts are left out of concatenations",)
    assert report.outputs == {"result": (1, 3)}
