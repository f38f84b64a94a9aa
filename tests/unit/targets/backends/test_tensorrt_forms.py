"""Builds on a Jetson for each form of token ops, with a TensorRT that only records calls."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnx_graphsurgeon as gs
import pytest

from tcompile import pipeline
from tcompile.core.errors import UsageError
from tcompile.core.save import save
from tcompile.passes.lower import lower
from tcompile.targets import load_target
from tcompile.targets.backends import tensorrt
from tests.support.tiny_vit import save_tiny_vit


class Listener:
    """A module `tensorrt` of some version, and what was asked of it."""

    def __init__(self, version: str, patch: pytest.MonkeyPatch) -> None:
        self.loaded: list[str] = []
        self.functions = -1
        self.flags = 0
        self.handle: object = "a handle"
        registry = SimpleNamespace(load_library=self.load)
        module = SimpleNamespace(
            __version__=version,
            get_plugin_registry=lambda: registry,
            NetworkDefinitionCreationFlag=SimpleNamespace(PREFER_AOT_PYTHON_PLUGINS=4),
        )
        patch.setattr(tensorrt, "require", lambda *_: module)
        patch.setattr(tensorrt, "_LOADED", {})
        patch.setattr(tensorrt, "build_plan", self.build)

    def load(self, path: str) -> object:
        self.loaded.append(path)
        return self.handle

    def build(self, trt: Any, path: Path, *, flags: int = 0, **_: Any) -> memoryview:
        self.functions, self.flags = len(onnx.load(str(path)).functions), flags
        return memoryview(b"plan")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model whose calls name plugins."""
    reduced = pipeline.reduce(save_tiny_vit(tmp_path / "vit.onnx"), method="tome:r=3")
    graph: gs.Graph = lower(
        reduced.graph,
        target=load_target("jetson-orin"),
        precision="fp16",
        fp32_nodes=reduced.fp32_nodes,
        token_ops="plugin",
    )
    save(graph, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.mark.parametrize(("version", "bodies"), [("10.3.0", 0), ("10.13.3.9", 2), ("11.4.1", 2)])
def test_plugins_are_loaded_and_bodies_left_out_where_they_come_first(
    model: Path, monkeypatch: pytest.MonkeyPatch, version: str, bodies: int
) -> None:
    trt = Listener(version, monkeypatch)
    checked: list[tuple[Path, Any]] = []
    monkeypatch.setattr("tcompile.plugins.build.built_library", lambda: Path("lib.so"))
    monkeypatch.setattr(
        "tcompile.plugins.check.require_library",
        lambda path, *, tensorrt=None: checked.append((path, tensorrt)),
    )
    before = sorted(model.parent.iterdir())
    assert tensorrt.build(model, token_ops="plugin") == b"plan"
    assert (trt.loaded, trt.functions, trt.flags) == (["lib.so"], bodies, 0)
    major, minor = version.split(".")[:2]
    assert checked == [(Path("lib.so"), (int(major), int(minor)))]
    assert sorted(model.parent.iterdir()) == before
    tensorrt.build(model, token_ops="plugin")
    assert trt.loaded == ["lib.so"], "TensorRT refuses what it has loaded before"


def test_a_library_that_tensorrt_does_not_load(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so by None, and would go on with the bodies."""
    trt = Listener("10.13.3", monkeypatch)
    trt.handle = None
    monkeypatch.setattr("tcompile.plugins.build.built_library", lambda: Path("lib.so"))
    monkeypatch.setattr("tcompile.plugins.check.require_library", lambda *_, **__: None)
    for _ in range(2):
        with pytest.raises(UsageError, match="does not load the plugin library"):
            tensorrt.build(model, token_ops="plugin")
    assert trt.loaded == ["lib.so"] * 2
    assert trt.functions == -1


def test_kernels_ahead_of_time_are_registered_and_preferred(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = Listener("10.16.2", monkeypatch)
    registered: list[bool] = []
    monkeypatch.setattr("tcompile.plugins.aot.register", lambda: registered.append(True))
    tensorrt.build(model, token_ops="aot")
    assert (registered, trt.functions, trt.flags, trt.loaded) == ([True], 2, 1 << 4, [])
    Listener("10.3.0", monkeypatch)
    with pytest.raises(UsageError, match=r"10\.9"):
        tensorrt.build(model, token_ops="aot")


def test_native_needs_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = Listener("10.3.0", monkeypatch)
    tensorrt.build(model)
    assert (trt.loaded, trt.functions, trt.flags) == ([], 2, 0)
