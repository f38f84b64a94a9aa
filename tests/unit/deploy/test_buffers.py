"""Memory of the caller's: from objects to buffers, what is refused of them, and runs in them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from cuda.bindings import runtime as real

import tcompile
from tcompile.artifact.manifest import TargetEntry
from tcompile.core.errors import UsageError
from tcompile.deploy.buffers import buffers_of
from tests.support.artifacts import make_artifact
from tests.support.fake_gpu import FakeCuda, fake_tensorrt

MODEL = """<ir_version: 9, opset_import: ["" : 17]>
sums (float[batch,3,8,8] image) => (float[batch,3] logits, float[batch,8,3] features) {
    logits = ReduceMean <axes = [2, 3], keepdims = 0> (image)
    rows = ReduceMax <axes = [3], keepdims = 0> (image)
    features = Transpose <perm = [0, 2, 1]> (rows)
}"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    onnx.save(onnx.parser.parse_model(MODEL), str(tmp_path / "m.onnx"))
    return tmp_path / "m.onnx"


def images(count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_in_memory_of_the_cpu_it_gives_what_a_call_gives(
    source: Path, tmp_path: Path, runtime: str
) -> None:
    built = make_artifact(tmp_path / "built", source)
    with tcompile.load(built, runtime) as model:
        for count in (1, 3, 1):
            given, want = images(count), model(images(count))
            logits = np.full(model.shape_of("logits", count), 9, np.float32)
            features = torch.full(model.shape_of("features", count), 9.0)
            model.run_buffers({"image": given}, {"logits": logits, "features": features})
            assert np.array_equal(logits, want["logits"])
            assert np.array_equal(features.numpy(), want["features"])
            alone = np.empty_like(features.numpy())
            model.run_buffers({"image": torch.tensor(images(count, 1))}, {"features": alone})
            assert np.array_equal(alone, model(images(count, 1))["features"])
            assert np.array_equal(logits, want["logits"])  # what is not wanted is not written
    with pytest.raises(UsageError, match="the model is closed"):
        model.run_buffers({"image": given}, {"logits": logits})


class OnGpu:
    """An array in memory of the GPU that is none, as CuPy and numba show theirs."""

    def __init__(self, cuda: FakeCuda, array: np.ndarray[Any, Any], **more: Any) -> None:
        _, self.address = cuda.cudaMalloc(array.nbytes)
        self.array = cuda.live[self.address].view(array.dtype).reshape(array.shape)  # type: ignore[index]
        self.array[...] = array
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (self.address, False),
            "version": 3,
            **more,
        }


@pytest.fixture
def engine(source: Path, tmp_path: Path) -> Path:
    def written(draft: Path) -> None:
        (draft / "engine").mkdir()
        (draft / "engine" / "model.trt10.3.engine").write_bytes(source.read_bytes())

    orin = TargetEntry("jetson-orin", "jetson", "8.7")
    return make_artifact(tmp_path / "orin", source, engine=written, target=orin)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda("8.7")
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(fake))
    return fake


def test_on_a_gpu_nothing_is_copied_and_the_callers_stream_is_used(
    engine: Path, cuda: FakeCuda
) -> None:
    with tcompile.load(engine) as model:
        for count in (1, 2, 1):
            want = model(images(count))
            given, logits = OnGpu(cuda, images(count)), OnGpu(cuda, want["logits"] * 0)
            _, stream = cuda.cudaStreamCreateWithFlags(0)
            cuda.calls.clear()
            model.run_buffers({"image": given}, {"logits": logits}, stream=stream)
            assert cuda.calls == ["cudaStreamWaitEvent", "cudaEventRecord"]
            assert np.array_equal(logits.array, want["logits"])
            host = np.zeros_like(want["features"])  # of the CPU's memory both ways
            cuda.calls.clear()
            model.run_buffers({"image": given}, {"features": host})
            assert cuda.calls[0] == f"cudaStreamSynchronize {real.cudaStreamLegacy}"
            assert cuda.calls.count("cudaMemcpyAsync") == 1
            assert cuda.calls[-1].startswith("cudaStreamSynchronize")
            assert np.array_equal(host, want["features"])
            for address in (given.address, logits.address, stream):
                cuda.cudaFree(address)
    assert cuda.live == {}


def test_a_graph_is_of_addresses_too(engine: Path, cuda: FakeCuda) -> None:
    with tcompile.load(engine, cuda_graphs=True) as model:
        given = OnGpu(cuda, images(1))
        ends = [OnGpu(cuda, np.zeros((1, 3), np.float32)) for _ in range(2)]
        counts = []
        for which in (0, 0, 0, 1, 0, 1, 1):
            ends[which].array[...] = 0
            model.run_buffers({"image": given}, {"logits": ends[which]})
            np.testing.assert_allclose(ends[which].array, images(1).mean((2, 3)), rtol=1e-5)
            counts.append(cuda.calls.count("cudaGraphLaunch"))
        assert counts == [0, 1, 2, 2, 2, 2, 3]  # of what comes twice in succession
        # A stream that is being captured is let be: the run is part of the caller's graph.
        ends[0].array[...] = 0
        _, stream = cuda.cudaStreamCreateWithFlags(0)
        model.run_buffers({"image": given}, {"logits": ends[0]}, stream=stream)
        ends[0].array[...] = 0
        cuda.calls.clear()
        cuda.cudaStreamBeginCapture(stream, None)
        model.run_buffers({"image": given}, {"logits": ends[0]}, stream=stream)
        _, graph = cuda.cudaStreamEndCapture(stream)
        assert (cuda.calls, ends[0].array.any()) == ([], False)
        _, made = cuda.cudaGraphInstantiate(graph, 0)
        cuda.cudaGraphLaunch(made, stream)
        np.testing.assert_allclose(ends[0].array, images(1).mean((2, 3)), rtol=1e-5)


def test_what_does_not_fit_is_refused_before_anything_runs(engine: Path, cuda: FakeCuda) -> None:
    with tcompile.load(engine) as model:
        image, logits = images(1), np.zeros((1, 3), np.float32)
        tight = np.zeros(200, np.float32)
        over = tight[:192].reshape(1, 3, 8, 8), tight[100:103].reshape(1, 3)
        readonly = np.zeros((1, 3), np.float32)
        readonly.flags.writeable = False
        pair = OnGpu(cuda, images(2))
        row = OnGpu(cuda, image)
        row.__cuda_array_interface__["data"] = (pair.address + 4, False)
        nowhere = OnGpu(cuda, image, data=(image.ctypes.data, False))
        late = OnGpu(cuda, image, stream=77)
        cuda.calls.clear()
        for inputs, outputs, words in (
            (
                {"picture": image},
                {"logits": logits},
                "inputs: has 'picture'; the model takes image",
            ),
            ({}, {"logits": logits}, "inputs: has no 'image'"),
            ({"image": image}, {}, "outputs: none is wanted; the model gives logits, features"),
            ({"image": image}, {"probs": logits}, "outputs: has 'probs'; the model gives"),
            (
                {"image": image.astype(np.float16)},
                {"logits": logits},
                "input 'image' is float16 [1, 3, 8, 8], the model wants float32 [1, 3, 8, 8]",
            ),
            ({"image": images(2)}, {"logits": logits}, "[1, 3], the model gives float32 [2, 3]"),
            ({"image": images(5)}, {"logits": np.zeros((5, 3), np.float32)}, "batches of 1 to 4"),
            ({"image": over[0]}, {"logits": over[1]}, "output 'logits': lies over input 'image'"),
            ({"image": image}, {"logits": readonly}, "output 'logits': cannot be written to"),
            (
                {"image": images(1).transpose(0, 1, 3, 2)},
                {"logits": logits},
                "input 'image': has gaps between its rows, or another order than rows",
            ),
            ({"image": [1]}, {"logits": logits}, "input 'image': list is not understood"),
            (
                {"image": image.astype(">f4")},
                {"logits": logits},
                "input 'image': is >f4, in another byte order than this machine's",
            ),
            (
                {"image": np.zeros(769, np.uint8)[1:].view(np.float32).reshape(1, 3, 8, 8)},
                {"logits": logits},
                "input 'image': lies at an address that is not a multiple of 4",
            ),
            (
                {"image": torch.zeros(1, 3, 8, 8, requires_grad=True)},
                {"logits": logits},
                "input 'image': Tensor gives no buffer",
            ),
            ({"image": row}, {"logits": logits}, "not a multiple of 256, as TensorRT wants it"),
            ({"image": nowhere}, {"logits": logits}, "said to be in the memory of a GPU, and is n"),
            ({"image": late}, {"logits": logits}, "is made on stream 77, the run is put into 0"),
        ):
            with pytest.raises(UsageError) as caught:
                model.run_buffers(inputs, outputs)
            assert words in caught.value.one_line()
        with pytest.raises(UsageError, match=r"stream: is Stream, not the address of a cudaStr"):
            model.run_buffers({"image": image}, {"logits": logits}, stream=Stream())
        cuda.home = 1
        with pytest.raises(UsageError, match="is in the memory of GPU 1, the engine runs on GPU 0"):
            model.run_buffers({"image": OnGpu(cuda, image)}, {"logits": logits})
        with pytest.raises(UsageError, match="shape_of: there is no 'probs'"):
            model.shape_of("probs")
        assert not any(call.startswith(("cudaEvent", "cudaMemcpy")) for call in cuda.calls)
    with (
        tcompile.load(engine, "onnxruntime") as model,
        pytest.raises(UsageError, match="is in the memory of a GPU, and ONNX Runtime runs on the"),
    ):
        model.run_buffers({"image": pair}, {"logits": np.zeros((2, 3), np.float32)})


def test_objects_are_asked_on_the_gpu_of_the_engine(
    engine: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch shows no tensors of another GPU than the thread's."""
    cuda.count, asked = 2, []
    monkeypatch.setattr(
        "tcompile.deploy.load.buffers_of", lambda *_, on_cpu: (asked.append(cuda.device), {})[1]
    )
    with tcompile.load(engine, device=1) as model:
        with pytest.raises(UsageError, match="inputs: has no 'image'"):
            model.run_buffers({}, {})
        assert (asked, cuda.device) == ([1, 1], 0)


class Stream:
    """As PyTorch's and CuPy's, an object."""

    cuda_stream = 4096


class Exported:
    """What PyTorch shows of a tensor on the CPU, said to be on a GPU."""

    def __init__(self, tensor: torch.Tensor, kind: int = 2) -> None:
        self.tensor, self.kind = tensor, kind
        self.streams: list[int | None] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, 0

    def __dlpack__(self, stream: int | None = None) -> Any:
        self.streams.append(stream)
        if self.kind == 3:  # as PyTorch does of pinned tensors, whose device is the CPU
            return self.tensor.__dlpack__(stream=stream)
        return self.tensor.__dlpack__()


def test_dlpack_is_read_as_numpy_reads_it() -> None:
    for kind in (torch.float32, torch.float16, torch.int64, torch.uint8, torch.bool):
        tensor = torch.arange(24).reshape(2, 3, 4).to(kind)[1:]
        (found,) = buffers_of("input", {"x": tensor}, 0).values()
        array = tensor.numpy()
        assert (found.address, found.dtype) == (array.ctypes.data, array.dtype.name)
        assert (found.shape, found.size, found.on_gpu) == ((1, 3, 4), array.nbytes, False)
    exported = Exported(torch.zeros(2, 2, dtype=torch.bfloat16))
    (found,) = buffers_of("input", {"x": exported}, 7).values()
    assert (found.dtype, found.size, found.on_gpu) == ("bfloat16", 8, True)
    buffers_of("input", {"x": exported}, 0)
    assert exported.streams == [7, 1]  # it waits on the stream of the run, or on the default one
    pinned = Exported(torch.zeros(2, 2), kind=3)
    (found_pinned,) = buffers_of("output", {"x": pinned}, 7).values()
    assert (pinned.streams, found_pinned.on_gpu) == ([None], True)
    (found_pinned,) = buffers_of("output", {"x": pinned}, 0, on_cpu=True).values()
    assert not found_pinned.on_gpu
    (same,) = buffers_of("input", {"x": np.zeros((2, 2), ml_dtypes.bfloat16)}, 0).values()
    assert (same.dtype, same.size) == (found.dtype, found.size)
    with pytest.raises(UsageError, match=r"has gaps between its rows"):
        buffers_of("input", {"x": torch.zeros(4, 4)[:, :2]}, 0)
    with pytest.raises(UsageError, match="DLPack's type 5, 64 bits"):
        buffers_of("input", {"x": torch.zeros(2, dtype=torch.complex64)}, 0)
