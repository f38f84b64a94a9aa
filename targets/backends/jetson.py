"""A Jetson bundle: the model, and what turns it into an engine on the device.

No supported way builds a Jetson engine elsewhere. `trtexec` comes with every JetPack, so the bundle
needs no Python there.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tcompile.core.errors import ModelError
from tcompile.core.model_files import TensorInfo, file_entry
from tcompile.core.save import without_bodies
from tcompile.plugins.build import SOURCES as PLUGIN_SOURCES
from tcompile.targets.backends.base import Batch, first_dims
from tcompile.targets.backends.jetson_texts import (
    BARE,
    BOARD_FILE,
    CHECK_SCRIPT,
    DIGEST,
    LINES,
    PLUGIN_SCRIPT,
    PLUGINS,
    README,
    SCRIPT,
    SOURCES,
    TYPED,
    build_script,
    check_script,
    plugin_script,
    readme,
)
from tcompile.targets.backends.jetson_versions import layer_flags, plugin_flags, version_flags
from tcompile.targets.compatibility import NONE, Compatibility
from tcompile.targets.devices import Target
from tcompile.targets.versions import (
    TENSORRT,
    JetPack,
    Version,
    jetpacks_for,
    parse_version,
    parser_rule,
)

_BOARD = Path("/proc/device-tree/model")


@dataclass(frozen=True)
class Line:
    """The trtexec command for one JetPack."""

    jetpack: JetPack
    arguments: tuple[str, ...]
    before: str = ""

    @property
    def text(self) -> str:
        """The command as one would type it, after what has to run before it."""
        return self.before + " ".join(["trtexec", *(shlex.quote(a) for a in self.arguments)])


def is_jetson() -> bool:
    """Return whether this machine is a Jetson."""
    try:
        return "Jetson" in _BOARD.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def shape_flags(inputs: tuple[TensorInfo, ...], batch: Batch) -> tuple[str, ...]:
    """`--minShapes --optShapes --maxShapes` for all inputs with a symbolic batch, whatever it is
    called; nothing without any.

    Raises:
        ModelError: an axis other than the batch is free.
    """
    free = [info for info in inputs if any(isinstance(dim, str) for dim in info.shape)]
    for info in free:
        if any(isinstance(dim, str) for dim in info.shape[1:]):
            raise ModelError(
                f"input '{info.name}' has a free axis other than the batch: {list(info.shape)}",
                hint="give it a fixed size when exporting",
            )
    if not free:
        return ()

    def shapes(which: int) -> str:
        dims = [(i.name, (first_dims(i.shape[0], batch)[which], *i.shape[1:])) for i in free]
        return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in dims)

    return (f"--minShapes={shapes(0)}", f"--optShapes={shapes(1)}", f"--maxShapes={shapes(2)}")


def measured_shapes(flags: tuple[str, ...]) -> tuple[str, ...]:
    """`--shapes` for a run with the opt batch, from `shape_flags`: trtexec takes 1 for what is free
    and not told. Nothing where nothing is free."""
    return tuple(f.replace("--optShapes=", "--shapes=") for f in flags if "--optShapes=" in f)


def precision_flags(version: Version) -> tuple[str, ...]:
    """Return what makes trtexec keep to the graph's types, where it has to be told."""
    return () if version >= parse_version(TENSORRT.strongly_typed.only_since) else (TYPED,)


def lines(
    target: Target,
    model: str,
    inputs: tuple[TensorInfo, ...],
    batch: Batch,
    bodies_from: int | None = None,
    workspace: int | None = None,
    compatibility: Compatibility | None = None,
) -> tuple[Line, ...]:
    """The trtexec command for each JetPack that the target may run.

    Args:
        workspace: MiB that kernels may use while they run; None: all there is.
        bodies_from: where the bodies of token ops begin in the model's file, for a model whose
            calls name plugins; None for any other.
        compatibility: what the engine is to be compatible with.
    """
    wanted = compatibility or NONE
    same = _of_all_versions(inputs, batch, workspace, wanted)
    plugins = () if bodies_from is None else plugin_flags(wanted, PLUGINS)
    result = []
    for jetpack in jetpacks_for(target):
        major, minor = jetpack.trt_version
        alone = bodies_from is not None and parser_rule(jetpack.trt_version).takes_body_first
        flags = (
            f"--onnx={BARE if alone else model}",
            f"--saveEngine=engine/model.trt{major}.{minor}.engine",
            f"--timingCacheFile=engine/timing.trt{major}.{minor}.cache",
            *layer_flags(wanted, f"engine/model.trt{major}.{minor}"),
            *precision_flags(jetpack.trt_version),
            *same,
            *plugins,
            "--skipInference",
        )
        cut = f"head -c {bodies_from} {shlex.quote(model)} > {BARE} && " if alone else ""
        result.append(Line(jetpack, flags, cut))
    return tuple(result)


def _of_all_versions(
    inputs: tuple[TensorInfo, ...], batch: Batch, workspace: int | None, wanted: Compatibility
) -> tuple[str, ...]:
    """The flags that do not depend on TensorRT's version."""
    pool = () if workspace is None else (f"--memPoolSize=workspace:{workspace}",)
    shapes = shape_flags(inputs, batch)
    return (*shapes, *pool, *version_flags(wanted), "--profilingVerbosity=detailed")


def write_bundle(
    directory: Path,
    model: str,
    inputs: tuple[TensorInfo, ...],
    *,
    target: Target,
    batch: Batch,
    plugins: bool = False,
    workspace: int | None = None,
    compatibility: Compatibility | None = None,
) -> tuple[str, ...]:
    """Write the scripts, the commands and a README beside the model.

    Args:
        directory: the artifact.
        model: the model file, relative to it.
        inputs: the model's inputs.
        target: a Jetson.
        batch: sizes for a symbolic batch.
        plugins: whether calls of token ops are to become our plugins; their sources are put in.
        workspace, compatibility: see `lines`.

    Returns:
        The files written, relative to `directory`.
    """
    bodies_from = without_bodies(directory / model) if plugins else None
    wanted = compatibility or NONE
    commands = lines(target, model, inputs, batch, bodies_from, workspace, wanted)
    arguments = _of_all_versions(inputs, batch, workspace, wanted)
    oldest, needed = _least(commands)
    data: list[dict[str, Any]] = [
        {
            "jetpack": line.jetpack.jetpack,
            "tensorrt": line.jetpack.tensorrt,
            "source": line.jetpack.source,
            "confidence": line.jetpack.confidence,
            "command": line.text,
        }
        for line in commands
    ]
    same: dict[str, tuple[JetPack, ...]] = {}
    for line in commands:
        same[line.text] = (*same.get(line.text, ()), line.jetpack)
    shown = [(packs, text) for text, packs in same.items()]
    batches = _batches(inputs, batch)
    shapes = measured_shapes(shape_flags(inputs, batch))
    files = {
        SCRIPT: build_script(model, arguments, bodies_from, oldest, needed, wanted),
        CHECK_SCRIPT: check_script(),
        LINES: json.dumps({"target": target.name, "commands": data}, indent=1) + "\n",
        README: readme(
            target,
            shown,
            needed,
            plugins=plugins,
            batches=batches,
            shapes=shapes,
            compatibility=wanted,
        ),
    }
    if plugins:
        files[PLUGIN_SCRIPT] = plugin_script(target)
    for name, text in files.items():
        (directory / name).write_text(text, encoding="utf-8", newline="\n")
        if name.endswith(".sh"):
            (directory / name).chmod(0o755)
    return (*files, *(_copy_sources(directory) if plugins else ()))


def _copy_sources(directory: Path) -> Iterator[str]:
    """Copy what builds the plugin library into the bundle; yields the files."""
    parts = ("CMakeLists.txt", "cmake/*", "cuda/*", "trt/*")
    for path in sorted(p for part in parts for p in PLUGIN_SOURCES.glob(part) if p.is_file()):
        name = f"{SOURCES}/{path.relative_to(PLUGIN_SOURCES).as_posix()}"
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, directory / name)
        yield name


#: Files that the script and the commands of the README write into the bundle, on the device.
_ENGINE = re.compile(r"engine/model\.trt\d+\.\d+\.engine")
_LAYERS = re.compile(r"engine/model\.trt\d+\.\d+\.layers\.json")
#: A build that was killed leaves it; nothing reads it, and the next build removes it.
_PART = re.compile(rf"{_ENGINE.pattern}\.part")
#: trtexec leaves a lock beside the cache where it is stopped.
_TIMINGS = re.compile(r"engine/timing\.trt\d+\.\d+\.cache(\.lock)?")


def layers_file(engine: str) -> str:
    """The file of an engine's layers, beside it."""
    return f"{engine.removesuffix('.engine')}.layers.json"


def digest_beside(engine: Path) -> str | None:
    """The SHA-256 that the script wrote beside an engine; None: it wrote none. Of a file that holds
    or is something else, that, or nothing: it is no engine's."""
    try:
        text = Path(f"{engine}{DIGEST}").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError:
        return ""
    return (text.split() or [""])[0]


def made_on_device(
    folder: Path, name: str, *, listed: bool = False, digest: str | None = None
) -> bool:
    """Return whether a file of a bundle is one that its own script made there, and is whole.

    Args:
        folder: the bundle.
        name: relative to it.
        listed: the build wrote a file of that name, so that only the script's digest of it tells
            an engine that was built again from one that was altered.
        digest: SHA-256 of an engine that was read; None: it is read here.
    """
    if not (folder / name).is_file():
        return False
    if name in (PLUGINS, BARE):
        return not listed
    if name == BOARD_FILE or _PART.fullmatch(name):
        return not listed
    if _TIMINGS.fullmatch(name):
        return True
    if _LAYERS.fullmatch(name):
        return True  # for people; nothing reads it
    if name.endswith(DIGEST):
        name = name.removesuffix(DIGEST)
        return _ENGINE.fullmatch(name) is not None and (folder / name).is_file()
    if not _ENGINE.fullmatch(name):
        return False
    written = digest_beside(folder / name)
    if written is None:
        return not listed
    return written == (digest or file_entry(folder / name, folder).sha256)


def _least(commands: tuple[Line, ...]) -> tuple[str, str]:
    """Return the oldest TensorRT of the JetPacks that a bundle is for, and the same in words."""
    if not commands:
        oldest = TENSORRT.strongly_typed.since
        return oldest, f"TensorRT {oldest} or newer"
    pack = min((line.jetpack for line in commands), key=lambda each: each.trt_version)
    oldest = "{}.{}".format(*pack.trt_version)
    return oldest, f"TensorRT {oldest} or newer (JetPack {pack.jetpack} or newer)"


def _batches(inputs: tuple[TensorInfo, ...], batch: Batch) -> str:
    if not shape_flags(inputs, batch):
        return ""
    low, middle, high = batch.sizes
    return f"It takes batches of {low} to {high}, and is tuned for {middle}.\n"
