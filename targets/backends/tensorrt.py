"""TensorRT: engines for the GPU of the machine that builds them, such as a Jetson itself.

Unlike TensorRT-RTX it measures kernels while it builds, so it needs the device. A bundle is how a
model gets to a device without this package (`jetson.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from tcompile.core.errors import UsageError
from tcompile.core.packages import require
from tcompile.core.progress import Progress, silent
from tcompile.core.save import without_bodies
from tcompile.targets.backends.base import Batch
from tcompile.targets.backends.build_watch import timing_cache
from tcompile.targets.backends.trt_common import beside, build_plan, layer_information
from tcompile.targets.compatibility import NONE, Compatibility
from tcompile.targets.versions import TENSORRT, Version, first_with_aot, parse_version, parser_rule

_PURPOSE = "building a TensorRT engine"


def version() -> str:
    """The installed TensorRT's version."""
    return str(require("tensorrt", "tensorrt", _PURPOSE).__version__)


def build(
    model_path: Path,
    *,
    batch: Batch | None = None,
    token_ops: str = "native",
    workspace: int | None = None,
    compatibility: Compatibility | None = None,
    progress: Progress = silent,
) -> memoryview:
    """Compile an ONNX file into a serialised engine for this machine's GPU.

    Args:
        token_ops: the form that the model's token ops were lowered to. `plugin` loads the library
            that `tcompile plugins build` made; `aot` registers the kernels with this process.
        workspace, progress: see `build_plan`.
        compatibility: what the engine is to be compatible with; `capabilities` are not looked at.

    Raises:
        MissingExtraError: tensorrt is not installed.
        UsageError: it is too old, also for the form or the level of hardware compatibility; there
            is no plugin library, or a wrong one.
        ModelError, TcompileError: see `build_plan`.
    """
    trt = require("tensorrt", "tensorrt", _PURPOSE)
    version, oldest = parse_version(str(trt.__version__)), TENSORRT.strongly_typed.since
    if version < parse_version(oldest):
        raise UsageError(
            f"TensorRT {trt.__version__} is too old: strongly typed networks need {oldest}",
            hint="on a Jetson, install JetPack 6.1 or newer",
        )
    wanted = compatibility or NONE
    _check_level(trt, wanted)
    kind = "-version-compatible" if wanted.version else ""
    kind += f"-{wanted.hardware}" if wanted.hardware else ""
    settings: dict[str, Any] = {
        "batch": batch,
        "workspace": workspace,
        "timings": timing_cache(str(trt.__version__), kind),
        "progress": progress,
        "configure": lambda config, parser: _make_compatible(trt, config, parser, wanted),
    }
    if token_ops == "plugin":
        return _with_plugins(trt, version, model_path, settings)
    flags = _register_aot(trt, version) if token_ops == "aot" else 0
    return build_plan(trt, model_path, flags=flags, **settings)


def layers(plan: memoryview) -> str | None:
    """What TensorRT's inspector says of an engine's layers, as JSON; see `layer_information`."""
    return layer_information(require("tensorrt", "tensorrt", _PURPOSE), plan)


def _check_level(trt: ModuleType, wanted: Compatibility) -> None:
    """Raise UsageError for a level of hardware compatibility that this TensorRT does not have."""
    if wanted.hardware is None:
        return
    since = TENSORRT.compatibility.hardware.levels[wanted.hardware].since
    if parse_version(str(trt.__version__)) < parse_version(since):
        raise UsageError(
            f"TensorRT {trt.__version__} has no engines that are {wanted.hardware}, {since} is the "
            "first that does",
            where="--hardware-compatibility-level",
            hint="ampere-plus is in any",
        )


def _make_compatible(trt: ModuleType, config: Any, parser: Any, wanted: Compatibility) -> None:
    """Set what an engine is to be compatible with. InstanceNormalization has to be native in such
    ones: the parser's default from TensorRT 10 on."""
    if wanted.hardware is not None:
        rule = TENSORRT.compatibility.hardware.levels[wanted.hardware]
        level = getattr(trt.HardwareCompatibilityLevel, rule.member)
        config.hardware_compatibility_level = level
    if not wanted.version:
        return
    from tcompile.plugins.build import built_library

    config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    # TensorRT's own plugins that the parser took in place of ops.
    libraries = [str(path) for path in parser.get_used_vc_plugin_libraries()]
    for path in libraries:
        load_plugins(trt, Path(path))
    if wanted.lean_runtime:
        ours = [str(built_library())] if wanted.plugins else []
        if libraries or ours:
            config.plugins_to_serialize = [*libraries, *ours]
        return
    if libraries:
        raise UsageError(
            f"the model needs plugins of TensorRT ({', '.join(libraries)}), which are put into an "
            "engine together with the lean runtime",
            where="--exclude-lean-runtime",
            hint="omit it",
        )
    config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)


#: Plugin libraries that this process has loaded, by path, and what TensorRT knows them by.
_LOADED: dict[str, object] = {}


def load_plugins(trt: ModuleType, library: Path) -> None:
    """Make the plugins of a library, which was checked before, known to TensorRT.

    Raises:
        UsageError: TensorRT does not load it.
    """
    # Once a process: TensorRT refuses plugins that are registered already.
    if str(library) not in _LOADED:
        _LOADED[str(library)] = trt.get_plugin_registry().load_library(str(library))
    if _LOADED[str(library)] is None:
        # Without them the parser would quietly take the bodies instead.
        del _LOADED[str(library)]
        raise UsageError(
            "TensorRT does not load the plugin library",
            where=str(library),
            hint="is CUDA's runtime there, and are no token ops registered yet?",
        )


def _with_plugins(
    trt: ModuleType, version: Version, model_path: Path, settings: Mapping[str, Any]
) -> memoryview:
    from tcompile.plugins.build import built_library
    from tcompile.plugins.check import require_library

    library = built_library()
    require_library(library, tensorrt=version)
    load_plugins(trt, library)
    if not parser_rule(version).takes_body_first:
        return build_plan(trt, model_path, **settings)
    with model_path.open("rb") as whole:
        bare = whole.read(without_bodies(model_path))
    with beside(model_path, bare) as path:
        return build_plan(trt, path, **settings)


def _register_aot(trt: ModuleType, version: Version) -> int:
    """Make the kernels known to TensorRT; the creation flag of a network that prefers them."""
    if not parser_rule(version).aot:
        raise UsageError(
            f"TensorRT {trt.__version__} takes no kernels compiled ahead of time, "
            f"{first_with_aot()} is the first that does",
            where="--token-ops",
            hint="plugin is built on any",
        )
    from tcompile.plugins.aot import register

    register()
    return 1 << int(trt.NetworkDefinitionCreationFlag.PREFER_AOT_PYTHON_PLUGINS)
