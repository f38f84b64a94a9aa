"""What a kit's models took, as latencies of parts: against times that are known."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tcompile.analysis.flops import node_flops
from tcompile.api.imports import fits_board
from tcompile.core.errors import UsageError
from tcompile.methods.method import Method
from tcompile.passes.stages import Analysed
from tcompile.profiling.imported import Work, imported_profile
from tcompile.profiling.kit import (
    DENSE,
    FORMAT,
    VERSION,
    Kit,
    KitModel,
    Measured,
    check_sites,
    curve_and_steps,
    is_measured,
    read_measured,
)
from tcompile.profiling.partition import Segment, subgraph
from tcompile.profiling.sizing import structures
from tcompile.profiling.structure import layout_of, partition_dense, partition_steps
from tests.support.profiling import CONDITIONS, method, tiny
from tests.support.tiny_vit import VitSpec

#: ms for a FLOP, and what a step of each method takes.
PER_FLOP, STEPS = 1e-6, {"topk": 2.5, "tome": 7.5}
SPEC = VitSpec(image=48, patch=8, width=32, heads=2, depth=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Analysed:
    return tiny(tmp_path_factory.mktemp("model"), SPEC)


def took(model: Analysed, of: Method, tokens: int, site: str) -> float:
    """A model with one step, on a device where each part takes as long as it has FLOPs: its own
    parts, as the rewriter made them."""
    shape = model.analysis.shape
    if tokens == shape.tokens:
        made = partition_dense(model.graph, model.analysis)
    else:
        made = partition_steps(model.graph, of, [(site, tokens - shape.prefix)])

    def ms(part: Segment) -> float:
        if part.role == "reducer":
            return STEPS[of.text]
        return PER_FLOP * sum(node_flops(n) for n in subgraph(made.graph, part).nodes)

    return sum(ms(p) for p in made.parts)


def measured_of(model: Analysed, methods: list[Method], models: list[KitModel]) -> Measured:
    shape = model.analysis.shape
    by_text = {m.text: m for m in methods}
    times = {
        m.name: took(model, by_text.get(m.method, methods[0]), m.tokens, m.site) for m in models
    }
    kit = Kit(
        "tiny.onnx",
        "",
        "fake",
        "fp32",
        1,
        shape.tokens,
        shape.prefix,
        "reduced",
        methods[0].text,
        tuple(models),
    )
    rounds = {name: ((ms, ms), (ms, ms)) for name, ms in times.items()}
    return Measured(kit, "100300", "A board", "MAXN", "2026-01-02T03:04:05+00:00", rounds)


@pytest.mark.parametrize("site", ["attn:0", "block:0"])
def test_a_device_whose_parts_are_known(model: Analysed, site: str) -> None:
    """Latency throughout, steps and parts come out as they were put in, whatever lies before."""
    methods = [method(model, text) for text in ("topk", "tome")]
    tokens = model.analysis.shape.tokens
    models = [
        KitModel(DENSE, tokens),
        *(KitModel(f"topk-{n}", n, "topk", site) for n in (tokens - 1, 30, 24, 10)),
        KitModel("tome-24", 24, "tome", site),
    ]
    measured = measured_of(model, methods, models)
    found = structures(model.graph, model.analysis, methods)
    work = Work.of_model(model.graph, found, methods[0])
    layout = layout_of(model.graph, methods[0])
    # The step of one token is told from the dense model's time: what that token saves is its error.
    saved = took(model, methods[0], tokens, site) + STEPS["topk"]
    saved -= took(model, methods[0], tokens - 1, site)
    curve, steps = curve_and_steps(measured, methods, layout, work)
    for n, figure in curve.points:
        through = PER_FLOP * (work.stem + work.total(n))
        # The error is scaled up by what lies before: a third of the model, for block:0.
        most = 1.6 * saved if n != tokens else 0
        assert figure.ms == pytest.approx(through, abs=most + 1e-9)
    assert steps["topk"].points[0][2].ms == pytest.approx(STEPS["topk"] - saved, abs=1e-9)
    assert steps["tome"].points[0][:2] == (tokens, 24)
    assert steps["tome"].points[0][2].ms == pytest.approx(STEPS["tome"], abs=2 * saved)
    profile = imported_profile(
        model.graph,
        model.analysis,
        methods,
        curve,
        CONDITIONS,
        source="tiny.onnx",
        steps=steps,
        found=found,
    )
    assert profile.kind == "measured"
    assert "taken to cost nothing" not in profile.conditions.note
    assert 0 < saved < 0.1 * STEPS["topk"]


def document(model: Analysed) -> dict[str, Any]:
    tokens = model.analysis.shape.tokens
    models = [
        KitModel(DENSE, tokens),
        KitModel("topk-30", 30, "topk", "attn:0"),
        KitModel("topk-20", 20, "topk", "attn:0"),
    ]
    measured = measured_of(model, [method(model, "topk")], models)
    plain = json.loads(json.dumps(asdict(measured)))
    return {"format": FORMAT, "version": VERSION, **plain}


def test_a_file_is_read(model: Analysed, tmp_path: Path) -> None:
    path = tmp_path / "any.name"
    path.write_text(json.dumps(document(model)))
    assert is_measured(path)
    found = read_measured(path)
    assert found.version == "10.3.0"
    assert found.kit.methods == ("topk",)
    assert found.figure(DENSE).runs == 4
    assert found.drift_note == ""
    apart = replace(found, rounds={**found.rounds, DENSE: ((1.0,), (1.2,))})
    assert "20% apart: lock the clocks" in apart.drift_note
    other = tmp_path / "table.csv"
    other.write_text("tokens,ms\n")
    assert not is_measured(other)
    assert not is_measured("197=times.json")


@pytest.mark.parametrize(
    ("title", "board", "fits"),
    [
        ("Jetson AGX Orin 64 GB", "NVIDIA Jetson AGX Orin Developer Kit", True),
        ("Jetson AGX Thor (T5000)", "NVIDIA Jetson AGX Thor Developer Kit", True),
        ("Jetson Orin Nano 8 GB before the Super mode", "NVIDIA Orin Nano Developer Kit", True),
        ("Jetson Orin NX 16 GB", "NVIDIA Jetson AGX Orin Developer Kit", False),
        ("Jetson AGX Orin 64 GB", "NVIDIA Jetson Orin NX Engineering Reference", False),
        ("Jetson Orin NX 16 GB", "", True),
    ],
)
def test_a_board_fits_the_target(title: str, board: str, fits: bool) -> None:
    assert fits_board(title, board) == fits


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 2}, "is of version 2, this is 1"),
        ({"tensorrt": "ten"}, "is damaged"),
        ({"board": 7}, "is damaged"),
        ({"rounds": {DENSE: [[1.0]]}}, "has no times of topk-30"),
        ({"rounds": {DENSE: [[1.0]], "topk-30": [[]]}}, "has no times of topk-30"),
        ({"rounds": {DENSE: [[1.0]], "topk-30": [[-1.0]]}}, "times of topk-30 that are none"),
        ({"format": "other"}, "is not what a kit's script writes"),
    ],
)
def test_what_is_damaged_is_refused(
    model: Analysed, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    path = tmp_path / "measured.json"
    path.write_text(json.dumps({**document(model), **change}))
    with pytest.raises(UsageError, match=says):
        read_measured(path)


@pytest.mark.parametrize(
    ("kept", "change", "says"),
    [
        (0, {}, "its first model is not the dense one, of 37 tokens"),
        (1, {}, "it has fewer than two models of topk with a step"),
        (2, {}, "it has fewer than two models of topk with a step"),
        (3, {"tokens": 30}, "it has fewer than two models of topk with a step"),
        (3, {"tokens": -5}, "topk-20 has -5 tokens, which is not between the prefix, 1, and"),
        (3, {"tokens": 37}, "topk-20 has 37 tokens"),
        (3, {"site": "nonsense"}, "topk-20 has its step at 'nonsense', which is not a site"),
        (3, {"site": "attn:x"}, "at 'attn:x', which is not a site"),
        (3, {"site": "attn:-1"}, "at 'attn:-1', which is not a site"),
        (3, {"site": "output"}, "at 'output', which is not a site"),
        (3, {"method": ""}, "which is not a site"),
        (3, {"method": "tome"}, "it has fewer than two models of topk with a step"),
    ],
)
def test_a_kit_that_gives_no_curve_is_refused(
    model: Analysed, tmp_path: Path, kept: int, change: dict[str, Any], says: str
) -> None:
    path = tmp_path / "measured.json"
    told = document(model)
    told["kit"]["models"][-1].update(change)
    del told["kit"]["models"][kept:]
    path.write_text(json.dumps(told))
    with pytest.raises(UsageError, match=f"measured.json: is damaged: .*{says}"):
        read_measured(path)


@pytest.mark.parametrize(("site", "says"), [("attn:99", "the model has 3 blocks"), ("block:2", "")])
def test_a_step_at_a_block_that_is_not_there(model: Analysed, site: str, says: str) -> None:
    methods = [method(model, "topk")]
    models = [KitModel(DENSE, 37), KitModel("topk-30", 30, "topk", site)]
    kit = replace(measured_of(model, methods, models[:1]).kit, models=tuple(models))
    measured = Measured(kit, "100300", "", "", "", {})
    found = structures(model.graph, model.analysis, methods)
    work = Work.of_model(model.graph, found, methods[0])
    layout = layout_of(model.graph, methods[0])
    if not says:  # the head is behind it
        check_sites(measured, layout, work, "m.json")
        work = replace(work, found=replace(found, heads={}))
        says = "nothing runs behind it"
    with pytest.raises(UsageError, match=f"m.json: is damaged: topk-30 .* at {site}; {says}"):
        check_sites(measured, layout, work, "m.json")
