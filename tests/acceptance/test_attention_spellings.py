"""Attention however it is spelled: the same sites, the same tokens, the same outputs.

Plain ones are held against the oracle of the file with MatMul, Softmax and MatMul, which knows
nothing of the other spelling; attentions of another kind against the oracle of their own file.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import zip_longest
from pathlib import Path

import numpy as np
import onnx
import pytest

from tcompile import pipeline
from tcompile.analysis.model import Analysis
from tcompile.core.errors import UsageError
from tests.oracles.compare import infer
from tests.oracles.dense_file import Tokens, exposing, feed_for
from tests.oracles.masked import check_masked, kept_patches
from tests.support.attention_spelling import (
    MIXES,
    NORMS,
    OTHERS,
    PRODUCTS,
    SHARES,
    Spelling,
    respell,
)
from tests.support.judge import judge
from tests.support.onnx_models import to_onnx
from tests.support.tiny_vit import VitSpec, build_vit, random_weights

#: Each of the plain parts once. Two norms have a table of their own, and so are other models.
_PARTS = zip_longest(PRODUCTS, [n for n in NORMS if "masked" not in n], MIXES)
PLAIN = [Spelling(p or "matmul", n or "softmax", m or "matmul") for p, n, m in _PARTS]
_SPEC = VitSpec(image=24, patch=6, width=12, depth=4)
TOKENS = Tokens(_SPEC.prefix, _SPEC.patches)
BATCHES = (2, None)


@lru_cache
def _plain(batch: int | None) -> onnx.ModelProto:
    return build_vit(_SPEC, random_weights(_SPEC), batch=batch)


def _written(path: Path, batch: int | None, *spellings: Spelling) -> onnx.ModelProto:
    """A model whose blocks from the second on are spelled so."""
    model = onnx.ModelProto()
    model.CopyFrom(_plain(batch))
    del model.graph.value_info[:]
    for block, spelling in reversed(list(enumerate(spellings, 1))):  # those before are plain
        assert respell(model, spelling, range(block, block + 1)) == 1
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return model


def _legal(analysis: Analysis) -> list[tuple[str, bool, bool, bool]]:
    found = [(s.name, s.reduced) for s in analysis.sites]
    return [(n, not v.reason, not v.merge, not v.fuse) for n, v in found]


@pytest.mark.parametrize("part", range(-(-len(PLAIN) // 3)))
def test_plain_attention_is_one_however_it_is_spelled(part: int, tmp_path: Path) -> None:
    batch, path = BATCHES[part % 2], tmp_path / "model.onnx"
    _written(path, batch, *PLAIN[3 * part : 3 * part + 3])
    onnx.save(_plain(batch), tmp_path / "plain.onnx")
    found, plain = (pipeline.read(p).analysis for p in (path, tmp_path / "plain.onnx"))
    assert [a.plain and not a.unusual for a in found.attentions] == [True] * _SPEC.depth
    assert _legal(found) == _legal(plain)
    made = pipeline.reduce(path, keep=0.6, method="topk:block=1")
    reduced, feed = to_onnx(made.graph), feed_for(_plain(batch), 2)
    places = {s.name: s.tensor for s in plain.sites}
    check_masked(
        _plain(batch), reduced, made.schedule.to_json(), feed, tokens=TOKENS, places=places
    )


#: Those that tokens may leave and be merged before, three to a model.
_TABLES = ("biased_keys", "own_sinks")
_APART = ("talking_bias", "sigmoid", "relu_counted", *_TABLES)
_MERGED = [n for n in OTHERS if n not in (*_APART, *SHARES)]


@pytest.mark.parametrize("part", range(-(-len(_MERGED) // 3)))
@pytest.mark.parametrize("method", ["topk:block=0", "tome"])
def test_other_attentions_follow_the_tokens(part: int, method: str, tmp_path: Path) -> None:
    names = _MERGED[3 * part : 3 * part + 3]
    path = tmp_path / "model.onnx"
    _written(path, BATCHES[part % 2], *(Spelling(other=n) for n in names))
    assert judge(path, method).kind == "equal"


@pytest.mark.parametrize("batch", BATCHES)
def test_tables_beside_learned_keys_follow_the_tokens(batch: int | None, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    _written(path, batch, *(Spelling(other=n) for n in _TABLES))
    assert judge(path, "topk:block=0").kind == "equal"


def test_a_map_that_is_counted_follows_the_count(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    _written(path, 2, *[Spelling(other="relu_counted")] * 3)
    assert judge(path, "topk:block=0").kind == "equal"
    with pytest.raises(UsageError, match="nothing divides by the sum of its weights"):
        pipeline.reduce(path, keep=0.6, method="tome")


def test_probabilities_with_a_bias_are_not_merged(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    _written(path, 2, *[Spelling(other="talking_bias")] * 3)
    pipeline.reduce(path, keep=0.6, method="topk:block=0")
    with pytest.raises(UsageError, match=r"cannot weigh merged tokens: Add 'attention_1/8_Add'"):
        pipeline.reduce(path, keep=0.6, method="tome")


#: What may not be merged, and the op that is named; the tokens may leave all the same.
_UNWEIGHED = {
    "square": "Mul",
    "two_maps": "Mul",
    "sink_square": "Mul",
    "less_square": "Mul",
    "threshold": "Less",
    "maximum_inside": "ReduceMax",
    "maximum_outside": "ReduceMax",
    "minimum_added": "ReduceMin",
}


@pytest.mark.parametrize("name", _UNWEIGHED)
def test_what_is_not_in_proportion_to_shares_is_not_merged(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    _written(path, 2, Spelling(other=name))
    assert judge(path, "topk:block=0").kind in ("equal", "ran")
    with pytest.raises(UsageError, match=rf"in block 1, .*{_UNWEIGHED[name]} 'attention_1/"):
        pipeline.reduce(path, keep=0.6, method="tome")


@pytest.mark.parametrize("name", ["all_but_shares", "prefix_alone", "by_query"])
def test_shares_beside_a_number_sum_to_more_over_more_tokens(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    _written(path, 2, Spelling(other=name))
    with pytest.raises(UsageError, match=r"in block 1, MatMul 'attention_1/.* sums over tokens"):
        pipeline.reduce(path, keep=0.6, method="topk:block=0")
    with pytest.raises(UsageError, match=r"cannot weigh merged tokens: (Sub|Where) 'attention_1/"):
        pipeline.reduce(path, keep=0.6, method="tome")


@pytest.mark.parametrize(
    "name", ["shares_by_logits", "shares_by_gate", "shares_or_nothing", "shares_by_prefix"]
)
def test_what_is_in_proportion_to_shares_is_merged(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    _written(path, 2, Spelling(other=name))
    assert judge(path, "tome").kind == "equal"


def test_a_sum_that_nothing_counts_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    _written(path, 2, *[Spelling(other="sigmoid")] * 3)
    with pytest.raises(UsageError, match="in block 1, MatMul 'attention_1/2_MatMul' sums over"):
        pipeline.reduce(path, keep=0.6, method="topk:block=0,site=attn")


@pytest.mark.parametrize("name", ["sink", "sink_first", "plus_one", "learned_keys_first"])
def test_scores_read_what_tokens_get_beside_sinks(name: str, tmp_path: Path) -> None:
    """The probabilities of the patches as the file computes them, sinks in the sum."""
    path = tmp_path / "model.onnx"
    model = _written(path, 2, *[Spelling(other=name)] * 3)
    made = pipeline.reduce(path, keep=0.5, method="topk:block=1")
    assert [r.score.name for r in made.schedule.reductions if r.score] == ["cls"]
    feed = feed_for(model, 2)
    (kept,) = kept_patches(to_onnx(made.graph), feed, TOKENS)
    nodes = [n for n in model.graph.node if n.name.startswith("attention_1/")]
    last = {"plus_one": "Div", "learned_keys_first": "Softmax"}.get(name, "Slice")
    chances = [n for n in nodes if n.op_type == last][-1].output[0]
    rows = infer(exposing(model, [chances]), feed)[chances][:, :, 0]
    start = rows.shape[-1] - TOKENS.patches if name.endswith("first") else TOKENS.before
    score = rows[..., start : start + TOKENS.patches].mean(1)
    best = np.sort(np.argsort(-score, axis=1)[:, : kept.shape[1]], axis=1)
    assert np.array_equal(kept, best)


def test_a_score_stands_in_where_none_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    _written(path, 2, *(Spelling(other=n) for n in ("talking", "difference", "sink")))
    made = pipeline.reduce(path, keep=0.6, method="topk:block=1")
    assert [r.score.name for r in made.schedule.reductions if r.score] == ["norm"]
    document = made.schedule.to_json()
    document["reductions"][0]["score"] = {"name": "cls"}
    with pytest.raises(UsageError, match=r"attention of block 1, which mixes its heads \(MatMul"):
        pipeline.reduce(path, schedule=document)


def test_inspect_names_attentions_that_are_not_plain(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    names = ("sink", "learned_keys", "difference")
    _written(path, 2, *(Spelling(other=n) for n in names))
    page = pipeline.inspect(path)
    lines = [line.strip() for line in page.to_text().splitlines()]
    assert "block 1: attention with a sink column" in lines
    assert "block 2: attention with 2 learned keys" in lines
    assert any(
        line.startswith("block 3: attention with a difference of two maps;") for line in lines
    )
    blocks = page.to_json()["blocks"]
    assert [b["unusual"] for b in blocks][:2] == [(), ("a sink column",)]
    # Each is priced: its products are counted, a wider softmax with them.
    assert blocks[2]["flops"] > blocks[1]["flops"] > 0
