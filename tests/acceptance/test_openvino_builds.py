"""Acceptance: builds for OpenVINO are planned, run, timed and checked there."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tcompile import pipeline
from tcompile.api.bench import bench
from tcompile.api.profile import profile
from tcompile.api.run import run
from tcompile.api.verify import verify
from tcompile.artifact.directory import load_artifact
from tcompile.artifact.manifest import Manifest
from tcompile.artifact.page import render
from tcompile.core.errors import FailedBuildError, ModelError, UsageError
from tcompile.core.save import save
from tcompile.runtime import timing
from tcompile.runtime.metrics import cosine
from tcompile.runtime.samples import run_all
from tcompile.runtime.scenes import evidence_count, evidence_for
from tcompile.runtime.signature import signature
from tcompile.targets import load_target
from tcompile.targets.backends import openvino as backend
from tcompile.targets.backends.cpu import OnCpu, on_cpu
from tcompile.targets.backends.openvino import OpenVinoRunner
from tcompile.targets.backends.ort import OrtRunner
from tcompile.targets.devices import in_runtime
from tests.support.command import TOPK, Command
from tests.support.tiny_vit import VitSpec, save_tiny_vit

openvino = pytest.importorskip("openvino")

SPEC = VitSpec(depth=2)
HAS_BF16 = backend.has_bf16()
WITHOUT_BF16 = pytest.mark.skipif(not HAS_BF16, reason="this processor has no bf16")
PRECISIONS = ["fp32", pytest.param("bf16", marks=WITHOUT_BF16), "int8"]
#: ms by the number of models that are timed together.
CLOCK = {2: [10, 5], 3: [10, 5, 7]}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_tiny_vit(tmp_path / "vit.onnx", SPEC)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    def interleave(calls: Sequence[Any], *, rounds: int, **_: Any) -> list[list[float]]:
        for call in calls:
            call()
        return [[CLOCK[len(calls)][i]] * rounds for i in range(len(calls))]

    monkeypatch.setattr(timing, "interleave", interleave)


def build(source: Path, precision: str, **options: Any) -> Path:
    asked = {"method": "evit", "keep": 0.5, "output": source.parent / "out", **options}
    return pipeline.build(source, target="cpu-openvino", precision=precision, **asked)


def by_itself(path: Path, precision: str, feed: dict[str, Any]) -> dict[str, Any]:
    """What OpenVINO gives, by its own API alone."""
    hint = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", hint)
    found = compiled(feed)
    return {port.any_name: np.array(found[port]) for port in compiled.outputs}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[OnCpu, str]]:
    """What is opened and how: whether tokens leave it, and whether it is in int8."""
    found: list[tuple[OnCpu, str]] = []
    honest = OnCpu.open

    def watched(self: OnCpu, path: Path, *given: Any, **options: Any) -> Any:
        model = onnx.load(str(path))
        int8 = any(t.data_type == onnx.TensorProto.INT8 for t in model.graph.initializer)
        fewer = any(node.op_type == "TopK" for node in model.graph.node)
        kind = f"{'reduced' if fewer else 'dense'}{' int8' if int8 else ''}"
        found.append((self, kind))
        return honest(self, path, *given, **options)

    monkeypatch.setattr(OnCpu, "open", watched)
    return found


def check_timed(opened: list[tuple[OnCpu, str]], precision: str) -> None:
    """Those that were timed were opened together: which files, in what. The report's come later."""
    exact = OnCpu("openvino", "fp32")
    rounded = OnCpu("openvino", "bf16") if precision == "bf16" else exact
    int8 = " int8" if precision == "int8" else ""
    want = [(exact, "dense"), (rounded, f"reduced{int8}"), (rounded, f"dense{int8}")]
    want = want[:2] if precision == "fp32" else want
    assert want in [opened[i : i + len(want)] for i in range(len(opened))]


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_build(source: Path, precision: str, opened: list[tuple[OnCpu, str]]) -> None:
    folder = build(source, precision)
    check_timed(opened, precision)
    opened.clear()
    bench(folder, rounds=5)
    check_timed(opened, precision)
    check_build(source, folder, precision)


def check_build(source: Path, folder: Path, precision: str) -> None:
    artifact = load_artifact(folder)
    m = artifact.manifest
    assert (m.target.name, m.target.runtime) == ("cpu-openvino", "openvino")
    assert (m.precision, m.emitted, m.faster) == (precision, "reduced", True)
    assert m.versions["openvino"] == backend.version()
    assert Manifest.from_json(json.loads(json.dumps(m.to_json()))) == m
    assert not onnx.load(str(artifact.model)).functions
    took = {f.model: f.milliseconds for f in m.latency}
    rival = {} if precision == "fp32" else {f"dense {precision}": 7.0}
    assert took == {"dense": 10.0, "reduced": 5.0, **rival}
    assert {f.runtime for f in m.latency} == {f"OpenVINO {backend.version()} on the CPU"}
    assert m.speedup is not None
    assert m.speedup.ratio == 2.0
    assert (m.rival is None) == (precision == "fp32")
    if m.rival is not None:
        assert m.rival.kind == ("static" if precision == "int8" else "bf16")
        assert m.rival.speedup is not None
        assert m.rival.speedup.over == f"the dense model in {precision}"
        assert f"The dense model in {precision}" in render(m)
    kinds = {t.data_type for t in onnx.load(str(artifact.model)).graph.initializer}
    assert (onnx.TensorProto.INT8 in kinds) == (precision == "int8")
    check_figures(source, artifact.model, m)
    check_what_reads_it(folder, precision)


def check_figures(source: Path, model: Path, m: Manifest) -> None:
    """The cosine in the manifest is that of what OpenVINO gives to what the source does."""
    assert m.fidelity is not None
    samples = evidence_for(signature(model).whole, count=evidence_count(m.flops.dense))
    assert m.fidelity.samples == len(samples)
    want = run_all(source, samples)["logits"]
    have = [
        by_itself(model, m.precision, {"image": row[np.newaxis]})["logits"]
        for row in samples.arrays["image"]
    ]
    expected = float(cosine(want, np.concatenate(have)).mean())
    (out,) = [o for o in m.fidelity.outputs if o.output == "logits"]
    near = 1e-6 if m.precision == "fp32" else 2e-3  # whole batches are rounded otherwise
    assert out.cosine_mean == pytest.approx(expected, abs=near)


def check_what_reads_it(folder: Path, precision: str) -> None:
    found = verify(folder)
    assert found.passed, found.checks
    timed = bench(folder, rounds=5)
    assert timed.runtime.startswith("OpenVINO")
    assert timed.speedup.ratio == 2.0
    assert (timed.rival_speedup is None) == (precision == "fp32")
    np.save(folder.parent / "x.npy", np.zeros((1, 3, SPEC.image, SPEC.image), np.float32))
    assert run(folder, folder.parent / "x.npy").outputs[0].not_finite == 0


@WITHOUT_BF16
def test_bf16_is_what_openvino_does_not_the_file(source: Path, tmp_path: Path) -> None:
    """Its outputs differ from those of fp32 by what eight bits of mantissa leave."""
    x = np.random.default_rng(0).normal(size=(1, 3, SPEC.image, SPEC.image)).astype(np.float32)
    exact, rounded = (
        OnCpu("openvino", p).open(source).run({"image": x})["logits"] for p in ("fp32", "bf16")
    )
    error = np.abs(exact - rounded).max() / np.abs(exact).max()
    assert 1e-4 < error < 5e-2
    reference = run_all(source, evidence_for(signature(source), count=1))
    same = run_all(source, evidence_for(signature(source), count=1), OnCpu("openvino", "fp32"))
    np.testing.assert_allclose(same["logits"], reference["logits"], atol=1e-4)


def test_what_openvino_gets_wrong_fails_the_build(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = OpenVinoRunner.run

    def wrong(self: OpenVinoRunner, feed: Any) -> dict[str, Any]:
        return {n: np.roll(a, 1, axis=-1) if a.dtype.kind == "f" else a
                for n, a in honest(self, feed).items()}  # fmt: skip

    monkeypatch.setattr(OpenVinoRunner, "run", wrong)
    with pytest.raises(FailedBuildError) as caught:
        build(source, "fp32")
    said = caught.value.one_line()
    assert "in openvino the model is not what it is in ONNX Runtime: output 'logits'" in said
    assert "build with --target cpu" in said
    assert not (source.parent / "out").exists()


def test_a_processor_without_bf16(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "has_bf16", lambda: False)
    with pytest.raises(UsageError, match="this processor has no bf16") as caught:
        build(source, "bf16")
    assert "say fp32 or int8" in caught.value.one_line()
    with pytest.raises(UsageError, match="no bf16"):
        profile(source, target="openvino", precision="bf16")


def test_bf16_is_not_for_onnxruntime(source: Path) -> None:
    with pytest.raises(UsageError) as caught:
        pipeline.build(source, target="cpu", precision="bf16", keep=0.5)
    said = caught.value.one_line()
    assert "target cpu has no precision 'bf16'" in said
    assert "bf16 is for cpu-openvino" in said


def test_it_is_measured_not_modelled(source: Path) -> None:
    with pytest.raises(UsageError, match="OpenVINO is measured, not modelled"):
        profile(source, target="openvino", modelled=True)
    found = profile(source, target="openvino", methods=["topk"], seconds=1).profile
    assert found.kind == "measured"
    assert found.conditions.runtime == "OpenVINO, CPU"
    assert found.conditions.software["openvino"] == backend.version()


@pytest.mark.parametrize("precision", ["int8", pytest.param("bf16", marks=WITHOUT_BF16)])
def test_parts_are_measured_in_their_precision(
    source: Path, precision: str, opened: list[tuple[OnCpu, str]]
) -> None:
    found = profile(source, target="openvino", methods=["topk"], precision=precision, seconds=1)
    assert found.profile.conditions.precision == precision
    assert found.profile.rounded
    assert {how for how, _ in opened} == {on_cpu("openvino", precision)}


def test_a_file_that_is_refused_is_the_users(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: OnCpu, path: Path, *_: Any, **__: Any) -> Any:
        if self.runtime == "openvino":
            raise ModelError("OpenVINO does not accept the model: no", where=str(path))
        return OrtRunner(path)

    monkeypatch.setattr(OnCpu, "open", refuse)
    with pytest.raises(ModelError) as caught:
        build(source, "fp32")
    assert caught.value.where == str(source)
    assert not (source.parent / "out").exists()


def test_files_that_openvino_does_not_take(source: Path, tmp_path: Path) -> None:
    """Functions are inlined in what is built; as the reduced graph has them, it takes none."""
    save(pipeline.reduce(source, method="evit", keep=0.5).graph, tmp_path / "call.onnx")
    with pytest.raises(ModelError) as caught:
        OpenVinoRunner(tmp_path / "call.onnx")
    said = caught.value.one_line()
    assert said.startswith(str(tmp_path / "call.onnx"))
    assert "OpenVINO does not accept the model: " in said
    assert "Exception from" not in said


def test_inputs_that_do_not_fit(source: Path) -> None:
    runner = OpenVinoRunner(source)
    with pytest.raises(UsageError, match="the model has: image"):
        runner.run({"pixels": np.zeros(1)})
    with pytest.raises(UsageError, match="has shape"):
        runner.run({"image": np.zeros((1, 3, 5, 5), np.float32)})


def test_the_same_device_in_another_runtime() -> None:
    assert in_runtime("cpu", "openvino") == in_runtime("openvino", "openvino") == "cpu-openvino"
    assert in_runtime("cpu-openvino", "onnxruntime") == "cpu"
    assert in_runtime("rtx-4090", None) == "rtx-4090"
    with pytest.raises(UsageError, match="does not run in openvino") as caught:
        in_runtime("rtx-4090", "openvino")
    assert caught.value.hint == "it runs in tensorrt-rtx"
    assert [t for t in (load_target("cpu"), load_target("openvino")) if not t.on_cpu] == []


@pytest.mark.usefixtures("clock")
def test_on_the_command_line(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command: Callable[..., Any] = Command(capsys)
    asked = ["build", source, *TOPK, "--keep", "0.5", "--runtime", "openvino"]
    shown = command(*asked, "--output", source.parent / "out")
    assert (shown.code, shown.err) == (0, "")
    assert "OpenVINO" in shown.out
    m = load_artifact(source.parent / "out").manifest
    assert m.target.name == "cpu-openvino"
    shown = command(
        "build", source, "--target", "rtx-4090", "--keep", "0.5", "--runtime", "openvino"
    )
    assert shown.code == 2
    assert "--runtime: rtx-4090 does not run in openvino" in shown.err


def test_profiles_of_another_runtime(source: Path, tmp_path: Path) -> None:
    of_ort = profile(source, target="cpu", methods=["topk"], modelled=True).profile
    with pytest.raises(UsageError, match="is of cpu, and what is planned is for cpu-openvino"):
        pipeline.plan(source, target="openvino", method="topk", latency=5, profile=of_ort)


def test_a_drop_of_ranges_that_are_taken_anew(source: Path, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(60, 3, SPEC.image, SPEC.image))
    np.savez(tmp_path / "x.npz", image=rows.astype(np.float32), labels=np.arange(60) % 3)
    asked = {"method": "topk", "max_drop": 0.5, "calibration": tmp_path / "x.npz"}
    with pytest.raises(UsageError, match="cannot be shown of OpenVINO's 8 bits") as caught:
        pipeline.plan(source, target="openvino", precision="int8", **asked)
    assert "--precision bf16 or fp32" in caught.value.one_line()
