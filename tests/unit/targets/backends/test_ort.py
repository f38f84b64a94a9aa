"""The ONNX Runtime backend."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tcompile.core.errors import MissingExtraError, ModelError, UsageError
from tcompile.core.model_files import TensorInfo
from tcompile.targets import load_target
from tcompile.targets.backends import emit
from tcompile.targets.backends.ort import OrtRunner
from tests.unit.passes.lower.blocks import parse, save


@pytest.fixture
def model(tmp_path: Path) -> Path:
    text = """
    <ir_version: 10, opset_import: ["":18]>
    g (float[B,3] x, int64[1] i) => (float[B,3] y, int64[1] j) { y = Neg(x) j = Abs(i) }
    """
    return save(parse(text), tmp_path)


def test_a_model_describes_itself_and_runs(model: Path) -> None:
    runner = OrtRunner(model, threads=1)
    assert runner.inputs == (TensorInfo("x", "float32", ("B", 3)), TensorInfo("i", "int64", (1,)))
    assert [info.name for info in runner.outputs] == ["y", "j"]
    out = runner.run({"x": np.ones((2, 3)), "i": np.array([-4])})
    np.testing.assert_array_equal(out["y"], -np.ones((2, 3), np.float32))
    assert out["j"] == 4


def test_a_scalar_stays_one(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["":18]>
    g (float[2,3] x, int64 i) => (float[M] y) { y = Gather<axis=0>(x, i) }
    """
    out = OrtRunner(save(parse(text), tmp_path)).run({"x": np.eye(2, 3), "i": np.array(1)})
    assert out["y"].tolist() == [0, 1, 0]


def test_a_prepared_run_is_of_its_own_inputs(model: Path) -> None:
    runner = OrtRunner(model, threads=1)
    seen: list[dict[str, np.ndarray]] = []
    session = runner._session

    class Watched:
        """The session, which keeps what each run gave."""

        io_binding = staticmethod(session.io_binding)

        def run_with_iobinding(self, binding: object) -> None:
            session.run_with_iobinding(binding)
            names = [info.name for info in runner.outputs]
            seen.append(dict(zip(names, binding.copy_outputs_to_cpu(), strict=True)))  # type: ignore[attr-defined]

    runner._session = Watched()
    # Cast on the way, so that nothing but the run holds the arrays that are read.
    first = runner.prepared({"x": np.full((2, 3), 2.0), "i": np.array([-4])})
    second = runner.prepared({"x": np.full((1, 3), 5.0), "i": np.array([7])})
    for run in (first, second, first):
        run()
    assert [int(out["j"][0]) for out in seen] == [4, 7, 4]
    for out, (rows, value) in zip(seen, [(2, -2), (1, -5), (2, -2)], strict=True):
        np.testing.assert_array_equal(out["y"], np.full((rows, 3), value, np.float32))


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({"x": np.ones((2, 3))}, "the model has: i, x"),
        ({"x": np.ones((2, 4)), "i": np.zeros(1)}, r"shape \[2, 4\], the model wants \['B', 3\]"),
        ({"x": np.ones(3), "i": np.zeros(1)}, r"shape \[3\]"),
    ],
)
def test_a_wrong_feed_is_one_line(model: Path, feed: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        OrtRunner(model).run(feed)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=message):
        OrtRunner(model).prepared(feed)  # type: ignore[arg-type]


def test_emitting_for_a_cpu_proves_that_the_file_loads(model: Path) -> None:
    emitted = emit(model, model.parent, target=load_target("cpu"), precision="fp32")
    assert emitted.files == ()
    assert set(emitted.versions) == {"onnxruntime"}
    model.write_bytes(b"not a model")
    with pytest.raises(ModelError, match="does not accept"):
        emit(model, model.parent, target=load_target("cpu"), precision="fp32")


def test_fp16_runs_where_the_full_optimiser_crashes(tmp_path: Path) -> None:
    """ONNX Runtime 1.32 ends the process on this graph unless it is told to hold back."""
    text = """
    <ir_version: 10, opset_import: ["":17]>
    g (float[2,4,8] x) => (float[4,2,8] y)
    {
      half = Cast<to=10>(x)
      normal = LayerNormalization(half, one)
      turned = Transpose<perm=[1,0,2]>(normal)
      product = MatMul(turned, weight)
      y = Cast<to=1>(product)
    }
    """
    model = onnx.parser.parse_model(text)
    for name, value in {"one": np.ones(8), "weight": np.eye(8)}.items():
        tensor = onnx.numpy_helper.from_array(value.astype(np.float16), name)
        model.graph.initializer.append(tensor)
    runner = OrtRunner(save(model, tmp_path), threads=1)
    x = np.random.default_rng(0).standard_normal((2, 4, 8)).astype(np.float32)
    first, second = runner.run({"x": x})["y"], runner.run({"x": x})["y"]
    centred = x - x.mean(-1, keepdims=True)
    expected = (centred / centred.std(-1, keepdims=True)).transpose(1, 0, 2)
    np.testing.assert_allclose(first, expected, atol=5e-3)
    np.testing.assert_array_equal(first, second)


def test_without_onnxruntime(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"tcompile\[cpu\]"):
        OrtRunner(model)
