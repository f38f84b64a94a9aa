"""The models and export variants that the compiler must take: data, and exports of them.

Tiny configurations with perturbed random weights (`load_source(..., perturb=True)`), so that a
wrong row, mask or size shows in the outputs.  Patch counts are 36, 49 or 64 for speed, some 196;
`siglip-n-is-d` has as many tokens as channels, so that matching axes by size cannot pass.

    for case in CASES:
        for variant in variants(case):           # or variants(case, full=True)
            path = export_cached(case, variant, cache_dir)   # the .onnx file
            module = load_case(case.id).module               # the same weights, in PyTorch
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from tcompile.models import LoadedModel, export, load_source
from tests.support.matrix_case import BATCHES, BOTH, OPSETS, TORCH_AND_HF, Case, Variant
from tests.support.side_matrix import SIDE_CASES
from tests.support.structure_matrix import STRUCTURES

_TINY = {"depth": 3, "embed_dim": 64, "num_heads": 2}
_TIMM = {**_TINY, "num_classes": 10}
_WIDE = {"depth": 4, "embed_dim": 96, "num_heads": 3, "num_classes": 10}
_HF16 = {**_TINY, "patch_size": 16}


def _timm(name: str, size: int, prefix: int, patches: int, family: str, **over: Any) -> Case:
    label = over.pop("id", None) or name.split("?")[0].replace("_", "-")
    notes = over.pop("notes", "")
    overrides = over or _TIMM
    return Case(
        f"timm-{label}", family, f"timm:{name}", size, overrides, prefix, patches, notes=notes
    )


def _hf(name: str, size: int, prefix: int, patches: int, **over: Any) -> Case:
    label, notes = over.pop("id", name), over.pop("notes", "")
    return Case(
        f"hf-{label}",
        f"transformers {name}",
        f"hf:{name}",
        size,
        {**_HF16, **over},
        prefix,
        patches,
        exporters=TORCH_AND_HF,
        notes=notes,
    )


CASES: tuple[Case, ...] = (
    _timm("vit_tiny_patch16_224", 112, 1, 49, "timm vit CLS", id="vit"),
    _timm("vit_tiny_patch16_224", 224, 1, 196, "timm vit CLS", id="vit-197", **_WIDE),
    _timm(
        "vit_tiny_patch16_224?global_pool=avg",
        112,
        1,
        49,
        "timm vit average pool",
        id="vit-avg",
        notes="CLS is a token, but the pool leaves it out",
    ),
    _timm(
        "vit_base_patch16_gap_224",
        112,
        0,
        49,
        "timm vit average pool",
        id="vit-gap",
        notes="no CLS token at all",
    ),
    _timm("vit_betwixt_patch16_reg4_gap_256", 112, 4, 49, "timm vit registers", id="vit-reg4-gap"),
    _timm("deit_tiny_patch16_224", 112, 1, 49, "timm deit", id="deit"),
    _timm(
        "deit_tiny_distilled_patch16_224", 112, 2, 49, "timm deit distilled", id="deit-distilled"
    ),
    _timm(
        "deit3_small_patch16_224",
        112,
        1,
        49,
        "timm deit3",
        id="deit3",
        notes="LayerScale; the position table has no CLS row",
    ),
    _timm("vit_small_patch14_dinov2", 98, 1, 49, "timm dinov2", id="dinov2", **_TINY),
    _timm(
        "vit_small_patch14_reg4_dinov2", 98, 5, 49, "timm dinov2 reg4", id="dinov2-reg4", **_TINY
    ),
    _timm(
        "vit_giant_patch14_dinov2",
        98,
        1,
        49,
        "timm dinov2",
        id="dinov2-swiglu",
        **_TINY,
        mlp_ratio=4.0,
        notes="packed SwiGLU MLP",
    ),
    _timm(
        "vit_base_patch16_clip_224",
        112,
        1,
        49,
        "timm CLIP",
        id="clip",
        notes="LayerNorm before the first block",
    ),
    _timm("vit_base_patch16_clip_quickgelu_224", 112, 1, 49, "timm CLIP", id="clip-quickgelu"),
    _timm(
        "vit_base_patch16_siglip_224",
        96,
        0,
        36,
        "timm SigLIP",
        id="siglip",
        notes="attention-pool head",
    ),
    _timm(
        "vit_base_patch16_siglip_224",
        128,
        0,
        64,
        "timm SigLIP",
        id="siglip-n-is-d",
        **_TIMM,
        notes="N = D = 64",
    ),
    _hf("vit", 112, 1, 49),
    _hf("vit", 224, 1, 196, id="vit-197", depth=4, embed_dim=96, num_heads=3),
    _hf("vit-classify", 112, 1, 49, num_classes=10),
    _hf("deit", 112, 2, 49),
    _hf("deit-classify", 112, 2, 49, num_classes=10, notes="distillation token that nothing reads"),
    _hf("deit-distilled", 112, 2, 49, num_classes=10, notes="three outputs"),
    _hf("clip-vision", 112, 1, 49),
    _hf("clip-vision-projection", 112, 1, 49, projection_dim=48),
    _hf("siglip-vision", 96, 0, 36, notes="attention-pool head"),
    _hf("dinov2", 98, 1, 49, patch_size=14),
    _hf(
        "dinov2-classify",
        98,
        1,
        49,
        patch_size=14,
        num_classes=10,
        notes="head reads CLS and the mean of the patches",
    ),
    _hf(
        "dinov2-registers",
        98,
        5,
        49,
        patch_size=14,
        notes="registers are put between CLS and the patches",
    ),
    Case(
        "open-clip",
        "open_clip ViT",
        "open_clip:ViT-B-16",
        112,
        {**_TINY, "output_dim": 48},
        1,
        49,
        attentions=(None,),
    ),
    Case(
        "open-clip-quickgelu",
        "open_clip ViT",
        "open_clip:ViT-B-16-quickgelu",
        112,
        {**_TINY, "output_dim": 48},
        1,
        49,
        attentions=(None,),
    ),
    Case(
        "open-clip-tokens",
        "open_clip ViT",
        "open_clip:ViT-B-16",
        112,
        {**_TINY, "output_dim": 48, "output_tokens": True},
        1,
        49,
        attentions=(None,),
        notes="pooled and token outputs",
    ),
    Case(
        "torchvision-vit",
        "torchvision vit",
        "torchvision:vit_b_16",
        112,
        {**_TINY, "num_classes": 10},
        1,
        49,
        attentions=(None,),
    ),
    Case(
        "torchvision-vit-197",
        "torchvision vit",
        "torchvision:vit_b_16",
        224,
        _WIDE,
        1,
        196,
        attentions=(None,),
    ),
)

CASES += SIDE_CASES

BY_ID: Mapping[str, Case] = {case.id: case for case in CASES + STRUCTURES}

# Each exporter meets each attention, each batch and its oldest, default and newest opset; not
# every combination of them.
_CHOSEN: Mapping[str, tuple[tuple[str, int, int | str], ...]] = {
    "dynamo": (
        ("sdpa", 20, 1),
        ("eager", 20, "dynamic"),
        ("eager", 18, 4),
        ("sdpa", 17, "dynamic"),
        ("sdpa", 23, 4),
        ("sdpa", 25, "dynamic"),
    ),
    "torchscript": (("sdpa", 17, 1), ("eager", 17, "dynamic"), ("sdpa", 20, 4)),
    "transformers": (("sdpa", 20, 1), ("eager", 18, 4), ("sdpa", 25, "dynamic")),
}


def variants(case: Case, *, full: bool = False) -> list[Variant]:
    """The exports of a case: a covering choice, or with `full` every combination."""
    found: dict[Variant, None] = {}
    for exporter in case.exporters:
        if full:
            plan = [
                (attention, opset, batch)
                for attention in BOTH
                for opset in OPSETS[exporter]
                for batch in BATCHES
            ]
        else:
            plan = list(_CHOSEN[exporter])
        for attention, opset, batch in plan:
            spelled = attention if case.attentions != (None,) else None
            found[Variant(exporter, spelled, opset, batch)] = None
    return list(found)


@lru_cache(maxsize=4)
def load_case(case_id: str) -> LoadedModel:
    """The model of a case, the same weights every time."""
    case = BY_ID[case_id]
    return load_source(
        case.source,
        random_weights=True,
        image_size=case.image_size,
        overrides=case.overrides,
        perturb=True,
    )


def export_cached(case: Case, variant: Variant, cache_dir: Path) -> Path:
    """The .onnx file of a case and variant, written (and checked against PyTorch) only once.

    `cache_dir` may be shared by pytest-xdist workers: a file appears whole or not at all.
    """
    path = cache_dir / f"{case.id}-{variant.id}.onnx"
    if not path.exists():
        cache_dir.mkdir(parents=True, exist_ok=True)
        mine = path.with_name(f"{path.stem}.{os.getpid()}.onnx")
        export(
            load_case(case.id),
            mine,
            batch=variant.batch,
            exporter=variant.exporter,
            opset=variant.opset,
            attention=variant.attention,
        )
        mine.replace(path)
    return path
