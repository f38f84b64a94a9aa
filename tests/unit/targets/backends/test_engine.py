"""Running engines from Python, with CUDA and TensorRT that are none (`tests.support.fake_gpu`)."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import tensorrt_rtx
from cuda.bindings import runtime as real

from tcompile.core.errors import MissingExtraError, ModelError, TcompileError, UsageError
from tcompile.targets.backends.cuda import Gpu
from tcompile.targets.backends.engine import EngineRunner
from tcompile.targets.backends.ort import OrtRunner
from tests.support.fake_gpu import FakeContext, FakeCuda, FakeEngine, fake_tensorrt
from tests.support.tiny_vit import VitSpec, save_tiny_vit


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    return fake


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """A file that the TensorRT here takes for an engine."""
    return save_tiny_vit(tmp_path / "model.engine", VitSpec(depth=1), batch=None)


def images(count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(count).standard_normal((count, 3, 32, 32)).astype(np.float32)


def test_the_stand_ins_have_no_name_that_the_packages_do_not_have() -> None:
    for fake, kind in (
        (FakeEngine, tensorrt_rtx.ICudaEngine),
        (FakeContext, tensorrt_rtx.IExecutionContext),
    ):
        made_up = {"cuda", "session", "largest"}
        names = {name for name in vars(fake) if not name.startswith("_")} - made_up
        assert len(names) > 3
        assert {name for name in names if not hasattr(kind, name)} == set()
    assert hasattr(tensorrt_rtx.Runtime, "deserialize_cuda_engine")
    assert [n for n in vars(FakeCuda) if n.startswith("cuda") and not hasattr(real, n)] == []


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("package", ["tensorrt", "tensorrt_rtx"])
def test_an_engine_gives_what_its_model_gives(
    cuda: FakeCuda, engine: Path, package: str, graphs: bool
) -> None:
    trt = fake_tensorrt(cuda, package)
    runner = EngineRunner(trt, engine, engine.read_bytes(), Gpu(), graphs=graphs)
    assert runner.batches == (1, 4)
    assert [(t.name, t.dtype, t.shape) for t in runner.inputs] == [
        ("image", "float32", ("batch", 3, 32, 32))
    ]
    reference = OrtRunner(engine)
    for count in (1, 1, 1, 4, 2, 2):  # a graph is for one size, and must not outlive it
        feed = {"image": images(count) + len(cuda.calls)}
        want = reference.run(feed)["logits"]
        np.testing.assert_allclose(runner.run(feed)["logits"], want, atol=1e-5)
    own = graphs and package == "tensorrt"
    assert cuda.calls.count("cudaGraphLaunch") == (3 if own else 0)
    if graphs and not own:  # TensorRT-RTX captures itself
        strategy = trt.opened[0].config.cuda_graph_strategy
        assert strategy == tensorrt_rtx.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    assert cuda.live
    runner.close()
    runner.close()
    assert cuda.live == {}
    with pytest.raises(UsageError, match="closed"):
        runner.run({"image": images(1)})


def test_the_gpu_of_the_thread_stays_what_it_is(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda(count=2)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    runner = EngineRunner(fake_tensorrt(cuda), engine, engine.read_bytes(), Gpu(1))
    assert (cuda.device, cuda.used) == (0, {1})
    runner.run({"image": images(1)})
    with pytest.raises(UsageError, match="for batches of 1 to 4"):
        runner.run({"image": images(5)})
    runner.close()
    assert (cuda.device, cuda.used) == (0, {1})


def test_what_an_engine_does_not_take(cuda: FakeCuda, engine: Path) -> None:
    runner = EngineRunner(fake_tensorrt(cuda), engine, engine.read_bytes(), Gpu())
    with pytest.raises(UsageError, match="for batches of 1 to 4"):
        runner.run({"image": images(5)})
    with pytest.raises(UsageError, match="has shape"):
        runner.run({"image": images(1)[:, :, :8]})


def test_a_file_that_tensorrt_refuses_is_one_error(cuda: FakeCuda, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"TensorRT 10\.3\.0 does not load the engine: the magic"):
        EngineRunner(fake_tensorrt(cuda), tmp_path / "no.engine", b"no engine", Gpu())
    assert cuda.live == {}


def test_where_memory_ends_nothing_is_kept(cuda: FakeCuda, engine: Path) -> None:
    cuda.memory = 1000  # the outputs, and not the images
    with pytest.raises(TcompileError, match="cudaMalloc failed: cudaErrorMemoryAllocation"):
        EngineRunner(fake_tensorrt(cuda), engine, engine.read_bytes(), Gpu())
    assert cuda.live == {}


def test_no_gpu_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    for fake, index, words in (
        (FakeCuda(driver=0), 0, "this machine has no NVIDIA driver"),
        (FakeCuda(driver=11040), 0, r"driver is for CUDA 11\.4, cuda-python for 13\.1"),
        (FakeCuda(count=0), 0, "no GPU that this process may use"),
        (FakeCuda(count=2), 2, "there is no GPU 2, only 0 to 1"),
    ):
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
        with pytest.raises(UsageError, match=words):
            Gpu(index)
    assert Gpu(1).compute_capability == "8.9"
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(MissingExtraError, match=r"tcompile\[cuda\]"):
        Gpu()
