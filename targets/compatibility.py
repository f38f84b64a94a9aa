"""What an engine is made compatible with: newer versions of TensorRT, other GPUs; and the rules by
which one is accepted. Versions and sources are data (`devices/_tensorrt.json`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from tcompile.core.errors import UsageError
from tcompile.targets.devices import Target
from tcompile.targets.versions import TENSORRT, parse_version

HardwareLevel = Literal["ampere-plus", "same-compute-capability"]
LEVELS: tuple[HardwareLevel, ...] = ("ampere-plus", "same-compute-capability")
#: Names the lean runtime of the TensorRT that built an engine which holds none.
LEAN_RUNTIME = "TCOMPILE_LEAN_RUNTIME"


@dataclass(frozen=True)
class Compatibility:
    """What an engine was made compatible with.

    Attributes:
        version: newer versions of TensorRT run it too.
        lean_runtime: it holds TensorRT's lean runtime, which they run it by: host code that the
            process which loads the engine runs. false: that library has to be there, by itself.
        plugins: it holds our plugin library, host code as well, which is then not loaded apart.
        hardware: ampere-plus or same-compute-capability; null: nothing was asked.
        capabilities: compute capabilities that it was built for; empty: the target's alone.
    """

    version: bool = False
    lean_runtime: bool = False
    plugins: bool = False
    hardware: HardwareLevel | None = None
    capabilities: tuple[str, ...] = ()

    @property
    def host_code(self) -> bool:
        """Tell whether whoever loads the engine runs code out of it."""
        return self.lean_runtime or self.plugins

    @property
    def words(self) -> str:
        """What it is compatible with, in a sentence."""
        parts = []
        if self.version:
            where = "in it" if self.lean_runtime else "not in it"
            parts.append(f"newer versions of TensorRT run it (lean runtime {where})")
        if self.capabilities:
            parts.append(f"it is for GPUs of compute capability {', '.join(self.capabilities)}")
        return "; ".join(parts)


#: Of an engine that nothing was asked for.
NONE = Compatibility()


def runs_in(built: str, installed: str, *, compatible: bool) -> bool:
    """Tell whether a version of TensorRT runs an engine that another one built.

    Args:
        built: `10.3.0`, or as much of it as is known (`10.3`).
        installed: likewise; what is behind the third number does not count.
        compatible: whether the engine is version-compatible.
    """
    digits = min(len(built.split(".")), len(installed.split(".")), 3)
    if not compatible:
        return built.split(".")[:digits] == installed.split(".")[:digits]
    old, new = ([_number(p) for p in v.split(".")[:digits]] for v in (built, installed))
    if old[0] != new[0]:
        return (old[0], new[0]) in TENSORRT.compatibility.version.across
    return old <= new


def rule_words(built: str) -> str:
    """Say which versions run a version-compatible engine of another one."""
    major = _number(built.split(".")[0])
    after = [str(new) for old, new in TENSORRT.compatibility.version.across if old == major]
    return " and ".join([f"{major}.x from {built} on", *after])


def older_words(installed: str) -> str:
    """Say of which versions one runs version-compatible engines."""
    major = _number(installed.split(".")[0])
    before = [f"{old}.x" for old, new in TENSORRT.compatibility.version.across if new == major]
    return " and ".join([f"{major}.x up to {installed}", *before])


def checked_compatibility(
    target: Target,
    *,
    version: bool = False,
    exclude_lean_runtime: bool = False,
    hardware: str | None = None,
    precision: str = "fp16",
    token_ops: str = "native",
) -> Compatibility | None:
    """Return what `--version-compatible`, `--exclude-lean-runtime` and
    `--hardware-compatibility-level` ask of a target's engine; None: nothing.

    Raises:
        UsageError: the target has no such engines.
    """
    if exclude_lean_runtime and not version:
        raise UsageError(
            "only a version-compatible engine holds a lean runtime",
            where="--exclude-lean-runtime",
            hint="omit it, or say --version-compatible",
        )
    if hardware is not None and hardware not in LEVELS:
        raise UsageError(
            f"there is no level '{hardware}'",
            where="--hardware-compatibility-level",
            hint=f"one of {', '.join(LEVELS)}",
        )
    if target.on_cpu and (version or hardware):
        raise UsageError(
            f"{target.name} has no engine: model.onnx runs in any version, on any CPU",
            where="--version-compatible" if version else "--hardware-compatibility-level",
            hint="omit it",
        )
    if version:
        _check_version(target, exclude_lean_runtime, token_ops)
    if hardware is not None:
        _check_hardware(target, hardware, precision)
    if not version and hardware is None:
        return None
    return Compatibility(
        version=version,
        lean_runtime=version and not exclude_lean_runtime,
        plugins=version and token_ops == "plugin",
        hardware=hardware,
    )


def _check_version(target: Target, exclude_lean_runtime: bool, token_ops: str) -> None:
    if target.runtime == "tensorrt-rtx":
        raise UsageError(
            "an engine of TensorRT-RTX runs in the release that built it and in no other",
            where="--version-compatible",
            hint="omit it, and build again with each release: any machine can, without a GPU",
        )
    if token_ops == "aot":
        raise UsageError(
            "nothing says that a version-compatible engine may hold kernels compiled ahead of time",
            where="--version-compatible",
            hint="say --token-ops native",
        )
    if token_ops == "plugin" and exclude_lean_runtime:
        raise UsageError(
            "plugins are put into a version-compatible engine together with the lean runtime",
            where="--exclude-lean-runtime",
            hint="omit it, or say --token-ops native",
        )


def _check_hardware(target: Target, level: str, precision: str) -> None:
    if target.runtime == "jetson":
        raise UsageError(
            "TensorRT has no engines for several kinds of GPU on JetPack",
            where="--hardware-compatibility-level",
            hint="omit it, and run build_engine.sh on each kind of device",
        )
    if level != "ampere-plus":
        return
    oldest = TENSORRT.compatibility.hardware.levels[level].oldest
    if parse_version(target.compute_capability or "0.0") < parse_version(oldest):
        raise UsageError(
            f"{target.name} has compute capability {target.compute_capability}, an engine for "
            f"Ampere and newer GPUs starts at {oldest}",
            where="--hardware-compatibility-level",
            hint="build for it by itself",
        )
    if precision == "fp8":
        raise UsageError(
            "GPUs of compute capability 8.0 and 8.6 do not compute in fp8",
            where="--hardware-compatibility-level ampere-plus",
            hint="say --precision fp16, or omit it",
        )


def _number(part: str) -> int:
    """The number that a part of a version begins with: `0rc1` is 0."""
    found = re.match(r"\d+", part)
    return int(found[0]) if found else 0
