"""Acceptance: each preset is what its paper says, held against PyTorch that drops, fuses and merges
tokens inside the models of timm and transformers (`tests/oracles/presets`).

By default each preset meets one of the settings of `subjects`, over all presets every one of them;
with TCOMPILE_MATRIX=all each meets all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.oracles.compare import MismatchError
from tests.oracles.exports import exported, subject
from tests.oracles.presets.base import PresetOracle
from tests.oracles.presets.held import against, holds
from tests.oracles.presets.mutants import MUTANTS
from tests.oracles.presets.registry import ORACLES
from tests.oracles.presets.scores import random_head
from tests.oracles.presets.subjects import VIDEOS, Setting, settings
from tests.oracles.presets.subjects import subject as subject_of_source
from tests.oracles.walk import dense_attention
from tests.support.zoo_matrix import BY_ID, Variant


@dataclass(frozen=True)
class Ask:
    """A preset with the parameters that it is asked for with, and what it must have besides.

    head: sizes of the layers of a trained scorer.  norm: whether a norm comes first in it.
    images: whether its counts are learnt.  close: whether some decision is always too close.
    """

    name: str
    keep: str | None = "0.6"
    values: Mapping[str, Any] = field(default_factory=dict)
    depth: int = 4
    head: tuple[int, ...] = ()
    norm: bool = False
    images: bool = False
    close: bool = False

    @property
    def id(self) -> str:
        return "-".join([self.name, *(f"{k}={v}" for k, v in self.values.items())])


ASKS: tuple[Ask, ...] = (
    Ask("topk"),
    Ask("evit", None, {"rate": "0.7"}),
    Ask("pomt", None, {"r": 20}),
    Ask("ats"),
    Ask("as-vit"),
    Ask("spatten", depth=6),
    Ask("fitprune", images=True),
    Ask("g-search", images=True),
    Ask("p-sigmoid", images=True),
    Ask("strided"),
    Ask("radial"),
    Ask("radial", values={"norm": "linf"}),
    Ask("random", values={"seed": 3}),
    Ask("zero-tprune"),
    Ask("dynamicvit", None, {"rate": "0.7"}, head=(8, 2)),
    Ask("spvit", head=(8, 2)),
    Ask("tnt", head=(1,)),
    Ask("cropr", None, {"r": 7}, head=(1,)),
    Ask("svit", head=(8, 2), norm=True),
    Ask("bypass"),
    Ask("idlevit", None, {"rate": "0.7"}),
    Ask("evo-vit"),
    Ask("fastervlm", keep="0.25"),
    Ask("fopru", keep="0.25"),
    Ask("fopru", values={"unit": "row"}),
    Ask("dart", keep="0.25"),
    Ask("vispruner", keep="0.25", close=True),
)

HELD = [(ask, one) for turn, ask in enumerate(ASKS) for one in settings(turn, depth=ask.depth)]


HELD += [(Ask("dycoke", keep="0.5"), VIDEOS[0]), (Ask("dycoke", None, {"rate": "0.3"}), VIDEOS[1])]


def hold(oracle: PresetOracle, ask: Ask, setting: Setting, cache: Path) -> None:
    head = random_head(32, *ask.head, norm=ask.norm) if ask.head else None
    holds(
        oracle, setting, cache, ask.values, ask.keep, head=head, images=ask.images, close=ask.close
    )


@pytest.mark.parametrize(("ask", "setting"), HELD, ids=[f"{a.id}-{s.id}" for a, s in HELD])
def test_a_preset_is_what_its_paper_says(ask: Ask, setting: Setting, cache: Path) -> None:
    hold(ORACLES[ask.name], ask, setting, cache)


#: LLaVA reads the last block but one, whose attention then scores; InternVL's projector joins
#: patches, which leave in groups; DINOv3 turns its keys, but not those of a fused token.
ELSEWHERE = [
    *(("hf-llava", name) for name in ("fastervlm", "fopru", "dart", "vispruner")),
    *(("hf-internvl-projector", name) for name in ("as-vit", "dart", "radial")),
    ("hf-dinov3", "pomt"),
    ("timm-parallel", "spatten"),
]


@pytest.mark.parametrize(("case_id", "name"), ELSEWHERE)
def test_models_of_another_build(case_id: str, name: str, cache: Path) -> None:
    case, oracle = BY_ID[case_id], ORACLES[name]
    path = exported(case, Variant("torchscript", case.attentions[0], 17, "dynamic"), cache)
    request = {"keep": 0.4, "method": name}
    against(oracle, path, subject(case.id), 3, request, {}, close=name == "vispruner")


@pytest.mark.parametrize("name", MUTANTS, ids=lambda name: name.replace(" ", "-"))
def test_what_is_wrong_is_caught(name: str, cache: Path) -> None:
    ask = next(ask for ask in ASKS if ask.name == name.partition(" ")[0])
    with pytest.raises(MismatchError, match=r"error|differs"):
        hold(MUTANTS[name], ask, Setting(65, "hf", 3, ask.depth), cache)


def test_fitprune_learns_its_counts_as_published(cache: Path) -> None:
    """Per block as many leave as lose at most alpha both of what the class token pays and of what
    all pay, in the dense model; the mean over the images."""
    alpha, setting = 0.25, Setting(65, "hf", 3)
    schedule = holds(ORACLES["fitprune"], setting, cache, {"alpha": alpha}, None, images=True)
    found = subject_of_source(setting.source, setting.tokens, setting.depth)
    left, least = [], setting.patches
    for attention in dense_attention(found.encoder, found.pool[-4:].double()):
        most = attention.weights.amax(dim=1)
        shares = [part[:, attention.inner] for part in (most[:, 0], most.sum(dim=1))]
        shares = [share / share.sum(dim=1, keepdim=True) for share in shares]
        order = (shares[0] * shares[1]).argsort(dim=1)
        lost = torch.stack([share.gather(1, order).cumsum(dim=1) for share in shares]).amax(dim=0)
        gone = (lost <= alpha).sum(dim=1).double().mean()
        least = min(least, setting.patches - int(gone))
        left.append(least)
    assert [row["mlp"] - 1 for row in schedule["tokens_per_block"]] == left
    assert left[-1] < setting.patches
