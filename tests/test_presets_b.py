"""Acceptance: presets that merge, spread or pool tokens do what their papers say.

Each preset, on models of timm and transformers with random weights, at 65, 197, 261 and 577 tokens,
one image and three, against PyTorch written from the papers (tests/oracles/presets). By default
every preset meets every size in some library and batch; with TCOMPILE_MATRIX=all, all of them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cache, lru_cache
from math import isqrt
from pathlib import Path
from typing import Any

import onnx
import pytest

from tcompile.models import LoadedModel, export, load_source
from tests.oracles.compare import Subject
from tests.oracles.presets import lists
from tests.oracles.presets.comparing import agree, reduced
from tests.oracles.presets.rules_merging import plan
from tests.oracles.weights import stir

_TINY = {"depth": 4, "embed_dim": 64, "num_heads": 2}
_TIMM = {**_TINY, "num_classes": 10}
#: Tokens → library → (source, image size, overrides).
MODELS: dict[int, dict[str, tuple[str, int, dict[str, Any]]]] = {
    65: {
        "timm": ("timm:vit_tiny_patch16_224", 128, _TIMM),
        "hf": ("hf:vit", 128, {**_TINY, "patch_size": 16}),
    },
    197: {
        "timm": ("timm:deit_tiny_patch16_224", 224, _TIMM),
        "hf": ("hf:vit", 224, {**_TINY, "patch_size": 16}),
    },
    261: {
        "timm": ("timm:vit_small_patch14_reg4_dinov2", 224, _TINY),
        "hf": ("hf:dinov2-registers", 224, {**_TINY, "patch_size": 14}),
    },
    577: {
        "timm": ("timm:vit_tiny_patch16_224", 384, _TIMM),
        "hf": ("hf:clip-vision", 336, {**_TINY, "patch_size": 14}),
    },
}


@dataclass(frozen=True)
class Ask:
    """A preset as it is asked for. values: of its parameters, for the oracle; half: whether it is
    asked for with --keep 0.5, otherwise its own parameters say."""

    text: str
    keep: str | None = "0.6"
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.text.partition(":")[0]

    @property
    def id(self) -> str:
        return self.text.replace(":", "-") + (f"-{self.keep}" if self.keep else "")


ASKS = (
    Ask("tome"),
    Ask("tome:r=8,inflect=-1", None),
    Ask("pitome"),
    Ask("pitome:ratio=0.9,mode=protected,energy_form=paper", None,
        {"mode": "protected", "energy_form": "paper"}),
    Ask("pitome:mode=parity,margin=0.9", "0.6", {"mode": "parity", "margin": 0.9}),
    Ask("tofu"),
    Ask("tofu:r=10,combine=mean,switch=1", None, {"combine": "mean", "switch": 1}),
    Ask("turbo"),
    Ask("turbo:r=7,alpha=3,beta=0.5,gamma=2", None, {"alpha": 3.0, "beta": 0.5, "gamma": 2}),
    Ask("mctf"),
    Ask("diffrate"),
    Ask("algm"),
    Ask("visionzip", "0.4"),
    Ask("prumerge", "0.4"),
    Ask("ficoco"),
    Ask("llava-zip:side=2", None, {"side": 2}),
    Ask("llava-zip:side=3", None, {"side": 3}),
    Ask("atme"),
    Ask("tomesd"),
    Ask("gtp"),
    Ask("pyra"),
)  # fmt: skip


def chosen() -> list[Any]:
    """Every preset at two sizes or more, all libraries and batches in turn; or all."""
    every = os.environ.get("TCOMPILE_MATRIX", "") in ("all", "full")
    found = []
    for turn, ask in enumerate(ASKS):
        for place, tokens in enumerate(MODELS):
            for library in MODELS[tokens]:
                for batch in (1, 3):
                    mine = ("timm", "hf")[(turn + place) % 2] == library
                    mine &= batch == (1, 3)[(turn // 2 + place // 2) % 2]
                    mine &= (turn + place) % 2 == 0 or tokens == 65
                    if mine or every:
                        name = f"{ask.id}-{library}-{tokens}-b{batch}"
                        found.append(pytest.param(ask, tokens, library, batch, id=name))
    return found


@lru_cache(maxsize=16)
def model_of(tokens: int, library: str) -> tuple[LoadedModel, Subject]:
    source, size, over = MODELS[tokens][library]
    loaded = load_source(source, random_weights=True, image_size=size, overrides=over)
    stir(loaded.module, seed=tokens)
    (example,) = loaded.example_inputs.values()
    return loaded, Subject(loaded.module, tuple(example.shape[1:]))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("presets")

    @cache
    def path(tokens: int, library: str) -> Path:
        found = folder / f"{library}-{tokens}.onnx"
        export(model_of(tokens, library)[0], found, exporter="torchscript", batch="dynamic")
        return found

    return path


def more(ask: Ask, schedule: dict[str, Any]) -> dict[str, Any]:
    """What the oracle is told of counts besides those that leave a site."""
    steps = schedule["reductions"]
    if ask.name == "diffrate":
        prune = {}
        for step in steps:
            block = int(step["site"].partition(":")[2])
            parts = step["reducer"].get("steps") or [step]
            prune[block] = parts[0]["keep"] if parts[0]["reducer"]["name"] == "topk" else None
        return {"prune": prune}
    if ask.name == "visionzip":
        return {"contextual": steps[0]["reducer"]["contextual"]}
    return {}


@pytest.mark.parametrize(("ask", "tokens", "library", "batch"), chosen())
def test_preset(ask: Ask, tokens: int, library: str, batch: int, files: Any) -> None:
    path, (_, found) = files(tokens, library), model_of(tokens, library)
    request = {"method": ask.text} | ({"keep": ask.keep} if ask.keep else {})
    model, schedule = reduced(path, request)
    assert schedule["reductions"]
    side = isqrt(found.patches)
    plans = plan(ask.name, {**ask.values, **more(ask, schedule)}, schedule, (side, side))
    assert agree(model, onnx.load(path), found, plans, batch) >= batch


__all__ = ["lists"]
