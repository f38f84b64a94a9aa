"""What is kept and shown while TensorRT builds: how far it is, and what kernels took."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from tcompile.core.cache import cache_dir
from tcompile.core.interrupt import received
from tcompile.core.progress import Progress


class BuildWatch:
    """A progress monitor: tells a person how far a build is, and ends it at Ctrl-C.

    TensorRT would print an exception that is raised in a callback, and go on; what it asks is
    whether to go on, after each step.

    Args:
        trt: `tensorrt` or `tensorrt_rtx`.
        progress: is told the innermost phase and its steps.
        interrupted: tells whether Ctrl-C was caught elsewhere, such as in the logger.

    Attributes:
        native: for `IBuilderConfig.progress_monitor`. It must live as long as the build.
        stopped: whether Ctrl-C ended the build.
    """

    def __init__(
        self, trt: ModuleType, progress: Progress, interrupted: Callable[[], bool] = lambda: False
    ) -> None:
        self.stopped = False
        self._interrupted = interrupted
        self._steps: dict[str, int] = {}
        self._progress = progress
        watch = self

        class Monitor(trt.IProgressMonitor):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                trt.IProgressMonitor.__init__(self)

            def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
                watch.tell(phase_name, 0, num_steps)

            def step_complete(self, phase_name: str, step: int) -> bool:
                return watch.tell(phase_name, step + 1)

            def phase_finish(self, phase_name: str) -> None:
                watch.finish(phase_name)

        self.native: Any = Monitor()

    def tell(self, phase: str, step: int, steps: int | None = None) -> bool:
        """Show a step of a phase; returns whether to go on."""
        try:
            if steps is not None:
                self._steps[phase] = steps
            total = self._steps.get(phase, 0)
            self._progress(f"building the engine: {phase}, {step} of {total}")
        except KeyboardInterrupt:
            self.stopped = True
        self.stopped = self.stopped or self._interrupted() or received() is not None
        return not self.stopped

    def finish(self, phase: str) -> None:
        """Forget a phase."""
        with suppress(KeyError):
            del self._steps[phase]


def timing_cache(version: str, kind: str = "") -> Path:
    """The file that keeps what kernels took on this machine, for one version of TensorRT.

    Args:
        kind: of engines that have other kernels to choose from; they have a file of their own,
            since a cache holds the best kernel alone.
    """
    return cache_dir() / "timing" / f"tensorrt-{version}{kind}.cache"


def load_timings(config: Any, path: Path) -> None:
    """Let a build start from what an earlier one timed; from nothing where that is damaged, or of
    another GPU or version: timings that do not fit give slow or wrong engines."""
    data = b""
    with suppress(OSError):
        data = path.read_bytes()
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def save_timings(config: Any, path: Path) -> None:
    """Keep what a build timed. That it cannot be kept is no reason to fail."""
    cache = config.get_timing_cache()
    if cache is None:
        return
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(bytes(cache.serialize()))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
