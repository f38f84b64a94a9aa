"""A build whose lowered model is not the reduced one is a failed build, and says where it went."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from tcompile import pipeline
from tcompile.api.verify import verify
from tcompile.artifact.directory import load_artifact
from tcompile.core.errors import FailedBuildError, InternalError, UsageError
from tcompile.passes.lower import lower
from tcompile.pipeline import building
from tcompile.runtime.scenes import scenes_and_noise
from tcompile.runtime.signature import signature
from tcompile.targets import load_target
from tcompile.verify.lowered import _compare, difference, judge
from tcompile.verify.owners import Owners
from tcompile.verify.pair import Pair, write_pair
from tests.support.command import Command
from tests.support.half import run_as_written
from tests.support.onnx_models import to_onnx
from tests.support.tiny_vit import VitSpec, build_vit, random_weights, save_tiny_vit

Weights = dict[str, np.ndarray]
SPEC = VitSpec(depth=4, image=32)


def residual(w: Weights) -> None:
    """One channel of the stream beyond 65504, and back."""
    w["blocks.1.mlp.fc2.bias"][7], w["blocks.2.mlp.fc2.bias"][7] = 9e4, -9e4


def two_sums(w: Weights) -> None:
    """Each summand fits, and their sum does not; ONNX Runtime alone does not round it."""
    w["blocks.0.mlp.fc2.bias"][3], w["blocks.1.attn.proj.bias"][3] = 4e4, 4e4
    w["blocks.2.mlp.fc2.bias"][3] = -8e4 + 10


def hidden(w: Weights) -> None:
    """The MLP's hidden layer is too large, its second weights small."""
    w["blocks.2.mlp.fc1.weight"] *= 1e5
    w["blocks.2.mlp.fc2.weight"] *= 1e-5


def scores(w: Weights) -> None:
    """Products of queries and keys are too large."""
    w["blocks.3.attn.qkv.weight"][: 2 * SPEC.width] *= 1000


def cancelled(w: Weights) -> None:
    """All of it fits, and what matters is lost in the rounding of a large sum."""
    w["blocks.0.mlp.fc2.bias"] += 3e4
    w["blocks.1.mlp.fc2.bias"] -= 3e4


def near_ties(w: Weights) -> None:
    """Sharp attention, so that its rounding is large beside what lies between two scores."""
    w["blocks.0.attn.qkv.weight"][: 2 * SPEC.width] *= 3


#: What is wrong with a model, and the user's node that the fault begins at.
FAULTS: dict[str, tuple[Callable[[Weights], None], str]] = {
    "residual": (residual, "add_64"),
    "two sums": (two_sums, "add_53"),
    "hidden": (hidden, "matmul_84"),
    "scores": (scores, "matmul_104"),
    # The stream itself is large and alike; what the norm makes of it is not.
    "cancelled": (cancelled, "layernormalization_36"),
}


def save(change: Callable[[Weights], None], path: str = "vit.onnx", spec: VitSpec = SPEC) -> Path:
    weights = random_weights(spec, 0)
    change(weights)
    onnx.save(build_vit(spec, weights, batch=1), path)
    return Path(path)


def pair_of(source: Path, folder: Path, method: str = "topk", form: str = "native") -> Pair:
    reduced = pipeline.reduce(source, method=method, keep=0.6)
    lowered = lower(
        reduced.graph,
        target=load_target("jetson-orin"),
        precision="fp16",
        fp32_nodes=reduced.fp32_nodes,
        token_ops=form,  # type: ignore[arg-type]
    )
    return write_pair(reduced.graph, lowered, folder, Owners(source, reduced.dense))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_fp16_cannot_hold_fails_the_build(fault: str) -> None:
    change, node = FAULTS[fault]
    source = save(change)
    with pytest.raises(FailedBuildError) as raised:
        pipeline.build(source, target="jetson-orin", keep=0.6, method="topk", output="out")
    error = raised.value
    assert error.exit_code == 1
    assert error.where == "vit.onnx"
    assert f"node '{node}'" in error.what, error.what
    assert "--precision fp32" in error.hint
    assert "--keep-failed" in error.hint
    assert sorted(p.name for p in Path().iterdir()) == ["vit.onnx"]
    built = pipeline.build(
        source, target="jetson-orin", precision="fp32", keep=0.6, method="topk", output="out"
    )
    assert load_artifact(built).manifest.fault is None


@pytest.mark.parametrize("fault", FAULTS)
def test_mixed_precision_holds_what_fp16_cannot(fault: str) -> None:
    change, _ = FAULTS[fault]
    source = save(change)
    built = pipeline.build(
        source, target="jetson-orin", precision="mixed", keep=0.6, method="topk", output="out"
    )
    manifest = load_artifact(built).manifest
    assert (manifest.precision, manifest.fault) == ("mixed", None)
    (note,) = [n for n in manifest.notes if n.startswith("mixed: ")]
    assert re.search(r"mixed: \d+ of \d+ nodes stay in fp32, whose values are beyond 16376", note)
    assert "procedural scenes" in note
    # In the types as they are written, which ONNX Runtime's CPU does not keep to.
    reduced = to_onnx(pipeline.reduce(source, keep=0.6, method="topk").graph)
    image = scenes_and_noise(signature(source)).arrays["image"][:1]
    model = onnx.load(built / "model.onnx")
    want, have = (run_as_written(m, {"image": image})["logits"] for m in (reduced, model))
    assert difference(want, have).cosine > 0.99
    weights = [t for t in model.graph.initializer if len(t.dims) == 2]
    half = [t for t in weights if t.data_type == onnx.TensorProto.FLOAT16]
    assert len(half) > 0.7 * len(weights)


def test_an_rtx_engine_of_nan_is_not_written() -> None:
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(FailedBuildError, match=r"9e\+04, beyond fp16's 65504"):
        pipeline.build(save(residual), target="rtx-4090", keep=0.6, method="topk", output="out")
    assert not Path("out").exists()


def test_an_rtx_engine_of_mixed_precision_fuses_as_much() -> None:
    pytest.importorskip("tensorrt_rtx")
    asked = {"target": "rtx-4090", "keep": 0.6, "method": "topk"}
    source = save(residual)
    built = pipeline.build(source, **asked, precision="mixed", output="out")
    found = load_artifact(built).manifest.fused_attention
    assert found is not None
    assert (found.found, found.expected, found.missing) == (SPEC.depth, SPEC.depth, ())


def test_a_flag_keeps_what_failed(capsys: pytest.CaptureFixture[str]) -> None:
    tcompile = Command(capsys)
    command = [
        "build",
        str(save(residual)),
        "--target",
        "jetson-orin",
        "--keep",
        "0.6",
        "--method",
        "topk",
        "-o",
        "out",
    ]
    assert tcompile(*command).code == 1
    assert not Path("out").exists()
    kept = tcompile(*command, "--keep-failed", "--json")
    assert kept.code == 1
    assert kept.json()["manifest"]["fault"]
    fault = json.loads(Path("out/manifest.json").read_text())["fault"]
    assert "add_64" in fault
    first = Path("out/report.md").read_text().splitlines()[0]
    assert "failed" in first
    assert fault in first
    checks = {c.name: c.outcome for c in verify("out").checks}
    assert checks["build"] == checks["numerics"] == "failed"
    # What passes afterwards takes its place.
    assert tcompile(*command, "--precision", "fp32").code == 0
    assert json.loads(Path("out/manifest.json").read_text())["fault"] is None


def test_lowering_for_a_cpu_has_to_be_right_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: object, **options: object) -> gs.Graph:
        graph = lower(*args, **options)  # type: ignore[arg-type]
        node = next(n for n in graph.nodes if n.op == "Softmax")
        node.attrs["axis"] = 1
        return graph

    monkeypatch.setattr(building, "lower", wrong)
    source = save(lambda w: None)
    with pytest.raises(FailedBuildError, match="node 'softmax_18'") as raised:
        pipeline.build(source, target="cpu", keep=0.6, method="topk", output="out")
    assert "report it" in raised.value.hint
    assert not Path("out").exists()


@pytest.mark.parametrize("method", ["topk", "tome", "evit"])
@pytest.mark.parametrize("form", ["native", "plugin"])
def test_a_flipped_token_is_no_fault(tmp_path: Path, method: str, form: str) -> None:
    """Every token is an output: rows of other tokens would not be alike."""
    spec = VitSpec(depth=2, image=128, patch=4, pool="none")
    source = save(near_ties, spec=spec)
    pair = pair_of(source, tmp_path, method, form)
    samples = scenes_and_noise(signature(source))
    _, choices = _compare(pair, samples)
    assert min(min(shares) for shares in choices.values()) < 1, "nothing flipped: a useless test"
    found = judge(pair, source, precision="fp16", source="x", precisions=("fp16", "fp32"))
    assert found.fault is None


def test_halves_are_rounded_as_they_are_written(tmp_path: Path) -> None:
    """The judged file against a plain evaluation of the fp16 graph, operator by operator."""
    from tcompile.targets.backends.ort import OrtRunner
    from tests.support.onnx_models import to_onnx

    source = save(two_sums)
    graph = pipeline.reduce(source, keep=1).graph
    lowered = lower(graph, target=load_target("jetson-orin"), precision="fp16")
    written = to_onnx(lowered)
    reduced = pipeline.reduce(source, keep=1)
    pair = write_pair(reduced.graph, lowered, tmp_path, Owners(source, reduced.dense))
    feed = {"image": np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)}
    (ours,) = OrtRunner(pair.judged).run(feed).values()
    (plain,) = run_as_written(written, feed).values()
    assert np.isnan(plain).all()
    assert np.isnan(ours).all()


def test_layers_say_where_it_begins(capsys: pytest.CaptureFixture[str]) -> None:
    source = save(two_sums)
    built = pipeline.build(
        source, target="jetson-orin", keep=0.6, method="topk", output="out", keep_failed=True
    )
    rows = verify(built, layers=True).layers
    named = [row.layer for row in rows if row.layer.startswith(("block", "output"))]
    assert named == [f"block {i}, {part}" for i in range(4) for part in ("attention", "MLP")] + [
        "output logits"
    ]
    first = next(row for row in rows if row.departs)
    assert (first.layer, first.node) == ("block 1, attention", "add_53")
    assert first.not_finite > 0
    assert first.largest > 65504
    document = Command(capsys)("verify", "out", "--layers", "--json").json()
    assert [row["tensor"] for row in document["layers"]] == [row.tensor for row in rows]
    assert "block 1, attention" in Command(capsys)("verify", "out", "--layers").out


def test_layers_show_what_lies_between() -> None:
    built = pipeline.build(
        save(hidden), target="jetson-orin", keep=0.6, method="topk", output="out", keep_failed=True
    )
    rows = verify(built, layers=True).layers
    first = next(row for row in rows if row.departs)
    assert first.node == "matmul_84"
    places = [row.layer for row in rows]
    assert places.index("block 2, attention") < rows.index(first) < places.index("block 2, MLP")


def test_layers_of_a_sound_model_all_agree() -> None:
    source = save(lambda w: None)
    for target, method in (("cpu", "tome"), ("jetson-orin", "evit")):
        built = pipeline.build(
            source, target=target, keep=0.6, method=method, output=target, force=True
        )
        rows = verify(built, layers=True).layers
        assert len(rows) == 9
        assert not any(row.departs for row in rows)
    source.unlink()
    with pytest.raises(UsageError, match="the source"):
        verify("cpu", layers=True)


def test_a_difference_is_taken_where_fp32_is_finite() -> None:
    a = np.array([1, 2, -np.inf, np.nan], np.float32)
    same = difference(a, np.array([1, 2, np.nan, 7], np.float32))
    assert same.not_finite == 0
    assert not same.departs("fp32")
    assert difference(a, np.array([np.inf, 2, 0, 0], np.float32)).not_finite == 1
    twice = difference(np.ones(8, np.float32), 2 * np.ones(8, np.float32))
    assert twice.cosine == pytest.approx(1)
    assert twice.departs("fp16")
    nothing = np.zeros(8, np.float32)
    assert not difference(nothing, nothing + 1e-4).departs("fp16")
    assert difference(nothing, nothing + 1).departs("fp16")


def test_masked_scores_are_no_fault() -> None:
    """-1e9 for "not this one" becomes -65504 in fp16, and the softmax is the same."""
    model = build_vit(SPEC, random_weights(SPEC, 0), batch=1)
    softmax = next(n for n in model.graph.node if n.op_type == "Softmax")
    mask = np.zeros((1, 1, 1, SPEC.tokens), np.float32)
    mask[..., -3:] = -1e9
    model.graph.initializer.append(onnx.numpy_helper.from_array(mask, "mask"))
    add = onnx.helper.make_node("Add", [softmax.input[0], "mask"], ["masked"], "masked")
    model.graph.node.insert(list(model.graph.node).index(softmax), add)
    softmax.input[0] = "masked"
    onnx.save(model, "masked.onnx")
    built = pipeline.build(
        "masked.onnx", target="jetson-orin", keep=0.6, method="topk", output="out"
    )
    assert load_artifact(built).manifest.fault is None


def test_a_batch_of_its_own_is_judged(tmp_path: Path) -> None:
    for batch in (None, 3):
        source = save_tiny_vit(tmp_path / f"{batch}.onnx", SPEC, batch=batch)
        pipeline.build(source, target="jetson-orin", keep=0.6, method="tome", output=f"o{batch}")
    weights = random_weights(SPEC, 0)
    residual(weights)
    onnx.save(build_vit(SPEC, weights, batch=3), "three.onnx")
    with pytest.raises(FailedBuildError, match="add_64"):
        pipeline.build("three.onnx", target="jetson-orin", keep=0.6, method="tome", output="out")


def test_a_model_that_scales_its_pixels_is_judged_on_pixels() -> None:
    """Around 0 it would see one grey, and fp16 nothing of what differs."""
    model = build_vit(SPEC, random_weights(SPEC, 0), batch=1)
    middle = onnx.numpy_helper.from_array(np.array(127.5, np.float32), "middle")
    model.graph.initializer.append(middle)
    model.graph.node.insert(0, onnx.helper.make_node("Sub", ["frame", "middle"], ["zero"], "zero"))
    model.graph.node.insert(1, onnx.helper.make_node("Div", ["zero", "middle"], ["image"], "unit"))
    model.graph.input[0].name = "frame"
    onnx.save(model, "frames.onnx")
    built = pipeline.build(
        "frames.onnx", target="jetson-orin", keep=0.6, method="topk", output="out"
    )
    assert load_artifact(built).manifest.fault is None
    found = verify(built, layers=True)
    assert found.passed
    assert not any(row.departs for row in found.layers)


@pytest.mark.parametrize("method", ["topk", "tome", "gtp"])
def test_layers_of_a_bundle_with_plugins(method: str) -> None:
    built = pipeline.build(
        save(lambda w: None),
        target="jetson-orin",
        keep=0.6,
        method=method,
        token_ops="plugin",
        output="out",
    )
    rows = verify(built, layers=True).layers
    assert len(rows) == 9
    assert not any(row.departs for row in rows)


def test_a_graph_that_no_runtime_takes_is_our_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: object, **options: object) -> gs.Graph:
        graph = lower(*args, **options)  # type: ignore[arg-type]
        next(n for n in graph.nodes if n.op == "Softmax").op = "Sofmax"
        return graph

    monkeypatch.setattr(building, "lower", wrong)
    with pytest.raises(InternalError, match="Sofmax") as raised:
        pipeline.build(save(lambda w: None), target="cpu", keep=0.6, method="topk", output="out")
    assert raised.value.where == "vit.onnx"
    assert "/tmp" not in str(raised.value)
    assert sorted(p.name for p in Path().iterdir()) == ["vit.onnx"]


@pytest.mark.parametrize("method", ["topk", "evit", "tome:r=3", "pitome"])
def test_what_is_pinned_of_inlined_token_ops_is_what_is_of_calls(
    tmp_path: Path, method: str
) -> None:
    """A choice comes out of integers there, and is a choice all the same."""
    source = save_tiny_vit(tmp_path / "vit.onnx", SPEC)
    keep = {} if method.startswith("tome") else {"keep": 0.5}
    made = pipeline.reduce(source, method=method, **keep)
    pairs = []
    for target in ("cpu", "jetson-orin"):
        graph = lower(made.graph, target=load_target(target), precision="fp32")
        (tmp_path / target).mkdir()
        owners = Owners(source, made.dense, made.written)
        pairs.append(write_pair(made.graph, graph, tmp_path / target, owners))
    plain, calls = pairs
    assert plain.pins
    assert plain.pins == calls.pins
    # A merge on the whole stream has no patches, and no keys of patches, by themselves.
    left_out = {t.name for t in calls.shared} - {t.name for t in plain.shared}
    assert bool(left_out) == method.startswith("tome")
    assert all(name.startswith("tcompile/") for name in left_out)
    assert set(plain.scores) == set(calls.scores) - left_out
    assert {t.name for t in plain.shared} <= {t.name for t in calls.shared}
    assert judge(plain, source, precision="fp32", source="x", precisions=("fp32",)).fault is None
