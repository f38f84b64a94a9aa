"""Engines for newer versions and other GPUs: `tcompile.load`, the C++ header and `check.py` of a
bundle accept and refuse the same, before TensorRT sees anything of them."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tcompile
from tcompile.artifact.manifest import TargetEntry
from tcompile.core.errors import ModelError, TcompileError, UsageError
from tcompile.deploy import engines
from tcompile.passes.lower.token_ops import TokenOpsChoice
from tcompile.targets.compatibility import LEAN_RUNTIME
from tcompile.targets.versions import TENSORRT
from tests.support.artifacts import make_artifact
from tests.support.compatibility import CASES, PLUGINS, WITH, WITHOUT, Case
from tests.support.cpp_probe import Probe, compiled_probe
from tests.support.fake_gpu import FakeCuda, fake_tensorrt
from tests.support.tiny_vit import VitSpec, save_tiny_vit

ORIN = TargetEntry("jetson-orin", "jetson", "8.7")
RTX = TargetEntry("rtx-3060", "tensorrt-rtx", "8.6")
IMAGE = np.zeros((3, 32, 32), np.float32)


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Probe:
    return compiled_probe(tmp_path_factory)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    return save_tiny_vit(folder / "m.onnx", VitSpec(depth=1), batch=None)


def made_by(case: Case, folder: Path, source: Path, **more: Any) -> tuple[Path, str]:
    """An artifact with the engine of a case; the engine's name."""
    short = ".".join(case.built.split(".")[:2])
    name = "engine/model.x.engine" if case.rtx else f"engine/model.trt{short}.engine"

    def engine(place: Path) -> None:
        (place / "engine").mkdir()
        shutil.copyfile(source, place / name)

    built = make_artifact(
        folder,
        source,
        engine=(lambda place: None) if case.on_device else engine,
        target=RTX if case.rtx else ORIN,
        compatibility=None if case.made == type(case.made)() else case.made,
        versions={"tensorrt-rtx" if case.rtx else "tensorrt": case.built},
        **more,
    )
    if case.on_device:
        engine(built)
        if case.digest:
            told = hashlib.sha256(source.read_bytes()).hexdigest()
            (built / f"{name}.sha256").write_text(f"{told}  {name}\n")
    return built, name


def machine(monkeypatch: pytest.MonkeyPatch, case: Case) -> Any:
    """Make this the machine of a case; its TensorRT."""
    package = "tensorrt_rtx" if case.rtx else "tensorrt"
    cuda = FakeCuda(capability=case.capability)
    trt: Any = fake_tensorrt(cuda, package, case.installed)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    monkeypatch.setitem(sys.modules, package, trt)
    return trt


def lean_runtime(case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv(LEAN_RUNTIME, raising=False)
    path = folder / "libnvinfer_lean.so.10"
    if case.lean:
        path.write_bytes(b"a library")
        monkeypatch.setenv(LEAN_RUNTIME, str(path))
    return str(path) if case.asks_lean else ""


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_engine_is_run_or_refused(
    case: Case, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, probe: Probe
) -> None:
    built, name = made_by(case, tmp_path / "a", source)
    lean, trt = lean_runtime(case, tmp_path, monkeypatch), machine(monkeypatch, case)
    (answer,) = probe(
        [
            {
                "do": "engine",
                "path": str(built),
                "name": name,
                "title": "TensorRT-RTX" if case.rtx else "TensorRT",
                "package": "tensorrt-rtx" if case.rtx else "tensorrt",
                "installed": case.installed,
                "capability": case.capability,
            }
        ]
    )
    if not case.says:
        with tcompile.load(built) as model:
            assert len(model(IMAGE)) == 1
        assert (trt.allowed, trt.lean) == ([case.made.host_code], [lean] if lean else [])
        assert answer == {"ok": lean}
        return
    with pytest.raises(TcompileError) as caught:
        tcompile.load(built)
    assert case.says in caught.value.one_line()
    assert caught.value.exit_code == answer["code"] == 2
    # The hint apart, which has no parentheses before it but those of a target's name.
    assert answer["error"].rpartition(" (")[0] == caught.value.one_line().rpartition(" (")[0]
    assert (trt.opened, trt.allowed, trt.lean) == ([], [], [])


@pytest.mark.parametrize("case", [c for c in CASES if not c.rtx and c.capability == "8.7"], ids=str)
def test_the_check_of_a_bundle_goes_by_the_same_rules(
    case: Case, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, name = made_by(case, tmp_path / "a", source)
    lean = lean_runtime(case, tmp_path, monkeypatch)
    module = check_program()
    monkeypatch.setattr(module, "BUNDLE", built)
    engine = built / "engine" / f"model.trt{case.built}.engine"
    made = {n: getattr(case.made, n) for n in ("version", "lean_runtime", "plugins")}
    made["across"] = [list(pair) for pair in TENSORRT.compatibility.version.across]
    if engine.name != Path(name).name:  # it goes by the name alone, which has two numbers mostly
        shutil.copyfile(source, engine)
        engine.with_name(f"{engine.name}.sha256").write_text(
            hashlib.sha256(source.read_bytes()).hexdigest()
        )
    if not case.says:
        assert module.check_engine(engine, engine.read_bytes(), case.installed, made) == lean
        return
    with pytest.raises(module.CannotRunError) as caught:
        module.check_engine(engine, engine.read_bytes(), case.installed, made)
    kind = "holds code" if "sha256" in case.says else f"was built by TensorRT {case.built}"
    assert kind in str(caught.value)


def check_program() -> Any:
    path = Path(__file__).parents[3] / "examples" / "device" / "check.py"
    spec = importlib.util.spec_from_file_location("check", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_code_of_an_engine_that_was_altered_is_not_run(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, probe: Probe
) -> None:
    """Listed and made on the device alike; one that lost its digest after that, too."""
    for number, on_device in enumerate((False, True)):
        case = Case(WITH, "10.3" if on_device else "10.3.0", "10.16.2", on_device=on_device)
        built, name = made_by(case, tmp_path / str(number), source)
        trt, job = machine(monkeypatch, case), {"do": "engine", "path": str(built), "name": name}
        job |= {"title": "TensorRT", "package": "tensorrt", "installed": "10.16.2"}
        job |= {"capability": "8.7"}
        (built / name).write_bytes((built / name).read_bytes()[:-1] + b"?")
        with pytest.raises(ModelError, match=r"is not what the script|its sha256 is not that"):
            tcompile.load(built)
        module = check_program()
        monkeypatch.setattr(module, "BUNDLE", built)
        made = {"version": True, "lean_runtime": True, "plugins": False, "across": []}
        with pytest.raises(module.CannotRunError, match="its sha256 is another"):
            module.check_engine(built / name, (built / name).read_bytes(), "10.16.2", made)
        assert "error" in probe([job])[0]
        assert trt.allowed == []


@pytest.mark.parametrize("on_device", [False, True])
def test_what_was_checked_is_what_tensorrt_is_given(
    on_device: bool, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine whose file becomes another behind the checks."""
    case = Case(WITH, "10.3" if on_device else "10.3.0", "10.16.2", on_device=on_device)
    built, name = made_by(case, tmp_path / "a", source)
    trt = machine(monkeypatch, case)

    def exchange(*given: Any) -> None:
        (built / name).write_bytes(b"another file")

    monkeypatch.setattr(engines, "check_capability", exchange)
    with tcompile.load(built) as model:
        assert len(model(IMAGE)) == 1
    assert (built / name).read_bytes() == b"another file"
    assert trt.allowed == [True]


def test_copies_of_engines_that_somebody_keeps_are_let_be(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(WITH, "10.3", "10.3.0", on_device=True)
    built, name = made_by(case, tmp_path / "a", source)
    for copy in ("model.trt10.3.old.engine", "model.trt10.3.0-good.engine", "x.trt10.3.engine"):
        (built / "engine" / copy).write_bytes(b"a copy")
    machine(monkeypatch, case)
    assert tcompile.load(built).path == built / name
    module = check_program()
    monkeypatch.setattr(module, "BUNDLE", built)
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.3.0"))
    made = {"version": False, "across": []}
    assert module.newest_engine(made) == built / name
    (built / name).unlink()
    with pytest.raises(ModelError, match="there is no engine for jetson-orin in it"):
        tcompile.load(built)
    with pytest.raises(module.CannotRunError, match="no engine for this TensorRT; there is model"):
        module.newest_engine(made)


def test_a_lean_runtime_that_tensorrt_does_not_load(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(WITHOUT, "10.3.0", "10.16.2")
    built, _ = made_by(case, tmp_path / "a", source)
    trt = machine(monkeypatch, case)
    (tmp_path / "empty.so").touch()
    monkeypatch.setenv(LEAN_RUNTIME, str(tmp_path / "empty.so"))
    with pytest.raises(UsageError, match=r"empty\.so: TensorRT 10\.16\.2 does not load the lean"):
        tcompile.load(built)
    assert trt.opened == []


@pytest.mark.parametrize("made", [PLUGINS, None])
def test_plugins_that_an_engine_holds_are_not_loaded_again(
    made: Any, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(made or type(PLUGINS)(), "10.3.0", "10.3.0")
    choice = TokenOpsChoice(form="plugin", reason="asked for")
    built, _ = made_by(case, tmp_path / "a", source, token_ops=choice)
    machine(monkeypatch, case)
    monkeypatch.setenv("TCOMPILE_PLUGINS", str(tmp_path / "none.so"))
    if made is not None:
        assert len(tcompile.load(built)(IMAGE)) == 1
        return
    with pytest.raises(UsageError, match="there is no plugin library"):
        tcompile.load(built)


def test_the_rule_that_the_header_repeats_is_the_data() -> None:
    header = Path(__file__).parents[3] / "examples" / "cpp" / "tcompile_runtime.hpp"
    pairs = ", ".join(f"{{{a}, {b}}}" for a, b in TENSORRT.compatibility.version.across)
    text = header.read_text(encoding="utf-8")
    assert f"across_major_versions[] = {{{pairs}}};" in text
    assert f'getenv("{LEAN_RUNTIME}")' in text
