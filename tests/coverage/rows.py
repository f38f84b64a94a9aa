"""Rows of the table: every case of the matrix, and models that are in no test."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tcompile.models import LoadedModel, load_source
from tests.oracles.weights import stir
from tests.support.matrix_case import TORCH, Case, Variant
from tests.support.zoo_matrix import BY_ID, variants

_TINY: dict[str, Any] = {"depth": 3, "embed_dim": 32, "num_heads": 2}
_QWEN = {**_TINY, "patch_size": 4, "output_dim": 24}
_SWIN = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
_LLAVA = {**_TINY, "patch_size": 8, "projection_dim": 24}
_MLLAMA = {**_TINY, "patch_size": 8}


def _more(source: str, size: int | None, over: dict[str, Any], notes: str, **rest: Any) -> Case:
    label = source.replace(":", "-").replace("?", "-").replace("=", "").replace(",", "-")
    return Case(label, source, source, size or 0, over, 0, 0, notes=notes, few=1, **rest)


#: Models without a reference of ours: what is compiled of them is checked by masking alone.
MORE: tuple[Case, ...] = (
    _more("timm:swin_tiny_patch4_window7_224", 64, _SWIN, "windows, hierarchy"),
    _more("hf:qwen2.5-vl?grid=2,4,6", None, {**_QWEN, "window_size": 16}, "video, windows"),
    _more("hf:mllama-vision", 24, _MLLAMA, "tiles; outputs of several depths"),
    _more("hf:llava-next", 64, _LLAVA, "tiles of an image"),
    _more("hf:llava-onevision", 64, _LLAVA, "tiles of an image"),
    _more("hf:blip-vision", 64, {**_TINY, "patch_size": 8}, ""),
    _more("hf:siglip-classify", 64, {**_TINY, "patch_size": 8, "num_classes": 7}, "average pool"),
)

ALL: dict[str, Case] = {**BY_ID, **{case.id: case for case in MORE}}


@dataclass(frozen=True)
class Ask:
    """One row that is wanted."""

    case: Case
    variant: Variant

    @property
    def id(self) -> str:
        return f"{self.case.id}-{self.variant.id}"


def wanted(*, full: bool = False) -> list[Ask]:
    """The rows in the order of the table.

    By default a covering choice of exports of each case, and one of each exporter that the tests
    leave out because it fails; with `full` all exports that the matrix knows.
    """
    found: list[Ask] = []
    for case in ALL.values():
        chosen = variants(case, full=True) if full else _covering(case)
        missing = [e for e in TORCH if e not in case.exporters]
        spelled = case.attentions[-1]
        chosen += [Variant(e, spelled, 17 if e == "torchscript" else 20, 1) for e in missing]
        found += [Ask(case, variant) for variant in dict.fromkeys(chosen)]
    return found


def _covering(case: Case) -> list[Variant]:
    """An export by each exporter at least: one of batch 1 where a model's batch is fixed."""
    if case.id not in BY_ID:
        scripted = list(ALL).index(case.id) % 2
        return [Variant("torchscript", None, 17, 1) if scripted else Variant("dynamo", None, 20, 1)]
    if "qwen" in case.id:
        # Packed patches have no batch axis to leave free.
        return [
            *(v for v in variants(case) if v.batch == 1 and v.exporter in TORCH),
            *[v for v in variants(case) if v.batch == "dynamic"][:1],
        ]
    # Of each exporter one; which moves on from case to case.
    turn = list(ALL).index(case.id)
    groups: dict[str, list[Variant]] = {}
    for variant in variants(case):
        groups.setdefault(variant.exporter, []).append(variant)
    return [group[turn % len(group)] for group in groups.values()]


@lru_cache(maxsize=2)
def model_of(case_id: str) -> LoadedModel:
    """The model of a case with its weights redrawn, the same every time."""
    case = ALL[case_id]
    loaded = load_source(
        case.source,
        random_weights=True,
        image_size=case.image_size or None,
        overrides=case.overrides,
    )
    stir(loaded.module, seed=len(case_id))
    return loaded
