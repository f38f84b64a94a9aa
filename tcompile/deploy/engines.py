"""Opening the engine of an artifact, after everything that can be known without it was checked."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from tcompile.artifact.directory import Artifact
from tcompile.core.errors import MissingExtraError, ModelError, UsageError
from tcompile.core.packages import require
from tcompile.deploy.checks import read_engine
from tcompile.plugins.build import built_library
from tcompile.plugins.check import check_library
from tcompile.targets.backends.cuda import Gpu
from tcompile.targets.backends.engine import EngineRunner
from tcompile.targets.backends.jetson_texts import PLUGINS, SCRIPT
from tcompile.targets.backends.tensorrt import load_plugins
from tcompile.targets.backends.trt_common import title
from tcompile.targets.compatibility import LEAN_RUNTIME, NONE, rule_words, runs_in
from tcompile.targets.versions import parse_version

_PURPOSE = "running the engine of an artifact"
#: The TensorRT that built an engine on its device, in the name that the script gives it.
_BUILT_BY = re.compile(r"model\.trt(\d+\.\d+)\.engine")


def open_engine(
    artifact: Artifact, runtime: str, *, device: int = 0, graphs: bool = False
) -> EngineRunner:
    """Open the engine of an artifact on a GPU.

    Checked before, in this order: the file and its sha256, the package and its version, driver and
    GPU, compute capability, and the plugin library where token ops are plugins. Code out of the
    engine may run only where it is version-compatible and its sha256 is known.

    Args:
        runtime: tensorrt or tensorrt-rtx.
        device: the GPU, as CUDA counts them.
        graphs: launch it as a CUDA graph.

    Raises:
        MissingExtraError: the package or cuda-python is not installed.
        ModelError: the engine is missing, not as it was written, or not accepted.
        UsageError: another version, no driver, another GPU, or a plugin library or a lean runtime
            that is missing or does not fit.
    """
    engine = engine_file(artifact)
    plan = read_engine(artifact, engine.relative_to(artifact.directory).as_posix())
    try:
        if runtime == "tensorrt-rtx":
            trt = require("tensorrt_rtx", "rtx", _PURPOSE)
        else:
            trt = require("tensorrt", "tensorrt", _PURPOSE)
        lean_runtime = check_version(artifact, engine, trt)
        gpu = _gpu(artifact, device)
    except MissingExtraError as error:  # on a machine that has no GPU, say
        error.hint = f"{error.hint}; {_ON_CPU}"
        error.args = (error.one_line(),)
        raise
    check_capability(artifact, gpu.compute_capability)
    choice, compatibility = artifact.manifest.token_ops, artifact.manifest.compatibility or NONE
    if choice is not None and choice.form == "plugin" and not compatibility.plugins:
        library = plugin_library(artifact)
        check_plugins(library, str(trt.__version__), gpu.compute_capability)
        load_plugins(trt, library)
    return EngineRunner(
        trt,
        engine,
        plan,
        gpu,
        graphs=graphs,
        host_code=compatibility.host_code,
        lean_runtime=lean_runtime,
    )


def engine_file(artifact: Artifact) -> Path:
    """The engine: the one that the manifest lists; of several that were built on the device the
    newest that the installed TensorRT runs, else the newest.

    Raises:
        ModelError: there is none.
    """
    listed = [e.path for e in artifact.manifest.files if e.path.endswith(".engine")]
    jetson = artifact.manifest.target.runtime == "jetson"
    there = artifact.directory.glob("engine/*.engine") if jetson else ()
    # Others are copies that somebody keeps: `model.trt10.3.old.engine`.
    made = sorted((p for p in there if _BUILT_BY.fullmatch(p.name)), key=_age)
    if len(made) > 1:
        fits = _those_that_run(artifact, made)
        made.sort(key=fits.__contains__)  # the order of the others stays
    found = [*(artifact.directory / name for name in listed), *made]
    if found:
        return found[-1]
    hint = f"run `sh {SCRIPT}` in it, on the device" if jetson else "build it again"
    raise ModelError(
        f"there is no engine for {artifact.manifest.target.name} in it",
        where=str(artifact.directory),
        hint=f"{hint}; {_ON_CPU}",
    )


def check_version(artifact: Artifact, engine: Path, trt: ModuleType) -> Path | None:
    """Raise UsageError unless the installed package runs the engine: the one that built it, to the
    third number, or a newer one where it is version-compatible.

    Returns:
        The lean runtime that it needs; None: none, or it holds its own.
    """
    compatibility = artifact.manifest.compatibility or NONE
    installed = str(trt.__version__)
    named = _BUILT_BY.fullmatch(engine.name)
    listed = engine.relative_to(artifact.directory).as_posix() in {
        entry.path for entry in artifact.manifest.files
    }
    # Of an engine made on the device the manifest, which is older, says nothing.
    package = trt.__name__.replace("_", "-")
    built = artifact.manifest.versions.get(package, "") if listed else ""
    if not built and named:
        built = named[1]
    name = title(trt).removesuffix(f" {installed}")
    if built and not runs_in(built, installed, compatible=compatibility.version):
        rule = f" and runs in {rule_words(built)}" if compatibility.version else ""
        other = f"install {package}=={built}, or build it again with {installed}"
        raise UsageError(
            f"the engine was built by {name} {built}{rule}, installed is {installed}",
            where=str(engine),
            hint=f"{other}; {_ON_CPU}",
        )
    same = not built or runs_in(built, installed, compatible=False)
    if not compatibility.version or compatibility.lean_runtime or same:
        return None
    library = Path(os.environ.get(LEAN_RUNTIME, ""))
    if not library.is_file():
        raise UsageError(
            f"the engine was built by {name} {built} without its lean runtime, installed is "
            f"{installed}",
            where=str(engine),
            hint=f"{LEAN_RUNTIME} names libnvinfer_lean.so of {built}; {_ON_CPU}",
        )
    return library


def check_capability(artifact: Artifact, capability: str) -> None:
    """Raise UsageError for a GPU of another compute capability than the artifact is for."""
    target, compatibility = artifact.manifest.target, artifact.manifest.compatibility or NONE
    known = compatibility.capabilities or (target.compute_capability,)
    if capability not in known and known != (None,):
        raise UsageError(
            f"is for compute capability {', '.join(map(str, known))} ({target.name}), this GPU has "
            f"{capability}",
            where=str(artifact.directory),
            hint=f"build it for this GPU; {_ON_CPU}",
        )


def plugin_library(artifact: Artifact) -> Path:
    """The plugin library: the bundle's own, or the one of this machine.

    Raises:
        UsageError: there is none.
    """
    own = artifact.directory / PLUGINS
    return own if own.is_file() else built_library()


def check_plugins(library: Path, tensorrt: str, capability: str) -> None:
    """Raise UsageError unless a library holds the plugins for this machine, TensorRT and GPU."""
    major, _, minor = capability.partition(".")
    report = check_library(
        library,
        machine=platform.machine(),
        tensorrt=parse_version(tensorrt),
        architecture=int(major) * 10 + int(minor),
    )
    if report.problems:
        raise UsageError(
            f"the token ops of this engine are plugins, and their library does not fit: "
            f"{report.problems[0]}",
            where=str(library),
            hint="`tcompile plugins build` makes one, `tcompile plugins check` says all",
        )


def _gpu(artifact: Artifact, device: int) -> Gpu:
    try:
        return Gpu(device)
    except UsageError as error:
        target = artifact.manifest.target
        raise UsageError(
            f"its engine is for a GPU ({target.name}), and {error.what}",
            where=str(artifact.directory),
            hint=f"{error.hint}; {_ON_CPU}" if error.hint else _ON_CPU,
        ) from error


_ON_CPU = 'runtime="onnxruntime" runs its model.onnx on the CPU'


def _those_that_run(artifact: Artifact, engines: Sequence[Path]) -> list[Path]:
    """Those that the installed TensorRT runs by their names; none where there is none."""
    try:
        installed = str(require("tensorrt", "tensorrt", _PURPOSE).__version__)
    except MissingExtraError:
        return []
    compatible = (artifact.manifest.compatibility or NONE).version
    named = {path: _BUILT_BY.fullmatch(path.name) for path in engines}
    return [p for p, n in named.items() if n and runs_in(n[1], installed, compatible=compatible)]


def _age(path: Path) -> tuple[int, ...]:
    """A key that sorts engines by the TensorRT that built them."""
    found = _BUILT_BY.fullmatch(path.name)
    return tuple(int(part) for part in found[1].split(".")) if found else ()
