"""Memory of the caller's in C++: in OpenVINO, in ONNX Runtime, and on a GPU, with CUDA and TensorRT
that are none (`tests/support/cpp`). What it gives is what the copying call gives, bit for bit; the
program is compiled once."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from tcompile.artifact.manifest import TargetEntry
from tcompile.plugins.check import specification_digest
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


def _refusals(program: Path, built: Path, broken: Path) -> None:
    """Engines, manifests and plugin libraries that are not what they should be: one line each."""
    name = "engine/model.trt10.3.engine"

    def listed(document: dict[str, Any], *, there: bool) -> None:
        files = document["files"]
        document["files"] = [f for f in files if there or f["path"] != name]

    def with_plugins(document: dict[str, Any]) -> None:
        document["token_ops"] = {"form": "plugin"}

    elf = (
        b"\x7fELF" + bytes(14) + bytes([62 if platform.machine() == "x86_64" else 183]) + bytes(99)
    )
    of = f"specification={specification_digest()} plugin=1 api=1"
    facts = "package=tcompile version=0.1 architectures={} tensorrt={} " + of
    unlisted = partial(listed, there=False)
    same = partial(listed, there=True)
    plugins = "plugins/libtcompile_plugins.so"
    cases: list[tuple[Callable[[dict[str, Any]], None], dict[str, bytes | None], str]] = [
        (same, {name: ENGINE.encode()[:-3]}, "model.trt10.3.engine: is truncated: 51 of 54 bytes"),
        (same, {name: ENGINE.encode() + b" "}, "its sha256 is not that in the manifest"),
        (same, {name: None}, "model.trt10.3.engine: is missing"),
        (
            unlisted,
            {name: b"junk"},
            "TensorRT does not load the engine: the magic tag does not mat",
        ),
        (unlisted, {f"{name}.sha256": b"00"}, "is not what the script of this bundle made"),
        (unlisted, {name: ENGINE.replace("3\n", "4\n").encode()}, "its outputs are 'features' ["),
        (
            unlisted,
            {name: None, "engine/model.trt10.16.engine": ENGINE.encode()},
            "the engine was built by TensorRT 10.16, installed is 10.3.0",
        ),
        (
            lambda document: document["target"].update(compute_capability="8.9"),
            {},
            "this GPU has 8.7",
        ),
        (with_plugins, {}, "there is no plugin library at"),
        (with_plugins, {plugins: b"junk" * 40}, "it is not an ELF file"),
        (with_plugins, {plugins: elf}, "it is not a plugin library of tcompile"),
        (
            with_plugins,
            {plugins: elf + facts.format("87-real", "8.6.1").encode() + b"\0"},
            "it was built for TensorRT 8.6.1, not 10.3.0",
        ),
        (
            with_plugins,
            {plugins: elf + facts.format("89-real", "10.3.0").encode() + b"\0"},
            "it has no code for GPU architecture 8.7, only 89-real",
        ),
    ]
    fitting = {plugins: elf + facts.format("87-real", "10.3.0").encode() + b"\0"}
    several = {
        f"engine/model.trt{kind}.engine": b"junk" for kind in ("10.16", "10.3.old", "10.3.0", "10.")
    }
    fine = [(with_plugins, fitting, ""), (unlisted, several, "")]
    for change, files, words in [*cases, *fine]:
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(built, broken)
        document = json.loads((broken / "manifest.json").read_text())
        change(document)
        (broken / "manifest.json").write_text(json.dumps(document))
        for path, content in files.items():
            (broken / path).parent.mkdir(exist_ok=True)
            if content is None:
                (broken / path).unlink()
            else:
                (broken / path).write_bytes(content)
        done = subprocess.run([program, "example", broken], capture_output=True, encoding="utf-8")
        assert (done.returncode, done.stdout == "") == ((2, True) if words else (0, False)), words
        assert words in done.stderr
        assert done.stderr.count("\n") == bool(words)


def test_the_example_on_the_gpu(program: tuple[Path, list[str]], tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(MODEL), str(tmp_path / "m.onnx"))
    jetson = TargetEntry("jetson-orin", "jetson", "8.7")
    built = make_artifact(tmp_path / "built", tmp_path / "m.onnx", engine=_engine, target=jetson)
    _refusals(program[0], built, tmp_path / "broken")
    # What was checked is what TensorRT is given, whatever becomes of the file.
    spoilt = shutil.copytree(built, tmp_path / "spoilt") / "engine" / "model.trt10.3.engine"
    env = {**os.environ, "STAND_IN_SPOILS": str(spoilt)}
    subprocess.check_output([program[0], "example", tmp_path / "spoilt"], env=env)
    assert spoilt.read_text() == "another"
    told = subprocess.check_output([program[0], "example", built, "4"], encoding="utf-8")
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
