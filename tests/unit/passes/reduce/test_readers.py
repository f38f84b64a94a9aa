"""Blocks with several attentions, and several special tokens that are read: which of them score."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tcompile
from tcompile.core.schedule import Reduction, Schedule, Spec
from tcompile.pipeline import read
from tests.support.many_towers import (
    Attend,
    Block,
    Detecting,
    Encoder,
    Model,
    One,
    export,
    images_of,
    run,
    stirred,
)

Files = Callable[[str], Path]


def joined(block: Block) -> Block:
    """The same block with one attention that has the heads of all of them."""
    parts: Any = list(block.attentions)
    one = Attend(32, sum(p.heads for p in parts))
    for name in ("q", "k", "v"):
        layers = [getattr(p, name) for p in parts]
        wide = nn.Linear(32, 32 * len(parts))
        wide.weight = nn.Parameter(torch.cat([x.weight for x in layers]))
        wide.bias = nn.Parameter(torch.cat([x.bias for x in layers]))
        setattr(one, name, wide)
    one.out = nn.Linear(32 * len(parts), 32)
    one.out.weight = nn.Parameter(torch.cat([p.out.weight for p in parts], 1))
    one.out.bias = nn.Parameter(torch.stack([p.out.bias for p in parts]).sum(0))
    block.attentions = nn.ModuleList([one])
    return block


class Distilled(Model):
    """A class and a distillation token, each with a head of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder(prefix=2)
        self.heads = nn.ModuleList(nn.Linear(32, 5) for _ in range(2))

    def forward(self, image: Tensor, kept: Any = None) -> tuple[Tensor, ...]:
        x = self.encoder(image, (kept or {}).get("image"))
        return self.heads[0](x[:, 0]), self.heads[1](x[:, 1])


class Returning(Model):
    """A backbone: all tokens, none of them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()

    def forward(self, image: Tensor, kept: Any = None) -> tuple[Tensor, ...]:
        return (self.encoder(image),)


class First(Model):
    """Detection tokens before the patches, all from one parameter."""

    def __init__(self, count: int = 5) -> None:
        super().__init__()
        self.encoder, self.count = Encoder(prefix=0), count
        self.own = nn.Parameter(torch.zeros(1, count, 32))
        self.head = nn.Linear(32, 5)

    def forward(self, image: Tensor, kept: Any = None) -> tuple[Tensor, ...]:
        x = self.encoder.tokens(image)
        x = torch.cat([self.own.expand(image.shape[0], -1, -1), x], 1)
        for block in self.encoder.blocks:
            x = block(x)
        return (self.head(x[:, : self.count]),)


@lru_cache
def module(name: str) -> Any:
    if name == "one by one":
        return stirred(One(Encoder(heads=(2, 2)), tokens=True))
    if name == "their sum":
        made = One(Encoder(heads=(2, 2), summed=True), tokens=True)
        made.load_state_dict(module("one by one").state_dict())
        return made.eval()
    if name == "as one":
        made = One(Encoder(heads=(2, 2)), tokens=True)
        made.load_state_dict(module("one by one").state_dict())
        made.encoder.blocks = nn.ModuleList(joined(b) for b in made.encoder.blocks)
        return made.eval()
    if name == "other widths":
        return stirred(One(Encoder(heads=(2, 4)), tokens=True))
    kinds: dict[str, Callable[[], nn.Module]] = {
        "distilled": Distilled,
        "first": First,
        "detecting": Detecting,
        "detecting and all": lambda: Detecting(whole=True),
        "one detecting": lambda: Detecting(1),
        "all returned": Returning,
        "registers": lambda: One(Encoder(prefix=5)),
    }
    return stirred(kinds[name]())


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("readers")

    def write(name: str) -> Path:
        path = folder / f"{name.replace(' ', '-')}.onnx"
        return path if path.exists() else export(module(name), path)

    return write


@lru_cache
def analysed(path: Path) -> Any:
    return read(path).analysis


def reduced(path: Path, score: Spec | None, reducer: Spec | None = None) -> tcompile.Reduced:
    step = Reduction("attn:0", score, reducer or Spec("topk"), 9)
    return tcompile.reduce(path, schedule=Schedule("custom", analysed(path).shape, (step,)))


# ---- several attentions --------------------------------------------------------------------------

_SCORES = {
    "cls": Spec("cls"),
    "cls max": Spec("cls", {"agg": "max"}),
    "cls context": Spec("cls", {"weight": "context"}),
    "cls values": Spec("cls", {"value": "l1"}),
    "cls logits": Spec("cls", {"softmax": "pre"}),
    "cls joined": Spec("cls", {"heads": "joined"}),
    "attn": Spec("attn"),
    "colsum": Spec("colsum", {"agg": "max", "queries": "all"}),
    "pagerank": Spec("pagerank"),
    "keys": Spec("norm", {"of": "k"}),
    "rowmean": Spec("rowmean"),
}


@pytest.mark.parametrize("spelling", ["one by one", "their sum"])
@pytest.mark.parametrize("score", sorted(_SCORES))
def test_several_attentions_score_as_one_of_all_their_heads(
    file: Files, score: str, spelling: str
) -> None:
    feed = images_of(module("as one"))
    wanted = run(reduced(file("as one"), _SCORES[score]).graph, feed)
    made = reduced(file(spelling), _SCORES[score])
    found = run(made.graph, feed)
    np.testing.assert_array_equal(found["token_index"], wanted["token_index"])
    np.testing.assert_allclose(found["out0"], wanted["out0"], atol=2e-5)
    assert any("all 2 of its attentions" in note for note in made.schedule.notes)


@pytest.mark.parametrize("spelling", ["one by one", "their sum"])
def test_several_attentions_merge_as_one_of_all_their_heads(file: Files, spelling: str) -> None:
    feed = images_of(module("as one"))
    wanted = run(reduced(file("as one"), None, Spec("merge")).graph, feed)
    found = run(reduced(file(spelling), None, Spec("merge")).graph, feed)
    np.testing.assert_array_equal(found["token_owner"], wanted["token_owner"])
    np.testing.assert_allclose(found["out0"], wanted["out0"], atol=2e-5)


def test_attentions_of_other_head_widths_score_and_merge_too(file: Files) -> None:
    model, feed = module("other widths"), images_of(module("other widths"))
    found = run(reduced(file("other widths"), Spec("cls")).graph, feed)
    index = torch.from_numpy(found["token_index"])
    best = model.encoder.scores(feed["image"], [0]).topk(9).indices.sort().values + 1
    assert index[:, 1:].equal(best)
    np.testing.assert_allclose(
        found["out0"], model(**feed, kept={"image": index})[0].detach(), atol=2e-4
    )
    merged = run(reduced(file("other widths"), None, Spec("merge")).graph, feed)
    assert merged["token_size"].sum() == 17
    with pytest.raises(tcompile.TcompileError, match="heads of different widths"):
        reduced(file("other widths"), Spec("norm", {"of": "k"}))


def test_inspect_counts_the_attentions_of_a_block(file: Files) -> None:
    for spelling in ("one by one", "their sum"):
        found = tcompile.inspect(file(spelling))
        assert [b.attentions for b in found.blocks] == [2, 2]
        assert not found.beside
        assert ", 2 ×" in found.to_text()


# ---- several special tokens ----------------------------------------------------------------------


def test_detection_tokens_score_together(file: Files) -> None:
    path, model = file("detecting"), module("detecting")
    made, feed = reduced(path, Spec("cls")), images_of(model)
    found = run(made.graph, feed)
    best = model.encoder.scores(feed["image"], range(17, 23)).topk(9).indices.sort().values + 1
    index = torch.cat([torch.tensor([[0]]), best, torch.arange(17, 23)[None]], 1)
    # The output that holds them begins behind the class token.
    np.testing.assert_array_equal(found["token_index"], index[:, 1:] - 1)
    np.testing.assert_allclose(
        found["out0"], model(**feed, kept={"image": index})[0].detach(), atol=2e-4
    )
    # The first one alone would keep others.
    first = model.encoder.scores(feed["image"], [17]).topk(9).indices.sort().values + 1
    assert not first.equal(best)
    said = "score cls is the mean of what tokens 17–22 pay, which are read together"
    assert said in made.schedule.notes
    assert said not in reduced(path, Spec("norm")).schedule.notes


@pytest.mark.parametrize(
    ("name", "wanted", "words"),
    [
        ("detecting", (17, 22), "tokens 17–22 are read together, apart from the patches"),
        ("one detecting", (17, 17), "token 17 is read by itself (CLS)"),
        ("detecting and all", (17, 22), "tokens 17–22 are read together, apart from the patches"),
        ("first", (0, 4), "tokens 0–4 are read together, apart from the patches"),
        ("distilled", (0, 0), "token 0 is read by itself (CLS)"),
        ("all returned", (0, 0), "token 0 is returned with all others (CLS)"),
        ("registers", (0, 0), "token 0 is read by itself (CLS)"),
    ],
)
def test_inspect_names_the_tokens_that_are_read(
    file: Files, name: str, wanted: tuple[int, int], words: str
) -> None:
    found = tcompile.inspect(file(name))
    assert found.read == wanted
    assert words in found.to_text()


def test_a_class_token_beside_a_distillation_token_scores_alone(file: Files) -> None:
    model, feed = module("distilled"), images_of(module("distilled"))
    made = reduced(file("distilled"), Spec("cls"))
    assert not any("score cls" in note for note in made.schedule.notes)
    best = model.encoder.scores(feed["image"], [0]).topk(9).indices.sort().values + 2
    index = torch.cat([torch.tensor([[0, 1]]), best], 1)
    both = model.encoder.scores(feed["image"], [0, 1]).topk(9).indices.sort().values + 2
    assert not both.equal(best)
    found, wanted = run(made.graph, feed), model(**feed, kept={"image": index})
    for i, want in enumerate(wanted):
        np.testing.assert_allclose(found[f"out{i}"], want.detach(), atol=2e-4)
