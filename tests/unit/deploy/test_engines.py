"""Engines of artifacts: what is checked before TensorRT sees one, each with its own error."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorrt_rtx

import tcompile
from tcompile.artifact.manifest import TargetEntry
from tcompile.core.errors import MissingExtraError, ModelError, TcompileError, UsageError
from tcompile.core.model_files import file_entry
from tcompile.passes.lower.token_ops import TokenOpsChoice
from tcompile.plugins.check import SYMBOLS, specification_digest
from tcompile.plugins.ops import OPS
from tcompile.targets.backends import tensorrt
from tests.support.artifacts import make_artifact
from tests.support.fake_gpu import FakeCuda, fake_tensorrt
from tests.support.tiny_vit import VitSpec, save_tiny_vit

RTX = TargetEntry("rtx-4090", "tensorrt-rtx", "8.9")
ORIN = TargetEntry("jetson-orin", "jetson", "8.7")
IMAGE = np.zeros((3, 32, 32), np.float32)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    return save_tiny_vit(folder / "m.onnx", VitSpec(depth=1), batch=None)


def bundle(folder: Path, source: Path, target: TargetEntry, name: str, **more: Any) -> Path:
    """An artifact whose engine is one for the stand-in of TensorRT."""

    def engine(draft: Path) -> None:
        (draft / "engine").mkdir()
        shutil.copyfile(source, draft / "engine" / name)

    return make_artifact(folder, source, engine=engine, target=target, **more)


@pytest.fixture
def rtx(tmp_path: Path, source: Path) -> Path:
    versions = {"tensorrt-rtx": "1.7.1.116"}
    return bundle(tmp_path / "rtx", source, RTX, "model.sm89.engine", versions=versions)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeCuda]:
    """Makes this a machine with such a GPU, driver and TensorRT."""

    def made(package: str = "tensorrt_rtx", version: str = "1.7.1.116", **gpu: Any) -> FakeCuda:
        cuda = FakeCuda(**gpu)
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
        monkeypatch.setitem(sys.modules, package, fake_tensorrt(cuda, package, version))
        return cuda

    return made


def test_an_engine_is_loaded_and_run(rtx: Path, machine: Callable[..., FakeCuda]) -> None:
    cuda = machine()
    with tcompile.load(rtx, cuda_graphs=True) as model:
        assert (model.runtime, model.path.name) == ("tensorrt-rtx", "model.sm89.engine")
        found = model(np.stack([IMAGE] * 6)).logits  # it takes four
    want = tcompile.load(rtx, "onnxruntime")(IMAGE).logits
    np.testing.assert_allclose(found, np.repeat(want, 6, axis=0), atol=1e-5)
    assert cuda.live == {}


def test_an_engine_needs_no_model_beside_it(rtx: Path, machine: Callable[..., FakeCuda]) -> None:
    machine()
    (rtx / "model.onnx").unlink()
    assert tcompile.load(rtx)(IMAGE).logits.shape == (1, 10)


def test_a_real_engine_without_a_driver(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT-RTX builds one here; what is said is ours, and the engine is not touched."""
    built = tcompile.build(
        source, target="rtx-4090", method="topk", keep=0.6, output=tmp_path / "rtx"
    )
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", FakeCuda(driver=0))
    monkeypatch.setattr(tensorrt_rtx, "Runtime", None)
    with pytest.raises(UsageError) as caught:
        tcompile.load(built)
    assert caught.value.one_line() == (
        f"{built}: its engine is for a GPU (rtx-4090), and this machine has no NVIDIA driver "
        '(runtime="onnxruntime" runs its model.onnx on the CPU)'
    )
    assert tcompile.load(built, runtime="onnxruntime")(IMAGE).logits.shape == (1, 10)


@pytest.mark.parametrize(
    ("here", "words"),
    [
        ({"version": "1.8.0.1"}, r"built by TensorRT-RTX 1\.7\.1\.116, installed is 1\.8\.0\.1"),
        ({"capability": "8.6"}, r"is for compute capability 8\.9 \(rtx-4090\), this GPU has 8\.6"),
        ({"count": 0}, r"GPU \(rtx-4090\), and this machine has an NVIDIA driver, but no GPU"),
        ({"driver": 11080}, r"the NVIDIA driver is for CUDA 11\.8.*update the driver"),
    ],
)
def test_another_machine_than_it_is_for(
    rtx: Path, machine: Callable[..., FakeCuda], here: dict[str, Any], words: str
) -> None:
    cuda = machine(**here)
    with pytest.raises(UsageError, match=words) as caught:
        tcompile.load(rtx)
    assert 'runtime="onnxruntime" runs' in caught.value.hint
    assert cuda.live == {}
    assert not sys.modules["tensorrt_rtx"].opened


def test_a_build_of_the_same_version_fits(rtx: Path, machine: Callable[..., FakeCuda]) -> None:
    machine(version="1.7.1.200")  # the fourth number does not count
    assert len(tcompile.load(rtx)(IMAGE)) == 1


def test_packages_that_are_missing_are_named(
    rtx: Path, machine: Callable[..., FakeCuda], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()
    for module, extra in (("cuda.bindings.runtime", "cuda"), ("tensorrt_rtx", "rtx")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingExtraError, match=rf"tcompile\[{extra}\].*onnxruntime"):
            tcompile.load(rtx)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "is truncated: 100 of"),
        (lambda path: path.write_bytes(bytes(path.stat().st_size)), "its sha256 is not that"),
        (lambda path: path.unlink(), r"sm89\.engine: is missing"),
    ],
)
def test_an_engine_that_is_not_as_it_was(
    rtx: Path, machine: Callable[..., FakeCuda], damage: Callable[[Path], object], words: str
) -> None:
    machine()
    damage(rtx / "engine" / "model.sm89.engine")
    with pytest.raises(ModelError, match=words):
        tcompile.load(rtx)
    assert not sys.modules["tensorrt_rtx"].opened


def test_an_engine_of_another_model_is_refused(
    tmp_path: Path, source: Path, machine: Callable[..., FakeCuda]
) -> None:
    cuda = machine()
    other = save_tiny_vit(tmp_path / "o.onnx", VitSpec(depth=1, classes=7), batch=None)

    def engine(draft: Path) -> None:
        (draft / "engine").mkdir()
        shutil.copyfile(other, draft / "engine" / "model.sm89.engine")

    built = make_artifact(tmp_path / "a", source, engine=engine, target=RTX)
    with pytest.raises(ModelError, match=r"its outputs are 'logits'.*7.*the manifest says.*10"):
        tcompile.load(built)
    assert cuda.live == {}


def test_a_bundle_is_loaded_with_the_engine_that_the_device_made(
    tmp_path: Path, source: Path, machine: Callable[..., FakeCuda]
) -> None:
    machine("tensorrt", "10.16.2", capability="8.7")
    built = make_artifact(tmp_path / "orin", source, target=ORIN)
    with pytest.raises(ModelError, match=r"no engine for jetson-orin in it \(run `sh build_engine"):
        tcompile.load(built)
    made = built / "engine" / "model.trt10.16.engine"
    made.parent.mkdir()
    shutil.copyfile(source, made)
    assert tcompile.load(built)(IMAGE).logits.shape == (1, 10)
    digest = made.with_name(f"{made.name}.sha256")
    digest.write_text(f"{file_entry(made, built).sha256}  {made.name}\n")
    assert tcompile.load(built).runtime == "tensorrt"
    made.write_bytes(made.read_bytes()[:-9])
    with pytest.raises(ModelError, match="is not what the script of this bundle made"):
        tcompile.load(built)
    made.rename(built / "engine" / "model.trt10.3.engine")
    digest.unlink()
    with pytest.raises(UsageError, match=r"built by TensorRT 10\.3, installed is 10\.16\.2"):
        tcompile.load(built)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A plugin library, as far as can be read without loading it."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    facts = {
        "package": "0", "plugin": "1", "api": "1", "tensorrt": "10.3.0", "cuda": "12.6",
        "architectures": "87-real", "specification": specification_digest(),
    }  # fmt: skip
    text = "".join(f"void {s}(void) {{}}\n" for s in SYMBOLS)
    told = " ".join(f"{k}={v}" for k, v in facts.items())
    text += f'const char tcompile_plugins_version[] = "{told}";\n'
    text += f'const char tcompile_plugins_table[] = "{" ".join(op.name for op in OPS)}";\n'
    (tmp_path / "p.c").write_text(text)
    path = tmp_path / "plugins.so"
    subprocess.run([compiler, "-shared", "-fPIC", tmp_path / "p.c", "-o", path], check=True)
    return path


def test_plugins_are_there_before_an_engine_that_needs_them(
    tmp_path: Path,
    source: Path,
    library: Path,
    machine: Callable[..., FakeCuda],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[str] = []

    def here(version: str = "10.3.0", capability: str = "8.7") -> Any:
        machine("tensorrt", version, capability=capability)
        trt: Any = sys.modules["tensorrt"]
        registry = type("Registry", (), {"load_library": lambda _, path: loaded.append(path) or 1})
        trt.get_plugin_registry = registry
        return trt

    monkeypatch.setattr(tensorrt, "_LOADED", {})
    choice = TokenOpsChoice(form="plugin", reason="asked for")
    target, name = replace(ORIN, compute_capability=None), "model.trt10.3.engine"
    built = bundle(
        tmp_path / "a", source, target, name, token_ops=choice, versions={"tensorrt": "10.3.0"}
    )
    monkeypatch.setenv("TCOMPILE_PLUGINS", str(tmp_path / "none.so"))
    trt = here()
    with pytest.raises(UsageError, match=r"there is no plugin library at .*none\.so"):
        tcompile.load(built)
    monkeypatch.setenv("TCOMPILE_PLUGINS", str(library))
    here(capability="11.0")
    with pytest.raises(UsageError, match="has no code for GPU architecture 110, only 87-real"):
        tcompile.load(built)
    assert loaded == []
    assert trt.opened == []
    trt = here()
    assert tcompile.load(built)(IMAGE).logits.shape == (1, 10)
    assert loaded == [str(library)]
    assert len(trt.opened) == 1
    # The bundle's own comes first.
    own = built / "plugins" / "libtcompile_plugins.so"
    own.parent.mkdir()
    own.write_bytes(b"no library")
    with pytest.raises(TcompileError, match="no plugin library") as caught:
        tcompile.load(built)
    assert caught.value.exit_code == 2


def test_preprocessing_of_an_older_engine_is_in_its_model(
    tmp_path: Path, source: Path, machine: Callable[..., FakeCuda]
) -> None:
    import onnx

    machine()
    model = onnx.load(source)
    record = {"mean": [0.5] * 3, "std": [0.5] * 3, "size": [32, 32], "labels": list("abcdefghij")}
    onnx.helper.set_model_props(model, {"tcompile.preprocess": json.dumps(record)})
    onnx.save(model, tmp_path / "m.onnx")
    built = bundle(tmp_path / "a", tmp_path / "m.onnx", RTX, "model.sm89.engine")
    loaded = tcompile.load(built)
    assert loaded.labels == tuple("abcdefghij")
    (best,) = loaded(np.zeros((40, 40, 3), np.uint8)).top(1)
    assert best[0].label in "abcdefghij"
    (built / "model.onnx").write_bytes(b"another")
    with pytest.raises(ModelError, match=r"model\.onnx: is truncated"):
        tcompile.load(built)


def test_of_several_engines_of_a_jetson_the_one_that_fits_is_opened(
    tmp_path: Path, source: Path, machine: Callable[..., FakeCuda]
) -> None:
    built = bundle(tmp_path / "orin", source, ORIN, "model.trt10.3.engine")
    shutil.copyfile(source, built / "engine" / "model.trt10.16.engine")  # made on the device
    machine("tensorrt", "10.3.0", capability="8.7")
    with tcompile.load(built) as model:
        assert model.path.name == "model.trt10.3.engine"
    machine("tensorrt", "11.4.1", capability="8.7")
    with pytest.raises(UsageError, match=r"was built by TensorRT 10\.16, installed is 11\.4\.1"):
        tcompile.load(built)
