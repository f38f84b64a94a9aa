"""From a model to a C++ program that runs it, as a person would do it, and what that gives is what
Python gives. The program is compiled once; a skip says what is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from PIL import Image

import tcompile
from tcompile.artifact.manifest import TargetEntry
from tcompile.cli import main
from tcompile.models.preprocess import PREPROCESS_KEY
from tests.support.artifacts import make_artifact
from tests.support.tiny_vit import VitSpec, save_tiny_vit

EXAMPLES = Path(__file__).parents[2] / "examples" / "cpp"
#: Of one runtime against another, over the largest value.
TOLERANCE = 2e-4
#: Without stb_image a program reads PPM alone.
KIND = "png" if Path("/usr/include/stb/stb_image.h").is_file() else "ppm"


def _cmake(source: Path, build: Path, *options: str) -> str:
    """Configure and build; returns what CMake said."""
    configure = ["cmake", "-S", source, "-B", build, "-DCMAKE_CXX_FLAGS_RELEASE=-O0"]
    configure.append(f"-DPython3_EXECUTABLE={sys.executable}")
    said = ""
    for command in ([*configure, *options], ["cmake", "--build", build]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        said += done.stdout + done.stderr
        assert done.returncode == 0, said
    return said


def _needs(*programs: str) -> None:
    for name in programs:
        if shutil.which(name) is None:
            pytest.skip(f"there is no {name}")
    headers = [Path(p) / "nlohmann" / "json.hpp" for p in ("/usr/include", "/usr/local/include")]
    if not any(h.is_file() for h in headers):
        pytest.skip("nlohmann's JSON is not installed: apt install nlohmann-json3-dev")


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The project that `init-app` wrote, built, and the runtimes that CMake found."""
    _needs("cmake", "c++")
    folder = tmp_path_factory.mktemp("empty")
    model, built, app = (str(folder / name) for name in ("glyphs.onnx", "glyphs-cpu", "app"))
    choice = ("--target", "cpu", "--method", "topk", "--keep", "0.5", "--force")
    assert main(["export", "zoo:glyphs", "--exporter", "torchscript", "-o", model]) == 0
    assert main(["build", model, *choice, "-o", built]) == 0
    assert main(["init-app", built, "--cpp", "-o", app]) == 0
    said = _cmake(folder / "app", folder / "app" / "build")
    (line,) = (line for line in said.splitlines() if "tcompile_runtime: " in line)
    for number in range(5):  # the last ones of another shape
        pixels = np.random.default_rng(number).integers(256, size=(70, 80 - 9 * number, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.{KIND}")
    return folder, line.rpartition(": ")[2]


def _run(app: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [app / "app" / "build" / "classify", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=app, timeout=60)


def _same(told: Mapping[str, Any], result: tcompile.deploy.result.Result) -> None:
    assert list(told["outputs"]) == sorted(result)
    for name, want in result.items():
        output = told["outputs"][name]
        have = np.asarray(output["values"]).reshape(output["shape"])
        assert (output["dtype"], have.shape) == (str(want.dtype), want.shape), name
        if want.dtype.kind != "f":
            assert np.array_equal(have, want), name
        assert np.abs(have - want).max() <= TOLERANCE * np.abs(want).max(), name


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_program_gives_what_python_gives(app: tuple[Path, str], runtime: str) -> None:
    folder, found = app
    if runtime not in found:
        pytest.skip(f"CMake found {found} alone: ONNXRUNTIME_ROOT names headers and library")
    images = [str(folder / f"{number}.{KIND}") for number in range(5)]
    done = _run(folder, "app/artifact", *images, "--json", "--runtime", runtime)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    with tcompile.load(folder / "app" / "artifact", runtime) as model:
        result = model(images)
        assert result.tokens("patch_logits") is not None
        _same(told, result)
        for image, best in zip(told["images"], result.top(3), strict=True):
            assert [b["label"] for b in image["top"]] == [b.label for b in best]
            shares = [b["probability"] for b in image["top"]]
            np.testing.assert_allclose(shares, [b.probability for b in best], rtol=1e-2)


def test_what_a_person_reads_and_what_is_refused(app: tuple[Path, str], tmp_path: Path) -> None:
    folder, found = app
    done = _run(folder, "app/artifact", f"0.{KIND}", f"4.{KIND}")
    with tcompile.load(folder / "app" / "artifact") as model:
        result = model([folder / f"0.{KIND}", folder / f"4.{KIND}"])
    wanted = [line.strip().split("%  ") for line in done.stdout.splitlines() if "%" in line]
    best = [b for row in result.top(3) for b in row]
    assert [words[1] for words in wanted] == [b.label for b in best]
    if Path("/dev/full").exists():  # a disk without room
        command = [folder / "app" / "build" / "classify", "app/artifact", f"0.{KIND}"]
        for more in ([], ["--json"]):
            with Path("/dev/full").open("w") as full:
                pipe = subprocess.PIPE
                done = subprocess.run([*command, *more], stdout=full, stderr=pipe, cwd=folder)
            assert (done.returncode, done.stderr) == (
                2,
                b"error: standard output: cannot be written\n",
            )
    save_tiny_vit(tmp_path / "m.onnx", VitSpec(depth=1))
    record = _record(tmp_path / "m.onnx", [32, 32])
    foreign = make_artifact(tmp_path / "foreign", tmp_path / "m.onnx", preprocess=record)
    short = shutil.copytree(folder / "app" / "artifact", tmp_path / "short")
    path = short / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    junk = make_artifact(
        tmp_path / "junk",
        tmp_path / "m.onnx",
        engine=lambda written: (written / "model.onnx").write_bytes(b"not a model"),
        preprocess=record,
    )
    contract = make_artifact(
        tmp_path / "contract",
        tmp_path / "m.onnx",
        engine=lambda written: onnx.save(
            onnx.parser.parse_model(SHAPES), str(written / "model.onnx")
        ),
        preprocess=record,
    )
    cases: list[tuple[tuple[object, ...], str]] = [
        *(
            ((junk, f"0.{KIND}", "--runtime", name), "does not accept the model")
            for name in found.split(", ")
        ),
        (
            (contract, f"0.{KIND}"),
            "its inputs are 'image' [2, 3, 8, 8], the manifest says 'image' [1,",
        ),
        ((foreign, f"0.{KIND}"), "has no output 'patch_logits', which this program is written for"),
        ((short, f"0.{KIND}"), "is truncated"),
        (("nowhere", f"0.{KIND}"), "no such directory, there is no manifest.json"),
        (("app/artifact", f"none.{KIND}"), f"none.{KIND}: no such file"),
        (("app/artifact", "app/README.md"), "is not an image"),
        (("app/artifact", f"0.{KIND}", "--runtime", "tensorrt"), "there is no engine for tensorrt"),
        (("app/artifact", f"0.{KIND}", "--odd"), "--odd: is not understood"),
        (("app/artifact", f"0.{KIND}", "--runtime"), "--runtime: needs a value"),
        (("app/artifact", f"0.{KIND}", "--top", "abc"), "--top abc: is not a whole number"),
        (("app/artifact",), "classify ARTIFACT IMAGE"),
    ]
    for arguments, words in cases:
        done = _run(folder, *arguments)
        assert (done.returncode, done.stdout) == (2, ""), (arguments, done)
        *log, told = done.stderr.splitlines()  # OpenVINO writes one of its own
        assert told.startswith("error: ")
        assert words in told
        assert not log or "junk" in str(arguments[0])


#: Batch 2; outputs [B, C], [N, B, C], the batch merged with another axis, and none of it.
SHAPES = """<ir_version: 9, opset_import: ["" : 17]>
shapes (float[2,3,8,8] image)
  => (float[2,3,8] logits, float[8,2,3] patch_logits, float[6,8] merged, float[1] number) {
    logits = ReduceMean <axes = [3], keepdims = 0> (image)
    rows = ReduceMax <axes = [2], keepdims = 0> (image)
    patch_logits = Transpose <perm = [2, 0, 1]> (rows)
    to = Constant <value_ints = [6, 8]> ()
    merged = Reshape (logits, to)
    number = Constant <value_floats = [0.5]> ()
}"""


def _record(model: Path, size: list[int]) -> dict[str, Any]:
    """Say in a file how images are prepared for it."""
    record = {"input": "image", "size": size, "mean": [0.5] * 3, "std": [0.5] * 3}
    loaded = onnx.load(str(model))
    entry = loaded.metadata_props.add()
    entry.key, entry.value = PREPROCESS_KEY, json.dumps(record)
    onnx.save(loaded, str(model))
    return record


def test_batches_are_cut_and_put_together_as_in_python(
    app: tuple[Path, str], tmp_path: Path
) -> None:
    folder, _ = app
    onnx.save(onnx.parser.parse_model(SHAPES), str(tmp_path / "m.onnx"))
    record = _record(tmp_path / "m.onnx", [8, 8])
    built = make_artifact(tmp_path / "shapes", tmp_path / "m.onnx", preprocess=record)
    images = [folder / f"{number}.{KIND}" for number in range(5)]
    done = _run(folder, built, *images, "--json")
    assert done.returncode == 0, done.stderr
    with tcompile.load(built) as model:
        _same(json.loads(done.stdout), model(images))


@pytest.fixture
def tensorrt_root() -> Path:
    _needs("cmake", "c++")
    root = os.environ.get("TENSORRT_ROOT")
    if root is None:
        pytest.skip("TENSORRT_ROOT names no headers of TensorRT")
    return Path(root)


@pytest.mark.parametrize("runtime", ["TENSORRT", "TENSORRT_RTX"])
def test_engines_compile(tensorrt_root: Path, runtime: str, tmp_path: Path) -> None:
    cuda = next(Path("/usr/local").glob("cuda*/include/cuda_runtime_api.h"), None)
    if cuda is None:
        pytest.skip("there is no CUDA toolkit")
    command = ["c++", "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror"]
    command += [f"-DTCOMPILE_WITH_{runtime}", f"-I{EXAMPLES}"]
    command += ["-isystem", str(tensorrt_root / "include"), "-isystem", str(cuda.parent)]
    programs = [EXAMPLES / name / "main.cpp" for name in ("classify", "camera_loop", "gpu_buffers")]
    done = subprocess.run([*command, *programs], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_engine_without_a_driver_ends_with_our_message(
    tensorrt_root: Path, tmp_path: Path
) -> None:
    """Linked with the library of tensorrt-rtx's wheel, against the headers that are given."""
    libraries = pytest.importorskip("tensorrt_rtx_libs").__path__
    if shutil.which("nvidia-smi") is not None:
        pytest.skip("this machine has a driver")

    def engine(folder: Path) -> None:
        (folder / "engine").mkdir()
        (folder / "engine" / "model.engine").write_bytes(b"an engine")

    save_tiny_vit(tmp_path / "m.onnx", VitSpec(depth=1))
    record = _record(tmp_path / "m.onnx", [32, 32])
    built = make_artifact(
        tmp_path / "built",
        tmp_path / "m.onnx",
        engine=engine,
        target=TargetEntry("rtx-4090", "tensorrt-rtx", "8.9"),
        preprocess=record,
    )
    assert main(["init-app", str(built), "--cpp", "-o", str(tmp_path / "app")]) == 0
    library = next(p for folder in libraries for p in Path(folder).glob("libtensorrt_rtx.so.*"))
    options = (f"-DTENSORRT_RTX_ROOT={tensorrt_root}", f"-DTENSORRT_RTX_LIBRARY={library}")
    _cmake(tmp_path / "app", tmp_path / "app" / "build", *options)
    Image.new("RGB", (8, 8)).save(tmp_path / f"0.{KIND}")
    done = _run(tmp_path, "app/artifact", f"0.{KIND}")
    assert done.returncode == 2, done
    assert done.stderr.startswith(
        "error: app/artifact: its engine is for a GPU (rtx-4090), and this machine has no NVIDIA "
        "driver (runtime="
    )
    written = tmp_path / "app" / "artifact"
    (written / "engine" / "model.engine").rename(tmp_path / "kept")
    (written / "engine" / "model.engine").symlink_to(tmp_path / "kept")
    manifest = json.loads((written / "manifest.json").read_text())
    for version, words in (("0.9", "was built by TensorRT-RTX 0.9"), ("", "does not say which")):
        manifest["versions"]["tensorrt-rtx"] = version
        (written / "manifest.json").write_text(json.dumps(manifest))
        assert words in _run(tmp_path, "app/artifact/", f"0.{KIND}").stderr
