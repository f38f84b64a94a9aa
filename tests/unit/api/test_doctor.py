"""`tcompile doctor`: what is missing, too old or broken is a row, never an error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tcompile.api import doctor as module
from tcompile.api.doctor import Finding, doctor
from tcompile.targets.compatibility import LEAN_RUNTIME
from tests.support.command import Command


@pytest.fixture
def tcompile(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_load", lambda name: ("", ""))


def row(name: str) -> Finding:
    return next(f for f in doctor().findings if f.name == name)


@pytest.mark.usefixtures("nothing_is_loaded")
def test_versions_against_what_is_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"onnxruntime": "1.20.1", "scipy": "1.9.3", "pillow": "11.0"}
    monkeypatch.setattr(module, "_version", lambda name: versions.get(name, ""))
    assert row("onnxruntime").state == "ok"
    scipy = row("scipy")
    assert scipy.state == "too old"
    assert scipy.detail == "1.9.3, 1.12 or newer is needed"
    assert scipy.remedy == "pip install 'tcompile[cpu]' --upgrade"
    torch = row("torch")
    assert (torch.state, torch.remedy) == ("missing", "pip install 'tcompile[export]'")


@pytest.mark.usefixtures("nothing_is_loaded")
def test_two_packages_with_one_module(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"onnxruntime": "1.22", "onnxruntime-gpu": "1.22"}
    monkeypatch.setattr(module, "_version", lambda name: versions.get(name, ""))
    found = row("onnxruntime")
    assert found.state == "broken"
    assert "overwrite each other's files" in found.detail
    assert found.remedy.startswith("pip uninstall onnxruntime onnxruntime-gpu")
    del versions["onnxruntime"]
    assert row("onnxruntime").detail == "1.22 (onnxruntime-gpu)"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("raise ImportError('libcudart.so.12: cannot open shared object file')", "libcudart.so.12"),
        ("import os; os.abort()", "ended the process"),
        ("import time; time.sleep(60)", "more than 1 s"),
    ],
)
def test_a_package_that_does_not_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, says: str
) -> None:
    (tmp_path / "brokenpackage.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(module, "_PATIENCE", 1.0)
    assert says in module._load("brokenpackage")[1]


@pytest.mark.usefixtures("nothing_is_loaded")
def test_tools_gpu_and_cache_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CUDACXX", "TENSORRT_ROOT", "TCOMPILE_PLUGINS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TCOMPILE_CACHE", str(tmp_path / "file" / "cache"))
    found = {f.name: f for f in doctor().findings}
    assert found["cmake"].state == "missing"
    assert "pip install cmake" in found["cmake"].remedy
    assert found["plugin library"].remedy == "tcompile plugins build"
    assert found["cache"].state == "broken"
    assert "TCOMPILE_CACHE" in found["cache"].remedy


@pytest.mark.parametrize(
    ("script", "state", "detail"),
    [
        ("echo 'NVIDIA L4, 550.1, 8.9, 23034 MiB'", "ok", "NVIDIA L4, driver 550.1"),
        ("echo 'NVIDIA-SMI has failed'; exit 9", "broken", "NVIDIA-SMI has failed"),
        ("echo odd", "ok", "odd, driver"),
    ],
)
def test_what_the_driver_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, state: str, detail: str
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\n{script}\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (found,) = module._gpu()
    assert found.state == state
    assert detail in found.detail


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.usefixtures("nothing_is_loaded")
def test_engines_of_other_versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_version", lambda name: {"tensorrt": "11.1.0"}.get(name, ""))
    monkeypatch.setenv(LEAN_RUNTIME, str(tmp_path / "lean.so"))
    want = "those of TensorRT 11.1.0; version-compatible ones of 11.x up to 11.1.0 and 10.x"
    assert row("engines").detail == want
    assert row("lean runtime").state == "broken"
    (tmp_path / "lean.so").touch()
    assert row("lean runtime").state == "ok"
    monkeypatch.setattr(module, "_version", lambda name: "")
    assert not [f for f in doctor().findings if f.name == "engines"]


def test_a_check_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def _gpu() -> None:
        raise RuntimeError("odd machine")

    monkeypatch.setattr(module, "_gpu", _gpu)
    assert Finding("tcompile", "gpu", "broken", "RuntimeError: odd machine") in doctor().findings


@pytest.mark.usefixtures("nothing_is_loaded")
def test_the_command(tcompile: Command) -> None:
    shown = tcompile("doctor")
    assert (shown.code, shown.err) == (0, "")
    for word in ("onnxruntime", "cache", "cmake", "pillow"):
        assert word in shown.out
    told = tcompile("doctor", "--json").json()
    assert {"tcompile", "python", "system", "findings"} == set(told)
    assert {"group", "name", "state", "detail", "enables", "remedy"} == set(told["findings"][0])


def test_it_imports_nothing_heavy_and_loads_runtimes_elsewhere() -> None:
    code = (
        "import json, sys\n"
        "from tcompile.api.doctor import doctor\n"
        "found = {f.name: f.state for f in doctor().findings}\n"
        "print(json.dumps([found, [m for m in sys.modules if '.' not in m]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    states, modules = json.loads(done.stdout)
    assert states["onnxruntime"] == "ok"
    assert not {"onnxruntime", "torch", "tensorrt_rtx"} & set(modules)
