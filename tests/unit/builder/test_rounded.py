"""Builds in int8: which kind is taken, what it is held against, and when it fails."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime import quantization

from tcompile import pipeline
from tcompile.api.bench import bench
from tcompile.api.demo import write_glyphs
from tcompile.api.run import run
from tcompile.api.verify import verify
from tcompile.artifact.directory import load_artifact
from tcompile.artifact.manifest import Fidelity, Manifest, OutputFidelity
from tcompile.artifact.page import render
from tcompile.builder import rounded as builder
from tcompile.builder.checks import calibration_of, evidence_of
from tcompile.builder.rounded import Candidate, choose_kind
from tcompile.cli.bench import print_benchmark
from tcompile.core.errors import FailedBuildError, ModelError, UsageError
from tcompile.core.save import save
from tcompile.models.glyphs.evaluate import evaluate, onnx_predict
from tcompile.passes.lower import int8, lower
from tcompile.passes.lower.int8 import Kind
from tcompile.planning.request import Request
from tcompile.runtime import timing
from tcompile.runtime.samples import feeds
from tcompile.runtime.scenes import calibration_for
from tcompile.runtime.signature import signature
from tcompile.targets import load_target
from tcompile.verify.fidelity import rounding_fault
from tests.support.command import TOPK, Command
from tests.support.tiny_vit import VitSpec, save_outlying_vit, save_tiny_vit

SPEC = VitSpec(depth=2)


# ---- which kind ----------------------------------------------------------------------------------


def fidelity(cosine: float, correlation: float | None = None) -> Fidelity:
    out = OutputFidelity("y", "all", cosine, cosine, correlation_mean=correlation)
    return Fidelity("8 scenes", 8, (out,), "scenes")


def candidate(kind: Kind, loss: float, ms: float, fault: str = "", noise: float = 0) -> Candidate:
    times = ms + noise * np.sin(np.arange(20) + (kind == "static"))
    return Candidate(kind, Path(kind), fidelity(1 - loss), fault, times=times.tolist())


@pytest.mark.parametrize(
    ("static", "kind", "why"),
    [
        (candidate("static", 0.001, 8.0), "static", "is faster and loses at most 1.5 times"),
        (candidate("static", 0.00149, 8.0), "static", "is faster"),
        (candidate("static", 0.0016, 8.0), "dynamic", "loses more than 1.5 times as much"),
        (candidate("static", 0.0001, 12.0), "dynamic", "is not shown to be faster"),
        (candidate("static", 0.0001, 9.95), "dynamic", "is not shown to be faster"),
        (candidate("static", 0.0001, 9.5, noise=8.0), "dynamic", "is not shown to be faster"),
        (candidate("static", 0.0001, 8.0, "it has NaN"), "dynamic", "static: it has NaN"),
    ],
)
def test_static_where_it_is_faster_and_loses_little(static: Candidate, kind: str, why: str) -> None:
    dynamic = candidate("dynamic", 0.001, 10.0)
    for order in ([dynamic, static], [static, dynamic]):
        chosen, words = choose_kind(order)
        assert (chosen.kind, why in words) == (kind, True), words
        assert "dynamic takes 10 ms and loses 0.001" in words


def test_what_is_sound_before_what_is_not() -> None:
    bad = candidate("dynamic", 0.5, 5.0, "output 'y' has 3 NaN")
    chosen, why = choose_kind([bad, candidate("static", 0.01, 10.0)])
    assert (chosen.kind, "dynamic: output 'y' has 3 NaN" in why) == ("static", True)
    chosen, _ = choose_kind([bad, candidate("static", 0.9, 10.0, "so has this")])
    assert chosen.fault
    chosen, why = choose_kind([candidate("dynamic", 0.1, 10.0)])
    assert (chosen.kind, "was not to be had" in why) == ("dynamic", True)


@pytest.mark.parametrize(
    ("have", "want", "words"),
    [
        (fidelity(0.95), fidelity(0.99), ""),
        (fidelity(0.91), fidelity(1.0), ""),
        (fidelity(0.89), fidelity(1.0), "cosine 0.890 to the dense model, and 1.000 in fp32"),
        (fidelity(0.62), fidelity(0.7), ""),  # What fewer tokens lose is not int8's.
        (fidelity(0.99, 0.5), fidelity(0.99, 0.9), "correlation 0.500"),
        (fidelity(float("nan")), fidelity(1.0), "cosine nan"),
    ],
)
def test_the_floor_is_of_what_int8_loses(have: Fidelity, want: Fidelity, words: str) -> None:
    found = rounding_fault(have, want)
    assert words in found
    assert bool(found) == bool(words)


# ---- builds --------------------------------------------------------------------------------------

#: ms by the number of models that are timed together: both kinds of both models beside the dense
#: one; dense, reduced and dense int8; dense int8 alone.
Clock = dict[int, list[float]]
FASTER: Clock = {5: [10, 5, 6, 7, 8], 3: [10, 5, 7], 2: [10, 7]}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    each = dict(FASTER)

    def interleave(calls: Sequence[Any], *, rounds: int, **_: Any) -> list[list[float]]:
        for call in calls:
            call()
        return [[each[len(calls)][i]] * rounds for i in range(len(calls))]

    monkeypatch.setattr(timing, "interleave", interleave)
    return each


Build = Callable[..., Path]


@pytest.fixture
def build(tmp_path: Path, clock: Clock) -> Build:
    def made(source: Path | None = None, **options: Any) -> Path:
        source = source or save_tiny_vit(tmp_path / "vit.onnx", SPEC)
        asked = {"method": "evit", "keep": 0.5, "output": tmp_path / "out", **options}
        return pipeline.build(source, target="cpu", precision="int8", **asked)

    return made


def kinds_of(folder: Path) -> set[int]:
    return {t.data_type for t in onnx.load(str(folder / "model.onnx")).graph.initializer}


def test_a_build(build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = build()
    m = load_artifact(folder).manifest
    assert (m.precision, m.emitted, m.faster) == ("int8", "reduced", True)
    assert onnx.TensorProto.INT8 in kinds_of(folder)
    took = {f.model: f.milliseconds for f in m.latency}
    assert took == {"dense": 10.0, "reduced": 5.0, "dense int8": 7.0}
    rounds = {f.model: set(f.rounds) for f in m.latency}
    assert rounds == {"dense": {10}, "reduced": {5}, "dense int8": {7}}
    assert m.speedup is not None
    assert m.rival is not None
    assert m.rival.speedup is not None
    assert (m.speedup.ratio, m.rival.speedup.ratio) == (2.0, 1.4)
    assert m.rival.speedup.over == "the dense model in int8"
    assert m.quantization is not None
    assert (m.quantization.kind, m.quantization.products) == ("dynamic", 4 * SPEC.depth + 1)
    assert "dynamic takes 5 ms and loses" in m.quantization.reason
    assert m.quantization.smoothed == "4 norms, weighed on 8 procedural scenes (seed 7)"
    assert m.quantization.same_tokens is not None
    assert 0.7 < m.quantization.same_tokens <= 1
    assert any(n.startswith("int8 is dynamic: dynamic takes 5 ms") for n in m.notes)
    assert any(n.startswith("dense int8 is dynamic: dynamic takes 7 ms") for n in m.notes)
    assert m.fidelity is not None
    assert m.fidelity.outputs[0].cosine_mean > 0.9
    assert m.rival.fidelity.outputs[0].cosine_mean > 0.99
    document = json.loads(json.dumps(m.to_json()))
    assert Manifest.from_json(document) == m
    for name in ("quantization", "rival"):
        del document[name]
    assert Manifest.from_json(document).rival is None
    page = render(m)
    assert "Over the dense model in int8: 1.40 × [1.40, 1.40] (95 %)." in page
    assert "The dense model in int8 (dynamic) has, on the same:" in page
    assert "int8: dynamic, of 9 matrix products; dynamic takes 5 ms" in page
    check_what_reads_it(folder, tmp_path, capsys)


def check_what_reads_it(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The other commands on an int8 artifact."""
    found = verify(folder, layers=True)
    assert found.passed, found.checks
    (numerics,) = [c for c in found.checks if c.name == "numerics"]
    assert numerics.detail.startswith("int8, judged by fidelity: ")
    assert "of tokens the same as in fp32, cosine" in numerics.detail
    assert "in fp32)" in numerics.detail
    assert found.numerics is None
    assert found.layers
    assert not any(row.departs for row in found.layers)
    assert any(row.layer == "block 1, MLP" for row in found.layers)
    timed = bench(folder, rounds=5)
    assert timed.rival_speedup is not None
    assert timed.rival_speedup.ratio == pytest.approx(1.4)
    print_benchmark(timed)
    printed = capsys.readouterr().out
    assert "dense int8" in printed
    assert "speed-up 1.40 [1.40, 1.40] (95 %) over the dense model in int8" in printed
    np.save(tmp_path / "x.npy", np.zeros((1, 3, SPEC.image, SPEC.image), np.float32))
    assert run(folder, tmp_path / "x.npy").outputs[0].not_finite == 0


def test_static_is_calibrated_on_other_scenes(
    build: Build, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock[5] = [10, 6, 3, 7, 4]
    monkeypatch.setattr(builder, "_MOST_LOSS", 1e9)
    m = load_artifact(build()).manifest
    assert m.quantization is not None
    assert m.quantization.kind == "static"
    assert "procedural scenes (seed 1" in m.quantization.data
    assert m.rival is not None
    assert m.rival.kind == "static"
    assert m.fidelity is not None
    assert "seed 0" in m.fidelity.data


def test_dense_int8_where_the_reduced_one_is_no_faster(build: Build, clock: Clock) -> None:
    clock |= {5: [10, 5, 6, 5, 6], 3: [10, 5, 5]}
    folder = build()
    m = load_artifact(folder).manifest
    assert (m.emitted, m.reason, m.precision) == ("dense", "measured", "int8")
    assert "was measured not shown to be faster than dense int8 here, 5 ms" in m.summary[0]
    assert onnx.TensorProto.INT8 in kinds_of(folder)
    assert m.rival is None
    assert m.quantization is not None
    assert [f.model for f in m.latency] == ["dense", "dense int8"]
    assert m.plan is not None
    assert m.plan["tried_schedule"]["ms"] == 5.0
    assert verify(folder).passed
    forced = load_artifact(build(force=True)).manifest
    assert (forced.emitted, forced.faster) == ("reduced", False)
    assert any(
        "not shown to be faster than dense here: 1.00 × [1.00, 1.00] over the dense model in int8"
        in note
        for note in forced.notes
    )


def test_outliers_fail_the_build(build: Build, tmp_path: Path) -> None:
    source = save_outlying_vit(tmp_path / "outliers.onnx", SPEC)
    with pytest.raises(FailedBuildError) as caught:
        build(source)
    said = caught.value.one_line()
    assert "in int8 (dynamic) the model is not what it is in fp32: output 'logits' has cos" in said
    assert "more than 0.1 less" in said
    assert "build with --precision fp32; --keep-failed" in said
    assert not (tmp_path / "out").exists()
    folder = build(source, keep_failed=True, force=True)
    fault = load_artifact(folder).manifest.fault
    assert fault is not None
    assert "output 'logits'" in fault
    found = verify(folder, layers=True)
    assert [c.name for c in found.checks if c.outcome == "failed"] == ["build", "numerics"]
    assert "build with --precision fp32" in next(
        c.detail for c in found.checks if c.name == "numerics"
    )
    assert any(row.departs for row in found.layers)


def test_images_of_a_person_are_shared_out(build: Build, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(8, 3, SPEC.image, SPEC.image)).astype(np.float32)
    np.save(tmp_path / "x.npy", rows)
    model = save_tiny_vit(tmp_path / "vit.onnx", SPEC)
    request = Request(keep=0.5, calibration=tmp_path / "x.npy")
    judged = evidence_of(model, request, None, 10**9, True)
    ranges = calibration_of(signature(model).whole, request, 10**9)
    assert judged.source.endswith(
        "2 of 8 samples from x.npy that ranges were not taken from (seed 0)"
    )
    assert (len(judged), len(ranges), ranges.source) == (2, 6, "6 of 8 samples from x.npy")
    both = np.concatenate([judged.arrays["image"], ranges.arrays["image"]])
    assert len(np.unique(both[:, 0, 0, 0])) == 8
    m = load_artifact(build(model, calibration=tmp_path / "x.npy")).manifest
    assert m.fidelity is not None
    assert m.fidelity.data == judged.source


@pytest.mark.parametrize("how", ["fp16", "dynamic"])
def test_sources_that_are_not_fp32(build: Build, clock: Clock, tmp_path: Path, how: str) -> None:
    """What is made int8 is their normal form, in fp32."""
    path = save_tiny_vit(tmp_path / "vit.onnx", SPEC)
    if how == "dynamic":
        quantization.quantize_dynamic(path, tmp_path / "small.onnx")
    else:
        model = onnx.load(str(path))
        for weight in model.graph.initializer:
            array = onnx.numpy_helper.to_array(weight)
            if array.dtype == np.float32:
                weight.CopyFrom(onnx.numpy_helper.from_array(array.astype("f2"), weight.name))
        for end in (*model.graph.input, *model.graph.output):
            end.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
        onnx.save(model, str(tmp_path / "small.onnx"))
        clock[4] = [10, 5, 20, 7]
    m = load_artifact(build(tmp_path / "small.onnx")).manifest
    assert m.emitted == "reduced"
    took = {f.model: f.milliseconds for f in m.latency}
    assert took["reduced"] == 5
    assert took["dense int8"] == 7
    assert ("source" in took) == (how == "fp16")


def test_a_smaller_image_that_the_host_makes(build: Build, tmp_path: Path) -> None:
    """The dense model in int8 takes the whole image, the other the small one."""
    source = save_tiny_vit(tmp_path / "vit.onnx", SPEC)
    folder = build(source, method="resolution:grid=3x3", keep=None, resize="host")
    m = load_artifact(folder).manifest
    assert m.inputs[0].shape[-1] == 24
    assert m.rival is not None
    assert m.quantization is not None
    assert m.quantization.same_tokens is None
    assert verify(folder).passed


def test_a_device_without_fp8_says_which_have_it(tmp_path: Path) -> None:
    path = save_tiny_vit(tmp_path / "vit.onnx", SPEC)
    with pytest.raises(UsageError) as caught:
        pipeline.build(path, target="rtx-3060", precision="fp8", keep=0.5)
    said = caught.value.one_line()
    assert "target rtx-3060 has no precision 'fp8'" in said
    assert "one of fp16, mixed, bf16, int8, fp32; fp8 is for jetson-agx-thor, l4, rtx-4060" in said


def test_too_large_for_the_quantizer(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "LIMIT", 1000)
    with pytest.raises(ModelError, match="int8 takes models below 2 GB") as caught:
        build()
    assert "vit.onnx" in caught.value.where
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("clock")
def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save_tiny_vit(tmp_path / "vit.onnx", SPEC)
    with warnings.catch_warnings():
        shown = Command(capsys)(
            "build", source, *TOPK, "--keep", "0.5", "--precision", "int8", "-v"
        )
    logging.disable(logging.NOTSET)
    assert shown.code == 0, shown.err
    printed = " ".join(shown.out.split())
    assert "dense int8, measured" in printed
    assert "1.40 × [1.40, 1.40] (95 %) over the dense model in int8" in printed
    assert "dense int8, output logits" in printed
    assert "int8 dynamic, of 9 matrix products" in printed


def test_glyphs_are_read_as_well_in_int8(tmp_path: Path) -> None:
    """The trained model, reduced, on scenes that it has not seen."""
    path = tmp_path / "glyphs.onnx"
    write_glyphs(path)
    made = pipeline.reduce(path, method="evit", keep=0.6)
    save(lower(made.graph, target=load_target("cpu"), precision="int8"), path, made.metadata)
    model = signature(path)
    ranges = list(feeds(model, calibration_for(model, count=4)))
    right = {"fp32": evaluate(onnx_predict(path)[0], 64).top1}
    kinds: tuple[Kind, ...] = ("dynamic", "static")
    for kind in kinds:
        onnx.save(int8.quantized(onnx.load(str(path)), kind, ranges), str(tmp_path / kind))
        right[kind] = evaluate(onnx_predict(tmp_path / kind)[0], 64).top1
    assert right["fp32"] > 0.9
    assert right["dynamic"] >= right["fp32"] - 0.03
    assert right["static"] >= right["fp32"] - 0.05
