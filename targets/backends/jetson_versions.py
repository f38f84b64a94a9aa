"""Version-compatible engines of a Jetson bundle: flags of trtexec, and words for its README."""

from __future__ import annotations

from tcompile.targets.compatibility import LEAN_RUNTIME, Compatibility
from tcompile.targets.versions import TENSORRT

#: Of flags that are no argument of the script.
ASKED_OF_BUILD = (
    "what loads an engine goes by the manifest, which says it only where the bundle was made by "
    "tcompile build --version-compatible [--exclude-lean-runtime]"
)
_FITS = "An engine runs only on the TensorRT version and the kind of device that built it."
_VERSION_COMPATIBLE = """\
An engine is version-compatible: the TensorRT that built it and newer ones run it ({across}),
on the kind of device that built it."""
_HOST_CODE = """\
It holds code that runs in the process which loads it, TensorRT's lean runtime: load none that you
do not trust. An application says so by runtime->setEngineHostCodeAllowed(true) before
deserializeCudaEngine, trtexec by --versionCompatible beside --loadEngine."""
_NO_HOST_CODE = f"""\
TensorRT's lean runtime is not in it: a newer TensorRT loads libnvinfer_lean.so of the one that
built it first (runtime->loadRuntime(PATH), trtexec --leanDLLPath=PATH; {LEAN_RUNTIME}=PATH for
check.sh and tcompile)."""


def fits_words(compatibility: Compatibility) -> str:
    """What runs an engine, in lines."""
    if not compatibility.version:
        return _FITS
    pairs = TENSORRT.compatibility.version.across
    across = ", ".join(f"{old}.x also in {new}.x" for old, new in pairs if old >= 10)
    told = _HOST_CODE if compatibility.lean_runtime else _NO_HOST_CODE
    return f"{_VERSION_COMPATIBLE.format(across=across)}\n{told}"


def version_flags(wanted: Compatibility) -> tuple[str, ...]:
    """What makes trtexec build a version-compatible engine."""
    if not wanted.version:
        return ()
    return ("--versionCompatible", *(() if wanted.lean_runtime else ("--excludeLeanRuntime",)))


def plugin_flags(wanted: Compatibility, library: str) -> tuple[str, ...]:
    """What makes trtexec take plugins of a library, and put them into an engine that has to run
    without it."""
    kept = (f"--setPluginsToSerialize={library}",) if wanted.plugins else ()
    return (f"--dynamicPlugins={library}", *kept)


def layer_flags(wanted: Compatibility, engine: str) -> tuple[str, ...]:
    """What makes trtexec write the layers beside an engine: the lean runtime, which runs a
    version-compatible one, has no inspector, and trtexec does not ask whether there is one."""
    return () if wanted.version else (f"--exportLayerInfo={engine}.layers.json",)
