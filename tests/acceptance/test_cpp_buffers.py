"""Memory of the caller's in C++: in OpenVINO, in ONNX Runtime, and on a GPU, with CUDA and TensorRT
that are none (`tests/support/cpp`). What it gives is what the copying call gives, bit for bit; the
program is compiled once."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from tcompile.artifact.manifest import TargetEntry
from tests.support.artifacts import make_artifact

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests" / "support" / "cpp" / "buffers.cpp"
MODEL = """<ir_version: 9, opset_import: ["" : 17]>
sums (float[batch,3,8,8] image) => (float[batch,3] logits, float[batch,8,3] features) {
    logits = ReduceMean <axes = [2, 3], keepdims = 0> (image)
    rows = ReduceMax <axes = [3], keepdims = 0> (image)
    features = Transpose <perm = [0, 2, 1]> (rows)
}"""
#: As `tests/support/cpp/NvInferRuntime.h` reads it.
ENGINE = "in image -1 3 8 8\nout logits -1 3\nout features -1 8 3\n"
COMPILE = ["c++", "-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'examples' / 'cpp'}"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The program, and what it runs."""
    if shutil.which("c++") is None or not Path("/usr/include/nlohmann/json.hpp").is_file():
        pytest.skip("there is no C++ compiler, or nlohmann's JSON is not installed")
    path = tmp_path_factory.mktemp("program") / "buffers"
    command = [*COMPILE, "-O0", "-DSTAND_IN", "-DTCOMPILE_WITH_TENSORRT"]
    command += ["-isystem", str(PROGRAM.parent), str(PROGRAM), "-o", str(path)]
    found = ["tensorrt"]
    spec = find_spec("openvino")
    for folder in () if spec is None else spec.submodule_search_locations or ():
        (library,) = Path(folder).glob("libs/libopenvino.so.*")
        command += ["-DTCOMPILE_WITH_OPENVINO", "-isystem", f"{folder}/include", str(library)]
        command += [f"-Wl,-rpath,{library.parent}"]
        found.append("openvino")
    if root := os.environ.get("ONNXRUNTIME_ROOT"):
        command += ["-DTCOMPILE_WITH_ONNXRUNTIME", "-isystem", f"{root}/include"]
        command += [f"-L{root}/lib", "-lonnxruntime", f"-Wl,-rpath,{root}/lib"]
        found.append("onnxruntime")
    done = subprocess.run([*command, "-lpthread"], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return path, found


def _engine(folder: Path) -> None:
    (folder / "engine").mkdir()
    (folder / "engine" / "model.trt10.3.engine").write_text(ENGINE)


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime", "tensorrt"])
def test_memory_of_the_callers(
    program: tuple[Path, list[str]], runtime: str, tmp_path: Path
) -> None:
    path, found = program
    if runtime not in found:
        pytest.skip(f"the program was built with {found}: ONNXRUNTIME_ROOT names headers, library")
    onnx.save(onnx.parser.parse_model(MODEL), str(tmp_path / "m.onnx"))
    if runtime == "tensorrt":
        jetson = TargetEntry("jetson-orin", "jetson", "8.7")
        built = make_artifact(
            tmp_path / "built", tmp_path / "m.onnx", engine=_engine, target=jetson
        )
    else:
        built = make_artifact(tmp_path / "built", tmp_path / "m.onnx")
    kind = "gpu" if runtime == "tensorrt" else "cpu"
    done = subprocess.run(
        [path, kind, built, runtime], capture_output=True, encoding="utf-8", timeout=120
    )
    wrong = [line for line in done.stdout.splitlines() if not line.startswith("ok ")]
    assert (done.returncode, wrong, done.stderr) == (0, [], "")
    assert len(done.stdout.splitlines()) > (200 if kind == "gpu" else 80)


def test_the_example_on_the_gpu(program: tuple[Path, list[str]], tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(MODEL), str(tmp_path / "m.onnx"))
    jetson = TargetEntry("jetson-orin", "jetson", "8.7")
    built = make_artifact(tmp_path / "built", tmp_path / "m.onnx", engine=_engine, target=jetson)
    source = ROOT / "examples" / "cpp" / "gpu_buffers" / "main.cpp"
    command = [*COMPILE, "-O0", "-DTCOMPILE_WITH_TENSORRT", "-isystem", str(PROGRAM.parent)]
    command += [str(source), "-o", str(tmp_path / "example"), "-lpthread"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    told = subprocess.check_output([tmp_path / "example", built, "4"], encoding="utf-8")
    ramp = np.arange(192) % 255 / np.float32(127) - 1
    want = [f"{ramp @ ((np.arange(192) + j) % 5 - 2):.3g}" for j in range(3)]
    shown = told.splitlines()[1].split(": ")
    assert shown[0] == "logits [1, 3]"
    assert [f"{float(word):.3g}" for word in shown[1].split()] == want


def test_it_compiles_against_the_headers_of_tensorrt() -> None:
    cuda = next(Path("/usr/local").glob("cuda*/include/cuda_runtime_api.h"), None)
    root = os.environ.get("TENSORRT_ROOT")
    if root is None or cuda is None:
        pytest.skip("TENSORRT_ROOT names no headers of TensorRT, or there is no CUDA toolkit")
    for kind in ("TENSORRT", "TENSORRT_RTX"):
        command = [*COMPILE, "-fsyntax-only", f"-DTCOMPILE_WITH_{kind}"]
        command += ["-isystem", f"{root}/include", "-isystem", str(cuda.parent), str(PROGRAM)]
        done = subprocess.run(command, capture_output=True, encoding="utf-8")
        assert done.returncode == 0, done.stderr
