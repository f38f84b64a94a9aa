"""Every check of `verify` fails when it should, and says why."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tcompile import pipeline
from tcompile.api.run import run
from tcompile.api.verify import Verification, _files, verify
from tcompile.artifact.directory import load_artifact
from tcompile.core.errors import UsageError, VerificationError
from tcompile.targets import load_target
from tcompile.targets.backends import emit
from tests.support.artifacts import make_artifact
from tests.support.tiny_vit import VitSpec, build_vit, random_weights, save_tiny_vit


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return save_tiny_vit(Path("vit.onnx"), VitSpec(depth=4, image=48))


def outcome(found: Verification, name: str) -> tuple[str, str]:
    return next((c.outcome, c.detail) for c in found.checks if c.name == name)


def remake(artifact: Path, model: onnx.ModelProto, folder: str = "remade") -> Path:
    """The same artifact around another model."""
    manifest = load_artifact(artifact).manifest
    path = Path("other.onnx")
    onnx.save(model, str(path))
    return make_artifact(
        Path(folder),
        Path("vit.onnx"),
        path,
        schedule=manifest.schedule,
        precision=manifest.precision,
        target=manifest.target,
        inputs=manifest.inputs,
    )


def test_code_in_an_engine_has_a_sha256(source: Path) -> None:
    built = pipeline.build(
        source, target="jetson-orin", keep=0.6, method="topk", version_compatible=True
    )
    (built / "engine").mkdir()
    engine = built / "engine" / "model.trt10.3.engine"
    engine.write_bytes(b"plan")
    found = _files(load_artifact(built))
    assert found.outcome == "failed"
    assert "model.trt10.3.engine holds code that would run in this process" in found.detail
    digest = hashlib.sha256(b"plan").hexdigest()
    engine.with_name(f"{engine.name}.sha256").write_text(f"{digest}  {engine.name}\n")
    assert _files(load_artifact(built)).outcome == "passed"


@pytest.mark.parametrize("method", ["topk", "evit", "tome"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_was_built_passes(source: Path, method: str, precision: str) -> None:
    target = "cpu" if precision == "fp32" else "jetson-orin"
    artifact = pipeline.build(
        source,
        target=target,
        precision=precision,
        keep=0.6,
        method=method,
        force=True,
        output="out",
    )
    found = verify(artifact)
    assert found.passed, found.checks
    assert found.numerics is not None
    assert found.numerics.token_overlap is not None
    found.require()


def test_a_wrong_weight_fails_numerics(source: Path) -> None:
    artifact = pipeline.build(
        source, target="cpu", keep=0.6, method="topk", force=True, output="out"
    )
    model = onnx.load(str(artifact / "model.onnx"))
    weight = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    changed = numpy_helper.to_array(weight).copy()
    changed.flat[:50] *= 1.5
    weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
    found = verify(remake(artifact, model))
    result, detail = outcome(found, "numerics")
    assert result == "failed"
    assert "logits" in detail
    with pytest.raises(VerificationError, match="numerics"):
        found.require()


def test_another_choice_of_tokens_fails(source: Path) -> None:
    """Tokens chosen the other way round: the numbers that come out are not even strange."""
    artifact = pipeline.build(
        source, target="cpu", keep=0.6, method="topk", force=True, output="out"
    )
    model = onnx.load(str(artifact / "model.onnx"))
    node = next(n for n in model.graph.node if n.name.endswith("/TcTopKTokens/TopK_1"))
    position = list(model.graph.node).index(node)
    model.graph.node.insert(position, onnx.helper.make_node("Neg", [node.input[0]], ["worst"]))
    node.input[0] = "worst"
    result, detail = outcome(verify(remake(artifact, model)), "numerics")
    assert result == "failed"
    assert "keeps other tokens" in detail


def test_nan_is_said_plainly(source: Path) -> None:
    artifact = pipeline.build(
        source, target="cpu", keep=0.6, method="topk", force=True, output="out"
    )
    model = onnx.load(str(artifact / "model.onnx"))
    weight = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    broken = np.full_like(numpy_helper.to_array(weight), np.nan)
    weight.CopyFrom(numpy_helper.from_array(broken, weight.name))
    assert outcome(verify(remake(artifact, model)), "finite") == (
        "failed",
        "output 'logits' has 80 NaN among 80 values",
    )


def test_without_the_source_what_can_be_said_is(source: Path) -> None:
    artifact = pipeline.build(
        source, target="cpu", keep=0.6, method="topk", force=True, output="out"
    )
    source.rename("elsewhere.onnx")
    found = verify(artifact)
    assert outcome(found, "numerics")[0] == "skipped"
    assert "--against" in outcome(found, "numerics")[1]
    assert found.fidelity is None
    assert verify(artifact, against="elsewhere.onnx").numerics is not None


def test_another_dense_model_serves_for_fidelity_alone(source: Path) -> None:
    artifact = pipeline.build(
        source, target="cpu", keep=0.6, method="topk", force=True, output="out"
    )
    save_tiny_vit(Path("trained.onnx"), VitSpec(depth=4, image=48), seed=9)
    found = verify(artifact, against="trained.onnx")
    assert outcome(found, "numerics")[0] == "skipped"
    assert found.fidelity is not None
    with pytest.raises(UsageError, match="no such file"):
        verify(artifact, against="nothing.onnx")


def test_keep_everything_is_the_dense_model(source: Path) -> None:
    found = verify(pipeline.build(source, target="cpu", keep=1, output="out"))
    assert found.numerics is not None
    assert found.numerics.token_overlap is None
    assert found.fidelity is not None
    assert found.fidelity.outputs[0].cosine_min > 0.999999


def test_data_is_used(source: Path) -> None:
    artifact = pipeline.build(
        source, target="cpu", keep=0.6, method="topk", force=True, output="out"
    )
    built, plain = load_artifact(artifact).manifest.fidelity, verify(artifact).fidelity
    assert built is not None
    assert plain is not None
    assert built.data == plain.data
    assert (built.kind, built.samples) == ("scenes", 8)
    for one, two in zip(built.outputs, plain.outputs, strict=True):
        assert one.cosine_min == pytest.approx(two.cosine_min, abs=1e-5)
        assert one.error_max == pytest.approx(two.error_max, abs=1e-4)
        assert one.worst == two.worst
    np.save("x.npy", np.random.default_rng(0).standard_normal((5, 3, 48, 48)))
    found = verify(artifact, data="x.npy")
    assert found.fidelity is not None
    assert (found.fidelity.samples, found.fidelity.data) == (5, "5 samples from x.npy")


@pytest.mark.heavy
def test_an_unfused_attention_is_named(source: Path) -> None:
    """A second reader of one layer's softmax takes that layer out of the fused kernel."""
    pytest.importorskip("tensorrt_rtx")
    artifact = pipeline.build(
        source, target="rtx-4090", keep=0.6, method="topk", force=True, output="out"
    )
    assert outcome(verify(artifact), "fused attention")[0] == "passed"
    model = onnx.load(str(artifact / "model.onnx"))
    spelled = [n for n in model.graph.node if n.op_type == "Softmax"]
    # The scores' own softmax has one query row; the attention of block 2 is the last but one.
    victim = spelled[-2]
    shape = [None, None, None, None]
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(victim.output[0], onnx.TensorProto.FLOAT16, shape)
    )
    manifest = load_artifact(artifact).manifest
    onnx.save(model, "other.onnx")

    bad = make_artifact(
        Path("bad"),
        source,
        Path("other.onnx"),
        schedule=manifest.schedule,
        precision="fp16",
        target=manifest.target,
        inputs=manifest.inputs,
        fused_attention=manifest.fused_attention,
        engine=lambda folder: emit(
            folder / "model.onnx", folder, target=load_target("rtx-4090"), precision="fp16"
        ),
    )
    found = verify(bad)
    result, detail = outcome(found, "fused attention")
    assert result == "failed"
    assert victim.name in detail
    assert "1 of 4 attention layers" in detail
    with pytest.raises(VerificationError, match=victim.name):
        found.require()


def test_a_masked_class_is_no_fault(tmp_path: Path) -> None:
    """−Inf and NaN that the source gives too: built, verified, printed."""
    weights = random_weights(VitSpec())
    weights["head.bias"][[2, 5]] = -np.inf, np.nan
    source = tmp_path / "masked.onnx"
    onnx.save(build_vit(VitSpec(), weights), source)
    built = pipeline.build(source, target="jetson-orin", keep=0.5, method="topk")
    found = verify(built)
    assert found.passed
    finite = next(c for c in found.checks if c.name == "finite")
    assert "only where" in finite.detail
    assert found.fidelity is not None
    assert found.fidelity.outputs[0].cosine_min > 0.5
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 32, 32), np.float32))
    (output,) = run(built, tmp_path / "x.npy", top=10).outputs
    assert output.not_finite == 2
    assert [len(row) for row in output.top] == [8]
    json.dumps(output.minimum, allow_nan=False)
