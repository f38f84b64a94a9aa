"""The models on which presets are held against their oracles: timm with a class token, without one,
with registers; transformers with and without registers; 65, 197, 257 + 4 and 577 tokens."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from tcompile.models import LoadedModel, export, load_source
from tests.oracles.compare import Subject
from tests.oracles.exports import once
from tests.oracles.weights import stir

#: Side of the grid of patches, by the tokens that a model with its prefix has.
SIDES = {65: 8, 197: 14, 261: 16, 577: 24, 128: 4}
_SMALL: dict[str, Any] = {"embed_dim": 32, "num_heads": 2, "patch_size": 4}
_TIMM: dict[str, Any] = {**_SMALL, "num_classes": 10}
_SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "timm": ("timm:vit_tiny_patch16_224", _TIMM),
    "timm-tokens": ("timm:vit_tiny_patch16_224?global_pool=", {**_SMALL, "num_classes": 0}),
    "timm-gap": ("timm:vit_base_patch16_gap_224", _TIMM),
    "timm-siglip": ("timm:vit_base_patch16_siglip_224", _TIMM),
    "timm-reg4": ("timm:vit_small_patch14_reg4_dinov2", {**_SMALL, "num_classes": 0}),
    "timm-reg4-tokens": (
        "timm:vit_small_patch14_reg4_dinov2?global_pool=",
        {**_SMALL, "num_classes": 0},
    ),
    "hf": ("hf:vit", _SMALL),
    "hf-registers": ("hf:dinov2-registers", _SMALL),
    "hf-video": ("hf:VideoMAEModel", {**_SMALL, "num_frames": 16}),
}
#: Libraries by tokens: with a class token, without, and transformers.
_OF: dict[int, tuple[str, ...]] = {
    65: ("timm", "timm-gap", "hf"),
    197: ("timm-tokens", "timm-siglip", "hf"),
    261: ("timm-reg4-tokens", "timm-reg4", "hf-registers"),
    577: ("timm-tokens", "timm-gap", "hf"),
}


@dataclass(frozen=True)
class Setting:
    """tokens: with prefix (64, 196 or 576 in models without one). batch: images at once."""

    tokens: int
    source: str
    batch: int
    depth: int = 4

    @property
    def id(self) -> str:
        return f"{self.source}-{self.tokens}-batch{self.batch}"

    @property
    def cls(self) -> bool:
        """Return whether the model reads a class token."""
        return self.source not in ("timm-gap", "timm-siglip")

    @property
    def patches(self) -> int:
        return SIDES[self.tokens] ** 2


SETTINGS: tuple[Setting, ...] = tuple(
    Setting(tokens, source, batch)
    for batch in (1, 3)
    for tokens in (65, 197, 261, 577)
    for source in _OF[tokens]
)


#: Eight times two frames of 4 x 4 patches.
VIDEOS: tuple[Setting, ...] = (Setting(128, "hf-video", 1), Setting(128, "hf-video", 3))


def settings(
    turn: int,
    *,
    depth: int = 4,
    tokens: Sequence[int] = (65, 197, 261, 577),
    cls: bool | None = None,
) -> list[Setting]:
    """Return where a preset is tried: by default one setting, another for every turn; with
    TCOMPILE_MATRIX=all (or full) everywhere."""
    able = [
        replace(one, depth=depth)
        for one in SETTINGS
        if one.tokens in tokens and cls in (None, one.cls)
    ]
    if os.environ.get("TCOMPILE_MATRIX", "") in ("all", "full"):
        return able
    # 7 has no factor in common with the settings, so that batch, tokens and source all move on.
    return [able[7 * turn % len(able)]]


@lru_cache(maxsize=4)
def model(source: str, tokens: int, depth: int) -> LoadedModel:
    """With weights that make mistakes show, the same every time."""
    name, overrides = _SOURCES[source]
    loaded = load_source(
        name,
        random_weights=True,
        image_size=4 * SIDES[tokens],
        overrides={**overrides, "depth": depth},
    )
    stir(loaded.module, seed=tokens + depth)
    return loaded


@lru_cache(maxsize=4)
def subject(source: str, tokens: int, depth: int) -> Subject:
    """The oracle's view of it."""
    loaded = model(source, tokens, depth)
    (example,) = loaded.example_inputs.values()
    return Subject(loaded.module, tuple(example.shape[1:]))


def file_of(setting: Setting, cache: Path) -> Path:
    """The .onnx file: of one image, or (batch 3) of any number."""
    source, tokens, depth = setting.source, setting.tokens, setting.depth
    batch: int | str = 1 if setting.batch == 1 else "dynamic"
    path = cache / f"preset-{source}-{tokens}-{depth}-{batch}.onnx"

    def write(mine: Path) -> None:
        loaded = model(source, tokens, depth)
        export(loaded, mine, batch=batch, exporter="torchscript", check=False)

    return once(path, write)
