"""A speed-up names both sides: an fp16 source is compared in fp32, and as it came apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import tcompile
from tcompile.api import bench
from tcompile.api.reference import normal_form
from tcompile.artifact.directory import load_artifact
from tcompile.artifact.page import render
from tcompile.builder import checks as evidence
from tcompile.cli.bench import print_benchmark
from tcompile.runtime import timing
from tcompile.runtime.timing import AS_IT_CAME, NORMAL_FORM, bench_models
from tcompile.targets import load_target
from tests.support.tiny_vit import VitSpec, build_vit, random_weights

SPEC = VitSpec(depth=2)


def save_vit(path: Path, half: bool, ends: bool = True) -> Path:
    """A tiny ViT, its weights in fp16 or not; `ends`: its input and output too."""
    model = build_vit(SPEC, random_weights(SPEC), batch=1)
    if half and ends:
        for weight in model.graph.initializer:
            array = onnx.numpy_helper.to_array(weight)
            if array.dtype == np.float32:
                weight.CopyFrom(onnx.numpy_helper.from_array(array.astype("f2"), weight.name))
        for end in (*model.graph.input, *model.graph.output):
            end.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    elif half:
        # fp32 but for what leaves the head, which is cast to fp16 and back.
        head = next(n for n in model.graph.node if model.graph.output[0].name in n.output)
        last = head.output[0]
        head.output[0] = "wide"
        model.graph.node.extend(
            [
                onnx.helper.make_node("Cast", ["wide"], ["narrow"], to=10),
                onnx.helper.make_node("Cast", ["narrow"], [last], to=1),
            ]
        )
        half_tensor = onnx.helper.make_tensor_value_info("narrow", 10, [1, SPEC.classes])
        model.graph.value_info.append(half_tensor)
    onnx.save(model, str(path))
    return path


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """ms of each model that is timed, in the order given: dense, reduced, source."""
    each = [6.0, 4.0, 10.0]

    def interleave(
        calls: Sequence[Any], *, rounds: int, warmup: int = 3, seed: int = 0
    ) -> list[list[float]]:
        for call in calls:
            call()  # All can run.
        return [[each[i]] * rounds for i in range(len(calls))]

    monkeypatch.setattr(timing, "interleave", interleave)
    return each


def build(folder: Path, half: bool, ends: bool = True, **options: Any) -> Path:
    model = save_vit(folder / "vit.onnx", half, ends)
    return tcompile.build(
        model, target="cpu", method="topk", keep="0.5", output=folder / "out", **options
    )


@pytest.mark.parametrize("ends", [True, False])
def test_a_build_of_an_fp16_source(tmp_path: Path, clock: list[float], ends: bool) -> None:
    folder = build(tmp_path, True, ends)
    manifest = load_artifact(folder).manifest
    figures = {f.model: f for f in manifest.latency}
    assert {k: f.milliseconds for k, f in figures.items()} == {
        "dense": 6.0,
        "reduced": 4.0,
        "source": 10.0,
    }
    assert figures["dense"].note.startswith("the fp32 normal form of an fp16 source")
    assert figures["source"].note.startswith("fp16, as it came")
    (note,) = [n for n in manifest.notes if "speed-up" in n]
    assert "1.50 × [1.50, 1.50] over the fp32 normal form of the fp16 model" in note
    assert "2.50 × [2.50, 2.50] over the fp16 model as it came" in note
    assert "fp16, as it came" in render(manifest)
    assert manifest.faster
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


def test_faster_than_the_fp16_file_alone_is_not_faster(tmp_path: Path, clock: list[float]) -> None:
    """1.7 times as fast as the file as it came, but no faster than what it computes in fp32."""
    clock[:] = [4.0, 4.0, 6.8]
    manifest = load_artifact(build(tmp_path, True, force=True)).manifest
    assert manifest.faster is False
    assert any(
        "not shown to be faster than dense here: 1.00 × [1.00, 1.00] over the fp32 normal "
        "form of the fp16 model" in n
        for n in manifest.notes
    )


def test_a_build_of_an_fp32_source_has_no_third_side(tmp_path: Path, clock: list[float]) -> None:
    manifest = load_artifact(build(tmp_path, False)).manifest
    assert [f.model for f in manifest.latency] == ["dense", "reduced"]
    assert not any("fp16" in n for n in manifest.notes)


def test_on_other_targets_nothing_is_timed(tmp_path: Path) -> None:
    path = save_vit(tmp_path / "vit.onnx", True)
    found = evidence.measure(path, path, load_target("jetson-orin"), normal=path)
    assert found.latency == ()


@pytest.mark.parametrize("half", [True, False])
def test_bench_names_both_sides(
    tmp_path: Path, clock: list[float], half: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    found = bench.bench(build(tmp_path, half), rounds=5)
    document = found.to_json()
    capsys.readouterr()
    print_benchmark(found)
    printed = " ".join(capsys.readouterr().out.split())
    assert found.speedup.ratio == 1.5
    if half:
        assert found.compared == NORMAL_FORM
        assert found.source_speedup is not None
        assert document["source_speedup"]["ratio"] == 2.5
        assert document["source"]["median"] == 10.0
        assert f"(95 %) of the reduced model over {NORMAL_FORM}" in printed
        assert "speed-up 2.50 [2.50, 2.50] (95 %) over the fp16 model as it came" in printed
    else:
        assert (found.compared, found.source, found.source_speedup) == (AS_IT_CAME, None, None)
        assert "of the reduced model over the dense model as it came" in printed
        assert "fp16" not in printed


def test_the_normal_form_that_is_timed_is_fp32(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a build as in bench; the third model is the file as it came."""
    real, seen = timing.bench_models, list[tuple[set[int], Path]]()

    def watched(dense: Path, reduced: Path, *, source: Path, **named: Any) -> timing.Benchmark:
        seen.append(({w.data_type for w in onnx.load(str(dense)).graph.initializer}, source))
        return real(dense, reduced, source=source, **named)

    monkeypatch.setattr(timing, "bench_models", watched)
    monkeypatch.setattr(bench, "bench_models", watched)
    folder = build(tmp_path, True)
    bench.bench(folder, rounds=5)
    assert len(seen) == 2
    for kinds, source in seen:
        assert onnx.TensorProto.FLOAT in kinds
        assert onnx.TensorProto.FLOAT16 not in kinds
        assert Path(source).name == "vit.onnx"
    with normal_form(load_artifact(folder), tmp_path / "vit.onnx") as path:
        assert path is not None
        assert path.exists()
    assert not path.exists()


def test_three_models_are_timed_in_the_same_rounds(tmp_path: Path) -> None:
    """With the real clock: as many rounds of each, and both ratios from them."""
    wide, half = save_vit(tmp_path / "a.onnx", False), save_vit(tmp_path / "b.onnx", True)
    found = bench_models(wide, wide, source=half, rounds=5, threads=1)
    assert found.source is not None
    assert found.source_speedup is not None
    ratio = found.source.median / found.reduced.median
    assert found.source_speedup.ratio == pytest.approx(ratio)
    assert found.rounds == 5
