"""Progress, Ctrl-C and timings of builds, with TensorRT-RTX, which builds without a GPU."""

from __future__ import annotations

import os
import signal
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tcompile.core import interrupt
from tcompile.targets.backends import rtx, trt_common
from tcompile.targets.backends.build_watch import (
    BuildWatch,
    load_timings,
    save_timings,
    timing_cache,
)
from tests.support.tiny_vit import VitSpec, save_tiny_vit

trt = pytest.importorskip("tensorrt_rtx")
SPEC = VitSpec(image=32, patch=8, width=32, heads=2, depth=1)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny_vit(tmp_path / "vit.onnx", SPEC)


def test_a_build_tells_how_far_it_is(model: Path) -> None:
    told: list[str] = []
    plan = rtx.build(model, "8.9", workspace=64, progress=told.append)
    assert len(plan) > 10_000
    assert "building the engine: Building engine, 0 of 6" in told
    assert len({line.split(":")[1].split(",")[0] for line in told}) > 5


@pytest.mark.parametrize("how", ["handler", "plain"])
def test_ctrl_c_ends_a_build(model: Path, how: str) -> None:
    """With the command line's handler, which takes note, and without: at the next step."""
    told: list[str] = []

    def press(line: str) -> None:
        told.append(line)
        if len(told) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    listening = interrupt.listening() if how == "handler" else nullcontext()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest-xdist ignores it
    try:
        with listening, pytest.raises(KeyboardInterrupt):
            rtx.build(model, "8.9", progress=press)
    finally:
        signal.signal(signal.SIGINT, before)
    interrupt._received = None
    whole: list[str] = []
    assert rtx.build(model, "8.9", progress=whole.append)  # and the next one is whole
    assert len(told) < len(whole) / 2


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX")
def test_timings_are_kept_for_the_next_build(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls are those of TensorRT; what RTX keeps is of no use to it, and does no harm."""
    path = tmp_path / "deep" / "timings"

    def configure(config: Any, _: Any) -> None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM89, 0)

    first = trt_common.build_plan(trt, model, timings=path, configure=configure)
    assert path.stat().st_size > 0
    again = trt_common.build_plan(trt, model, timings=path, configure=configure)
    assert len(again) == pytest.approx(len(first), rel=0.1)
    path.write_bytes(b"damaged")
    assert trt_common.build_plan(trt, model, timings=path, configure=configure)
    assert list(path.parent.iterdir()) == [path]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert timing_cache("10.3.0").name == "tensorrt-10.3.0.cache"
    assert timing_cache("10.3.0", "-x").name == "tensorrt-10.3.0-x.cache"


class Config:
    """The part of a builder configuration that keeps timings: a cache fits if it says so."""

    def __init__(self) -> None:
        self.cache: Any = None

    def create_timing_cache(self, data: bytes) -> Any:
        return None if data == b"damaged" else SimpleNamespace(serialize=lambda: data)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        fits = ignore_mismatch or cache.serialize() in (b"", b"mine")
        self.cache = cache if fits else self.cache
        return fits

    def get_timing_cache(self) -> Any:
        return self.cache


@pytest.mark.parametrize(
    ("data", "used"), [(b"mine", b"mine"), (b"another GPU's", b""), (b"damaged", b""), (None, b"")]
)
def test_timings_of_another_gpu_are_left_out(
    tmp_path: Path, data: bytes | None, used: bytes
) -> None:
    path = tmp_path / "timings"
    if data is not None:
        path.write_bytes(data)
    config = Config()
    load_timings(config, path)
    assert config.cache.serialize() == used
    save_timings(config, path)
    assert path.read_bytes() == used
    assert list(tmp_path.iterdir()) == [path]


def test_a_phase_that_was_never_begun_is_no_fault() -> None:
    told: list[str] = []
    watch = BuildWatch(trt, told.append)
    watch.finish("none")
    assert watch.tell("late", 1)
    assert told == ["building the engine: late, 1 of 0"]
