"""Several encoders, or several passes of one: each loses tokens, as PyTorch that drops them would,
or as a model of that one alone does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tcompile
from tcompile.core.errors import UsageError
from tcompile.core.schedule import Reduction, Schedule, Spec, TowerSchedule
from tcompile.passes.stages import Reduced
from tcompile.pipeline import explain, read
from tcompile.pipeline.reducing import with_towers
from tcompile.planning.solve.plan_report import PlanReport
from tests.support import many_towers as mt
from tests.support.many_towers import Arrays, Encoder, One, Pair, export, images_of, run, stirred

Make = Callable[[], nn.Module]
_MAKE: dict[str, Make] = {
    "pair": lambda: Pair(Encoder()),
    "pair+tokens": lambda: Pair(Encoder(), tokens=True),
    "flip": lambda: mt.Flip(Encoder()),
    "cameras": lambda: mt.Cameras(Encoder()),
    "one": lambda: One(Encoder()),
    "two": mt.TwoEncoders,
    "grid": mt.GridBeside,
    "text": mt.WithText,
    "stereo": mt.Stereo,
    "mirror": mt.Stereo,
    "summed": mt.Summed,
    "joined": lambda: mt.Joined(1),
    "mostly joined": lambda: mt.Joined(5),
    "queries": mt.LateQueries,
    "few queries": lambda: mt.LateQueries(3),
    "decoded": mt.Decoded,
    "streams": mt.TwoStreams,
    "stages": mt.Stages,
}


@lru_cache
def module(name: str) -> Any:
    made: Any = stirred(_MAKE[name]())
    if name == "mirror":
        made.back = made.across
    return made


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The ONNX file of a model, written once."""
    folder = tmp_path_factory.mktemp("towers")

    def write(name: str, batch: bool = False) -> Path:
        path = folder / f"{name}{'-free' if batch else ''}.onnx"
        return path if path.exists() else export(module(name), path, batch=batch)

    return write


def schedule_at(path: Path, site: str, keep: int, **more: Any) -> Schedule:
    """The patches of largest norm stay."""
    shape = read(path).analysis.shape
    step = Reduction(site, Spec("norm"), Spec("topk"), keep)
    return Schedule("custom", shape, (step,), **more)


def kept(found: Arrays) -> dict[str, Tensor]:
    """Return what the model says of the tokens that each tower keeps."""
    return {
        n.removeprefix("token_index").removeprefix("_"): torch.from_numpy(a)
        for n, a in found.items()
        if n.startswith("token_index")
    }


def close(found: Arrays, wanted: tuple[Tensor, ...]) -> None:
    for i, want in enumerate(wanted):
        np.testing.assert_allclose(found[f"out{i}"], want.detach().numpy(), atol=2e-4)


def towers(made: Reduced) -> dict[str, TowerSchedule]:
    return {t.tower: t for t in made.schedule.towers or ()}


# ---- each tower loses tokens ---------------------------------------------------------------------


@pytest.mark.parametrize("batch", [False, True])
def test_left_and_right_are_what_pytorch_gives_that_drops_tokens(
    file: Callable[..., Path], batch: bool
) -> None:
    path, model = file("pair+tokens", batch), module("pair+tokens")
    made = tcompile.reduce(path, schedule=schedule_at(path, "attn:0", 7))
    feed = images_of(model, 3 if batch else 1)
    found = run(made.graph, feed)
    index = kept(found)
    assert set(index) == {"", "right"}
    assert index[""].shape[1] == index["right"].shape[1] == 8
    assert not torch.equal(index[""], index["right"])
    close(found, model(**feed, kept={"left": index[""], "right": index["right"]}))


@pytest.mark.parametrize("method", ["topk", "evit", "tome", "bypass"])
@pytest.mark.parametrize("name", ["pair", "flip", "cameras"])
def test_each_pass_is_what_the_encoder_alone_gives(
    file: Callable[..., Path], name: str, method: str
) -> None:
    made = tcompile.reduce(file(name), method=method, keep=0.6)
    alone = tcompile.reduce(file("one"), method=method, keep=0.6)
    assert made.schedule.reductions == alone.schedule.reductions
    assert all(t.reductions == alone.schedule.reductions for t in towers(made).values())
    feed = images_of(module(name))
    found = run(made.graph, feed)
    if name == "pair":
        images = list(feed.values())
    elif name == "flip":
        images = [feed["image"], feed["image"].flip(-1)]
    else:
        images = [feed["cameras"][:, i] for i in range(3)]
    for i, image in enumerate(images):
        want = run(alone.graph, {"image": image})["out0"]
        np.testing.assert_allclose(found[f"out{i}"], want, atol=1e-5)


@pytest.mark.parametrize("method", ["topk", "tome"])
def test_towers_of_other_shapes_follow_at_the_same_shares(
    file: Callable[..., Path], method: str, tmp_path: Path
) -> None:
    made = tcompile.reduce(file("two"), method=method, keep=0.6)
    (other,) = towers(made).values()
    assert (made.schedule.final, other.model.patches) == (10, 64)
    assert other.reductions[-1].keep == 40
    if method == "topk":
        # The second encoder has no class token.
        scores = [r.score.name for s in (made.schedule, other) for r in s.reductions if r.score]
        assert scores == ["cls", "attn"]
    model, feed = module("two"), images_of(module("two"))
    found = run(made.graph, feed)
    parts = {
        "out0": (One(model.first, model.head), made.schedule.reductions),
        "out1": (One(model.second, model.head, mean=True), other.reductions),
    }
    for name, (alone, reductions) in parts.items():
        path = export(alone.eval(), tmp_path / f"{name}.onnx")
        shape = read(path).analysis.shape
        single = tcompile.reduce(path, schedule=Schedule("custom", shape, reductions))
        np.testing.assert_allclose(found[name], run(single.graph, feed)["out0"], atol=1e-5)


def test_restored_outputs_of_each_tower(file: Callable[..., Path]) -> None:
    path, feed = file("pair+tokens"), images_of(module("pair+tokens"))
    made = tcompile.reduce(path, method="topk", keep=0.6, outputs="restored")
    found = run(made.graph, feed)
    assert [o.name for o in made.graph.outputs] == ["out0", "out1", "out2", "out3"]
    alone = tcompile.reduce(path, method="topk", keep=0.6, outputs="restored", tower="right")
    np.testing.assert_allclose(found["out3"], run(alone.graph, feed)["out3"], atol=1e-5)
    assert found["out3"].shape == (1, 17, 32)


def test_stages_before_the_towers_stay_dense_and_are_named(file: Callable[..., Path]) -> None:
    made = tcompile.reduce(file("stages"), method="topk", keep=0.6)
    assert set(towers(made)) == {"right"}
    feed = images_of(module("stages"))
    found, back = run(made.graph, feed), {"left": feed["right"], "right": feed["left"]}
    swapped = run(made.graph, back)
    np.testing.assert_allclose(found["out1"], swapped["out0"], atol=1e-5)
    assert sum("64 tokens of" in note for note in made.schedule.notes) == 2


# ---- where their tokens meet ---------------------------------------------------------------------


@pytest.mark.parametrize("batch", [False, True])
def test_attention_across_two_towers_reads_what_each_has_left(
    file: Callable[..., Path], batch: bool
) -> None:
    path, model = file("stereo", batch), module("stereo")
    made = tcompile.reduce(path, schedule=schedule_at(path, "attn:0", 9))
    feed = images_of(model, 1 + batch)
    found = run(made.graph, feed)
    index = kept(found)
    assert index[""].shape == index["right"].shape == (1 + batch, 10)
    close(found, model(**feed, kept={"left": index[""], "right": index["right"]}))


@pytest.mark.parametrize("reducer", ["topk", "merge", "fuse"])
def test_the_second_tower_is_rewritten_as_the_first(
    file: Callable[..., Path], reducer: str
) -> None:
    """The weights are the same on both sides, so that swapped images give swapped outputs."""
    path = file("mirror")
    shape = read(path).analysis.shape
    score = None if reducer == "merge" else Spec("cls")
    step = Reduction("attn:0", score, Spec(reducer), 9)
    made = tcompile.reduce(path, schedule=Schedule("custom", shape, (step,)))
    assert towers(made)["right"].reductions == (step,)
    feed = images_of(module("mirror"))
    found = run(made.graph, feed)
    swapped = run(made.graph, {"left": feed["right"], "right": feed["left"]})
    for kind in ("token_index", "token_owner", "token_size"):
        assert (f"{kind}_right" in found) == (kind in found)
        if kind in found:
            np.testing.assert_array_equal(found[f"{kind}_right"], swapped[kind])
    np.testing.assert_allclose(found["out1"], swapped["out0"], atol=2e-5)
    np.testing.assert_allclose(found["out0"], swapped["out1"], atol=2e-5)


@pytest.mark.parametrize("batch", [False, True])
def test_two_streams_that_read_each_other(file: Callable[..., Path], batch: bool) -> None:
    path, model = file("streams", batch), module("streams")
    made = tcompile.reduce(path, schedule=schedule_at(path, "attn:0", 24))
    (other,) = towers(made).values()
    assert [(r.site, r.keep) for r in other.reductions] == [("attn:0", 6)]
    feed = images_of(model, 1 + batch)
    found = run(made.graph, feed)
    index = kept(found)
    close(found, model(**feed, kept={"small": index[""], "large": index[other.tower]}))


def test_a_sum_of_both_takes_the_rows_that_the_first_has_left(file: Callable[..., Path]) -> None:
    path, model = file("summed"), module("summed")
    made = tcompile.reduce(path, schedule=schedule_at(path, "attn:0", 9))
    assert "meet those of 'left' at Add" in towers(made)["right"].dense
    assert any("'right' stays dense" in note for note in made.schedule.notes)
    feed = images_of(model)
    found = run(made.graph, feed)
    close(found, model(**feed, kept={"left": kept(found)[""]}))


@pytest.mark.parametrize("name", ["queries", "few queries"])
def test_queries_that_join_late(file: Callable[..., Path], name: str) -> None:
    path, model = file(name), module(name)
    early = 2 if name == "queries" else 3
    found = tcompile.inspect(path)
    assert [(b.attentions, b.queries) for b in found.beside] == [(early, 17)]
    assert (found.tokens, found.prefix, found.read) == (22, 6, (0, 4))
    made = tcompile.reduce(path, schedule=schedule_at(path, "attn:0", 9))
    assert any(f"{early} attentions over 17 tokens" in note for note in made.schedule.notes)
    feed = images_of(model)
    found_now = run(made.graph, feed)
    close(found_now, model(**feed, kept={"image": kept(found_now)[""]}))


@pytest.mark.parametrize(("name", "more"), [("joined", 17), ("mostly joined", 17)])
def test_tokens_that_join_late_are_the_reason(
    file: Callable[..., Path], name: str, more: int
) -> None:
    found = tcompile.inspect(file(name))
    site = next(s for s in found.sites if s.site == "attn:0")
    assert f"puts {more} more tokens among them" in site.reason
    assert [b.queries for b in found.beside] == [17 + more]
    with pytest.raises(UsageError, match=f"puts {more} more tokens"):
        tcompile.reduce(file(name), method="topk", keep=0.6)
    assert tcompile.reduce(file(name), method="bypass", keep=0.6).schedule.reductions


# ---- what stays dense ----------------------------------------------------------------------------


def test_a_text_encoder_stays_dense_and_is_named(file: Callable[..., Path]) -> None:
    path = file("text")
    found = tcompile.inspect(path)
    assert [(b.attentions, b.queries, b.inputs) for b in found.beside] == [(5, 6, ("text",))]
    assert "5 attentions over 6 tokens of 'text'" in found.to_text()
    made = tcompile.reduce(path, method="topk", keep=0.6)
    assert any("5 attentions over 6 tokens of 'text'" in note for note in made.schedule.notes)
    feed = images_of(module("text"))
    dense, reduced = run(path, feed), run(made.graph, feed)
    assert np.abs(dense["out0"] - reduced["out0"]).max() > 1e-2
    np.testing.assert_allclose(reduced["out1"], dense["out1"], atol=1e-5)


def test_a_decoder_is_named_with_its_queries_and_keys(file: Callable[..., Path]) -> None:
    found = tcompile.inspect(file("decoded"))
    kinds = [(b.attentions, b.queries, b.keys) for b in found.beside]
    assert kinds == [(3, 7, 17), (3, 7, 7)]


def test_a_tower_without_a_legal_site_stays_dense(file: Callable[..., Path]) -> None:
    made = tcompile.reduce(file("grid"), method="topk", keep=0.6)
    (other,) = towers(made).values()
    assert not other.reductions
    assert "is illegal" in other.dense
    assert any(f"'{other.tower}' stays dense" in note for note in made.schedule.notes)
    feed = images_of(module("grid"))
    dense, reduced = run(file("grid"), feed), run(made.graph, feed)
    assert np.abs(dense["out0"] - reduced["out0"]).max() > 1e-2
    np.testing.assert_allclose(reduced["out1"], dense["out1"], atol=1e-5)


@pytest.mark.parametrize("tower", ["left", "right"])
def test_one_tower_is_chosen(file: Callable[..., Path], tower: str) -> None:
    path, feed = file("pair+tokens"), images_of(module("pair+tokens"))
    made = tcompile.reduce(path, method="tome", keep=0.6, tower=tower)
    dense, both = run(path, feed), run(tcompile.reduce(path, method="tome", keep=0.6).graph, feed)
    found = run(made.graph, feed)
    mine, other = ("out0", "out1") if tower == "left" else ("out1", "out0")
    np.testing.assert_allclose(found[other], dense[other], atol=1e-5)
    np.testing.assert_allclose(found[mine], both[mine], atol=1e-5)
    assert np.abs(found[mine] - dense[mine]).max() > 1e-2
    (dense_one,) = made.schedule.towers or ()
    assert dense_one.dense == f"'{tower}' was chosen"
    assert [n for n in found if n.startswith("token_index")] == ["token_index"]


def test_an_unknown_tower_names_those_that_there_are(file: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match=r"no tower 'lefty'.*left, right") as raised:
        tcompile.reduce(file("pair"), method="topk", keep=0.6, tower="lefty")
    assert raised.value.exit_code == 2


# ---- what is said --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "batch", "wanted"),
    [
        ("pair", False, ["left", "right"]),
        ("pair", True, ["left", "right"]),
        ("flip", False, ["tower0", "tower1"]),
        ("cameras", False, ["tower0", "tower1", "tower2"]),
        ("text", False, ["image"]),
        ("one", False, ["image"]),
    ],
)
def test_names(file: Callable[..., Path], name: str, batch: bool, wanted: list[str]) -> None:
    assert [t.tower for t in tcompile.inspect(file(name, batch)).towers] == wanted


def test_inspect_lists_towers(file: Callable[..., Path]) -> None:
    found = tcompile.inspect(file("pair"))
    document = found.to_json()
    assert [(t["tower"], t["patches"], t["reduced"]) for t in document["towers"]] == [
        ("left", 16, True),
        ("right", 16, True),
    ]
    text = found.to_text()
    assert "Towers: 2; all below is of 'left'" in text
    assert "'right': 2 blocks, 17 tokens, 16 patches (4 × 4); follows the same schedule" in text
    chosen = tcompile.inspect(file("pair"), tower="right")
    assert chosen.tower == "right"
    assert "'left': 2 blocks, 17 tokens, 16 patches (4 × 4); stays dense" in chosen.to_text()
    assert chosen.blocks[0].stream_in != found.blocks[0].stream_in
    assert "Towers" not in tcompile.inspect(file("one")).to_text()


def test_inspect_says_where_towers_meet(file: Callable[..., Path]) -> None:
    (_, other) = tcompile.inspect(file("summed")).towers
    assert re.fullmatch("Add '.+'", other.meets)
    assert f"is in its way at {other.meets}" in tcompile.inspect(file("summed")).to_text()
    assert [t.meets for t in tcompile.inspect(file("pair")).towers] == ["", ""]


def test_why_is_answered_for_the_tower_of_the_node(file: Callable[..., Path]) -> None:
    other = tcompile.inspect(file("pair"), tower="right").blocks[1]
    facts = explain(file("pair"), other.node)
    assert (facts.tower, facts.block) == ("right", 1)
    assert "in the attention of block 1 of tower 'right'" in facts.to_text()
    assert any(walk.reached for walk in facts.walks)


def test_a_schedule_says_what_each_tower_loses_and_is_obeyed(file: Callable[..., Path]) -> None:
    path, feed = file("pair+tokens"), images_of(module("pair+tokens"))
    plan = tcompile.plan(path, method="topk", keep=0.6)
    again = tcompile.reduce(path, schedule=json.loads(json.dumps(plan.to_json())))
    assert again.schedule == plan
    (right,) = plan.towers or ()
    fewer = replace(right, reductions=(replace(right.reductions[0], keep=4),))
    made = tcompile.reduce(path, schedule=replace(plan, towers=(fewer,)))
    index = kept(run(made.graph, feed))
    assert (index[""].shape[1], index["right"].shape[1]) == (11, 5)
    elsewhere = replace(right, reductions=(replace(right.reductions[0], site="attn:9"),))
    with pytest.raises(UsageError, match=r"tower 'right': .*attn:9"):
        tcompile.reduce(path, schedule=replace(plan, towers=(elsewhere,)))
    with pytest.raises(UsageError, match="the model has left, right"):
        tcompile.reduce(path, schedule=replace(plan, towers=(replace(right, tower="up"),)))
    with pytest.raises(UsageError, match="the schedule is for tower 'left'"):
        tcompile.reduce(path, schedule=plan, tower="right")


def test_a_prediction_says_whose_tokens_it_counts(file: Callable[..., Path]) -> None:
    model = read(file("pair"))
    plan = tcompile.plan(file("pair"), method="topk", keep=0.6)
    said = "the predicted latency has fewer tokens in tower 'left' alone"
    predicted = with_towers(model, plan, "reduced", object.__new__(PlanReport))
    assert any(said in note for note in predicted.notes)
    assert not any(said in note for note in plan.notes)


def test_a_schedule_for_one_tower_keeps_to_it(file: Callable[..., Path]) -> None:
    plan = tcompile.plan(file("pair"), method="topk", keep=0.6, tower="right")
    made = tcompile.reduce(file("pair"), schedule=plan.to_json())
    feed = images_of(module("pair"))
    dense, found = run(file("pair"), feed), run(made.graph, feed)
    np.testing.assert_allclose(found["out0"], dense["out0"], atol=1e-5)
    assert np.abs(found["out1"] - dense["out1"]).max() > 1e-2


# ---- the artifact --------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["cpu", "rtx-4090"])
def test_builds_and_verifies(file: Callable[..., Path], tmp_path: Path, target: str) -> None:
    if target != "cpu":
        pytest.importorskip("tensorrt_rtx")
    from tcompile.api.verify import verify
    from tcompile.artifact.directory import load_artifact

    built = tcompile.build(
        file("pair+tokens"),
        target=target,
        method="topk",
        keep=0.6,
        output=tmp_path / "a",
        force=True,
    )
    manifest = load_artifact(built).manifest
    assert manifest.schedule["towers"][0]["outputs"] == ["out3"]
    assert any("tower 'right' loses tokens" in note for note in manifest.notes)
    assert verify(built).passed
    assert manifest.fidelity is not None
    right = next(o for o in manifest.fidelity.outputs if o.output == "out3")
    # Rows of other tokens are not alike.
    assert right.compared == "kept tokens"
    assert right.cosine_min > 0.9
