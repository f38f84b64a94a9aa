"""`check.sh` of a Jetson bundle: run here, in ONNX Runtime, and with a TensorRT and CUDA that are
none (`tests/support/device`)."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import tcompile
from tcompile.verify.numerics import TOLERANCES, compare_numerics
from tests.support.tiny_vit import VitSpec, save_tiny_vit

ROOT = Path(__file__).parents[3]
DEVICE = ROOT / "tests" / "support" / "device"
SPEC = VitSpec(image=32, patch=8, width=32, heads=2, depth=2, pool="none")


def built(folder: Path, batch: int | None = None, spec: VitSpec = SPEC, **options: Any) -> Path:
    return tcompile.build(
        save_tiny_vit(folder / "vit.onnx", spec, batch=batch),
        target="jetson-orin",
        output=folder / "out",
        **{"method": "tome:r=3", **options},
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("bundle"))


def check(bundle: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(bundle / "check.sh"), *arguments],
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **env},
        cwd="/",
        capture_output=True,
        text=True,
    )


def altered(model: Path, by: float) -> None:
    """Scale one weight matrix of the first block's MLP."""
    proto = onnx.load(str(model))
    largest = max(
        (t for t in proto.graph.initializer if len(t.dims) == 2),
        key=lambda t: t.dims[0] * t.dims[1],
    )
    array = numpy_helper.to_array(largest)
    largest.CopyFrom(numpy_helper.from_array((array * by).astype(array.dtype), largest.name))
    onnx.save(proto, str(model))


def test_the_model_gives_what_it_should(bundle: Path) -> None:
    done = check(bundle, "--onnx")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert done.stderr == ""
    assert "in ONNX Runtime" in lines[0]
    options = program().Onnx(bundle / "model.onnx").session.get_session_options()
    assert "BASIC" in str(options.graph_optimization_level)  # in fp16: see OrtRunner
    assert not options.enable_mem_pattern
    assert {line.split(":")[0] for line in lines[1:]} == {
        "ok   token_index",
        "ok   token_owner",
        "ok   tokens",
    }
    assert sum(p.stat().st_size for p in (bundle / "checks").iterdir()) < 200_000
    # One set of scenes, for polygraphy.sh too, which in fp16 takes the first.
    assert [name for name in np.load(bundle / "checks" / "data.npz") if "/in/" in name] == []
    scenes = np.load(bundle / "checks" / "scenes.npz")
    assert list(scenes) == ["0|float32|image", "1|float32|image"]
    loader = runpy.run_path(str(bundle / "checks" / "polygraphy_data.py"))
    (given,) = loader["load_scenes"]()
    assert np.array_equal(given["image"], scenes["0|float32|image"].astype(np.float32))


@pytest.mark.parametrize(
    ("batch", "pool", "precision"),
    [(None, "none", "fp16"), (1, "cls", "fp32"), (4, "none", "int8")],
)
def test_altered_weights_are_seen(
    tmp_path: Path, batch: int | None, pool: Any, precision: str
) -> None:
    """A model that is right passes, and the mutant does not: of fixed and free batches, with tokens
    as outputs and without, in precisions that are compared by error and by direction."""
    spec = VitSpec(image=32, patch=8, width=32, heads=2, depth=2, pool=pool)
    out = built(tmp_path, batch, spec, precision=precision)
    assert check(out, "--onnx").returncode == 0
    altered(out / "model.onnx", -3.0)
    done = check(out, "--onnx")
    assert done.returncode == 1, done.stdout
    assert "FAIL" in done.stdout


def test_restored_outputs_and_other_forms(tmp_path: Path) -> None:
    out = built(tmp_path, outputs="restored", min_batch=3, max_batch=4)
    done = check(out, "--onnx")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "directions are compared alone" in done.stdout
    scenes = np.load(out / "checks" / "scenes.npz")
    assert [(name, scenes[name].shape) for name in scenes] == [("0|float32|image", (3, 3, 32, 32))]


def test_what_is_missing_is_said(bundle: Path, tmp_path: Path) -> None:
    done = check(bundle)
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no engine")
    assert "build_engine.sh" in done.stderr
    engine = tmp_path / "a.engine"
    engine.touch()
    done = check(bundle, str(engine))
    assert done.returncode == 2
    assert "TensorRT's Python package cannot be imported" in done.stderr
    done = check(bundle, "nowhere.engine")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    done = check(bundle, "--onnx", str(engine))
    assert done.returncode == 2
    assert "ONNX Runtime does not run" in done.stderr
    done = check(bundle, PYTHON="no-such-python")
    assert (done.returncode, done.stderr) == (2, "no no-such-python found: set PYTHON\n")


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a machine with TensorRT and CUDA."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("device")
    library = folder / "libcudart.so"
    command = [compiler, "-shared", "-fPIC", "-o", str(library), str(DEVICE / "cudart.c")]
    subprocess.run(command, check=True)
    return {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(DEVICE)}


def test_an_engine_is_run(bundle: Path, tmp_path: Path, device: dict[str, str]) -> None:
    """All of it on a stand-in of the device: the right engine, one of another version, an altered
    one, one that is damaged, and plugins that do not load."""
    made = tmp_path / "made"
    shutil.copytree(bundle, made)
    engine = made / "engine" / "model.trt10.3.engine"
    engine.parent.mkdir()
    shutil.copyfile(made / "model.onnx", engine)
    done = check(made, **device)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "model.trt10.3.engine in TensorRT 10.3.0" in done.stdout
    assert done.stdout.count("ok   ") == 3
    done = check(made, **device, FAKE_TENSORRT="10.16.2.10")
    assert done.returncode == 2
    assert "there is model.trt10.3.engine" in done.stderr
    digest = engine.with_name(f"{engine.name}.sha256")
    digest.write_text(f"{hashlib.sha256(engine.read_bytes()).hexdigest()}  {engine.name}\n")
    assert check(made, **device).returncode == 0
    altered(engine, -3.0)
    done = check(made, **device)
    assert (done.returncode, "its sha256 is another" in done.stderr) == (2, True)
    digest.unlink()
    assert check(made, **device).returncode == 1
    engine.write_bytes(b"damaged")
    done = check(made, **device)
    assert done.returncode == 2
    assert "TensorRT 10.3.0 does not load" in done.stderr
    (made / "plugins").mkdir()
    (made / "plugins" / "libtcompile_plugins.so").touch()
    done = check(made, **device, FAKE_TENSORRT_REFUSES="1")
    assert "does not load the plugins" in done.stderr


@pytest.mark.parametrize("without", [False, True])
def test_a_version_compatible_engine_is_run_by_a_newer_tensorrt(
    without: bool, tmp_path: Path, device: dict[str, str]
) -> None:
    """Of a build, on the stand-in of the device: its code runs where its sha256 is known, and by
    the lean runtime that is named where it holds none."""
    made = built(tmp_path, version_compatible=True, exclude_lean_runtime=without)
    engine = made / "engine" / "model.trt10.3.engine"
    engine.parent.mkdir()
    shutil.copyfile(made / "model.onnx", engine)
    code = {} if without else {"FAKE_TENSORRT_CODE": "1"}
    newer = {**device, **code, "FAKE_TENSORRT": "10.16.2.10"}
    done = check(made, **newer)
    assert done.returncode == 2
    if without:
        assert "TCOMPILE_LEAN_RUNTIME names libnvinfer_lean.so of 10.3" in done.stderr
        assert check(made, **device).returncode == 0  # the TensorRT that built it needs none
        library = tmp_path / "libnvinfer_lean.so.10"
        library.touch()
        newer["TCOMPILE_LEAN_RUNTIME"] = str(library)
        refused = check(made, **newer, FAKE_TENSORRT_REFUSES="1")
        assert f"does not load the lean runtime {library}" in refused.stderr
    else:
        assert "there is no sha256 of it" in done.stderr
        told = f"{hashlib.sha256(engine.read_bytes()).hexdigest()}  {engine.name}\n"
        engine.with_name(f"{engine.name}.sha256").write_text(told)
    done = check(made, **newer)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "model.trt10.3.engine in TensorRT 10.16.2.10" in done.stdout
    assert ("lean runtime libnvinfer_lean.so.10" in done.stdout) == without
    done = check(made, **{**newer, "FAKE_TENSORRT": "10.0.1"})
    assert (done.returncode, "there is no engine for this TensorRT" in done.stderr) == (2, True)
    done = check(made, str(engine), **{**newer, "FAKE_TENSORRT": "10.0.1"})
    assert (done.returncode, "was built by TensorRT 10.3" in done.stderr) == (2, True)


def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check", ROOT / "examples/device/check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_judges_as_verify_does(bundle: Path) -> None:
    """The same outputs and the same bounds: the same verdict, on both sides of them."""
    plan = json.loads((bundle / "checks" / "check.json").read_text())
    known = TOLERANCES["fp16"]
    own = {k: v for k, v in plan["tolerance"].items() if k != "flipped_cosine"}
    assert own == {k: getattr(known, k) for k in own}
    module, rng, verdicts = program(), np.random.default_rng(0), []
    for trial in range(24):
        index = np.sort(np.stack([rng.permutation(40)[:30] for _ in range(2)]), axis=1)
        owner = rng.integers(0, 30, (2, 40))
        want = {
            "tokens": rng.standard_normal((2, 30, 8)).astype(np.float32),
            "token_index": index,
            "token_owner": owner,
            "token_size": np.ones((2, 30), np.float32),
        }
        noise = 10 ** rng.uniform(-4, -0.5)
        have = dict(want)
        have["tokens"] = want["tokens"] + noise * rng.standard_normal((2, 30, 8)).astype(np.float32)
        if trial % 3:
            have["token_index"] = index.copy()
            have["token_index"][0, : trial % 5] += 100
        if trial % 4 == 0:
            have["token_owner"] = rng.permutation(30)[owner]  # other numbers, the same groups
        if trial % 7 == 0:
            have["tokens"] = np.where(have["tokens"] > 2, np.nan, have["tokens"])
        theirs = compare_numerics(want, have, known).passed
        ours = all(near for _, _, near in module.compare(want, have, plan))
        assert ours == theirs, trial
        verdicts.append(ours)
    assert 4 < sum(verdicts) < 20


def test_bfloat16_is_rounded_to_the_nearest() -> None:
    import ml_dtypes

    module = program()
    array = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    bits = module._as(array, "uint16")
    expected = array.astype(ml_dtypes.bfloat16)
    assert (bits == expected.view(np.uint16)).all()
    assert (module._float(bits) == expected.astype(np.float32)).all()
