"""A Jetson bundle: the model, and what turns it into an engine on the device.

No supported way builds a Jetson engine elsewhere. `trtexec` comes with every JetPack, so the bundle
needs no Python there.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tcompile.core.errors import ModelError
from tcompile.core.model_files import TensorInfo, file_entry
from tcompile.core.save import without_bodies
from tcompile.plugins.build import LIBRARY
from tcompile.targets.backends.base import Batch, first_dims
from tcompile.targets.devices import Target
from tcompile.targets.versions import (
    TENSORRT,
    JetPack,
    Version,
    first_with_plugins_first,
    jetpacks_for,
    parse_version,
    parser_rule,
)

SCRIPT, README, LINES = "build_engine.sh", "README.txt", "trtexec.json"
#: Where the bundle looks for our plugin library, and what the model without the bodies of token ops
#: is called, for a TensorRT whose parser takes those before plugins.
PLUGINS, BARE = f"plugins/{LIBRARY}", "model.plugin.onnx"
_TYPED = "--stronglyTyped"
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


def precision_flags(version: Version) -> tuple[str, ...]:
    """Return what makes trtexec keep to the graph's types, where it has to be told."""
    return () if version >= parse_version(TENSORRT.strongly_typed.only_since) else (_TYPED,)


def lines(
    target: Target,
    model: str,
    inputs: tuple[TensorInfo, ...],
    batch: Batch,
    bodies_from: int | None = None,
) -> tuple[Line, ...]:
    """The trtexec command for each JetPack that the target may run.

    Args:
        bodies_from: where the bodies of token ops begin in the model's file, for a model whose
            calls name plugins; None for any other.
    """
    shapes = shape_flags(inputs, batch)
    plugins = () if bodies_from is None else (f"--dynamicPlugins={PLUGINS}",)
    result = []
    for jetpack in jetpacks_for(target):
        major, minor = jetpack.trt_version
        alone = bodies_from is not None and parser_rule(jetpack.trt_version).takes_body_first
        flags = (
            f"--onnx={BARE if alone else model}",
            f"--saveEngine=engine/model.trt{major}.{minor}.engine",
            *precision_flags(jetpack.trt_version),
            *shapes,
            *plugins,
            "--profilingVerbosity=detailed",
            "--skipInference",
        )
        cut = f"head -c {bodies_from} {shlex.quote(model)} > {BARE} && " if alone else ""
        result.append(Line(jetpack, flags, cut))
    return tuple(result)


def write_bundle(
    directory: Path,
    model: str,
    inputs: tuple[TensorInfo, ...],
    *,
    target: Target,
    batch: Batch,
    plugins: bool = False,
) -> tuple[str, ...]:
    """Write the script, the commands and a README beside the model.

    Args:
        directory: the artifact.
        model: the model file, relative to it.
        inputs: the model's inputs.
        target: a Jetson.
        batch: sizes for a symbolic batch.
        plugins: whether calls of token ops are to become our plugins.

    Returns:
        The files written, relative to `directory`.
    """
    bodies_from = without_bodies(directory / model) if plugins else None
    commands = lines(target, model, inputs, batch, bodies_from)
    script = directory / SCRIPT
    text = _script(model, shape_flags(inputs, batch), bodies_from, commands)
    script.write_text(text, encoding="utf-8", newline="\n")
    script.chmod(0o755)
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
    (directory / LINES).write_text(
        json.dumps({"target": target.name, "commands": data}, indent=1) + "\n", encoding="utf-8"
    )
    readme = _readme(target, commands, plugins, _batches(inputs, batch))
    (directory / README).write_text(readme, encoding="utf-8", newline="\n")
    return (SCRIPT, LINES, README)


#: Files that the script and the commands of the README write into the bundle, on the device.
_ENGINE = re.compile(r"engine/model\.trt\d+\.\d+\.engine")
_DIGEST = ".sha256"


def made_on_device(folder: Path, name: str, *, listed: bool = False) -> bool:
    """Return whether a file of a bundle is one that its own script made there, and is whole.

    Args:
        folder: the bundle.
        name: relative to it.
        listed: the build wrote a file of that name, so that only the script's digest of it tells
            an engine that was built again from one that was altered.
    """
    if not (folder / name).is_file():
        return False
    if name in (PLUGINS, BARE):
        return not listed
    if name.endswith(_DIGEST):
        name = name.removesuffix(_DIGEST)
        return _ENGINE.fullmatch(name) is not None and (folder / name).is_file()
    if not _ENGINE.fullmatch(name):
        return False
    digest = folder / f"{name}{_DIGEST}"
    if not digest.is_file():
        return not listed
    written = digest.read_text(encoding="utf-8", errors="replace").split()[:1]
    return written == [file_entry(folder / name, folder).sha256]


def _least(commands: tuple[Line, ...]) -> tuple[str, str]:
    """Return the oldest TensorRT of the JetPacks that a bundle is for, and the same in words."""
    if not commands:
        oldest = TENSORRT.strongly_typed.since
        return oldest, f"TensorRT {oldest} or newer"
    pack = min((line.jetpack for line in commands), key=lambda each: each.trt_version)
    oldest = "{}.{}".format(*pack.trt_version)
    return oldest, f"TensorRT {oldest} or newer (JetPack {pack.jetpack} or newer)"


def _script(
    model: str, shapes: tuple[str, ...], bodies_from: int | None, commands: tuple[Line, ...]
) -> str:
    arguments = " ".join(shlex.quote(each) for each in shapes)
    plugins = "" if bodies_from is None else _SCRIPT_PLUGINS.format(PLUGINS)
    cut, flag = "", ""
    if bodies_from is not None:
        first = first_with_plugins_first()
        cut = _SCRIPT_CUT.format(bodies_from, shlex.quote(model), BARE, first, _number(first))
        flag = ' --dynamicPlugins="$plugins"'
    oldest, needed = _least(commands)
    return f"""\
#!/bin/sh
# Builds engine/model.trtX.Y.engine from {model} with the TensorRT of this Jetson.
# Further arguments go to trtexec as they are. TRTEXEC=/path/to/trtexec chooses another one.
set -eu
cd "$(dirname "$0")"

trtexec=${{TRTEXEC:-$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)}}
if ! [ -x "$trtexec" ]; then
    echo "no trtexec found: install it with 'sudo apt install libnvinfer-bin', or set TRTEXEC" >&2
    exit 2
fi

{plugins}\
# The first line it prints reads '... [TensorRT v100300] ...': two digits each from version 10 on.
number=$("$trtexec" --help 2>&1 | sed -n 's/.*\\[TensorRT v\\([0-9]*\\)\\].*/\\1/p' | head -n 1)
if [ -z "$number" ]; then
    echo "cannot tell the TensorRT version of $trtexec" >&2
    exit 2
fi
if [ "$number" -lt {_number(oldest)} ]; then
    echo "this model needs {needed}; $trtexec is of TensorRT v$number" >&2
    exit 2
fi
major=$((number / 10000))
minor=$((number / 100 % 100))

# The graph says the precision of every tensor. TensorRT 10 has to be told; 11 knows no other way.
typed=
if [ "$major" -lt {parse_version(TENSORRT.strongly_typed.only_since)[0]} ]; then typed={_TYPED}; fi

model={shlex.quote(model)}
{cut}mkdir -p engine
engine=engine/model.trt$major.$minor.engine
trap 'rm -f "$engine.part"' EXIT
trap 'exit 130' INT TERM HUP
"$trtexec" --onnx="$model" {arguments} --saveEngine="$engine.part" $typed{flag} \\
    --profilingVerbosity=detailed --skipInference "$@"
mv "$engine.part" "$engine"
# `tcompile verify` tells by it that the engine is whole, and made here.
sha256sum "$engine" > "$engine{_DIGEST}" || rm -f "$engine{_DIGEST}"
echo "$engine"
"""


def _number(version: str) -> int:
    """Return a version as trtexec writes it: two digits each."""
    major, minor = parse_version(version)
    return 10000 * major + 100 * minor


_SCRIPT_PLUGINS = """\
plugins=${{PLUGINS:-{0}}}
if ! [ -f "$plugins" ]; then
    echo "no plugin library at $plugins: build it (README.txt says how), or set PLUGINS" >&2
    exit 2
fi

"""
_SCRIPT_CUT = """\
# Before TensorRT {3} a function in the file goes before a plugin. Ours are the end of the file.
if [ "$number" -lt {4} ]; then
    head -c {0} {1} > {2}
    model={2}
fi

"""
_README_PLUGINS = f"""
Its token ops are plugins of tcompile. The library that holds them, {PLUGINS}, has to be built once,
on the device or for it:

  tcompile plugins build -o plugins        or, without Python, with CMake and nvcc:
  cmake -S SOURCES -B /tmp/plugins && cmake --build /tmp/plugins
  mkdir -p plugins && cp /tmp/plugins/{LIBRARY} plugins/

where SOURCES is the folder `plugins` of tcompile. The engine needs the library whenever it is
loaded: trtexec --loadEngine=ENGINE --dynamicPlugins={PLUGINS}, or in an application
getPluginRegistry()->loadLibrary(PATH) before deserializeCudaEngine.
From TensorRT {first_with_plugins_first()} on the same model builds without it too (the bodies of
its functions run then): omit --dynamicPlugins.
"""


def _batches(inputs: tuple[TensorInfo, ...], batch: Batch) -> str:
    if not shape_flags(inputs, batch):
        return ""
    low, middle, high = batch.sizes
    return f"It takes batches of {low} to {high}, and is tuned for {middle}.\n"


def _readme(target: Target, commands: tuple[Line, ...], plugins: bool, batches: str) -> str:
    same: dict[str, list[JetPack]] = {}
    for line in commands:
        same.setdefault(line.text, []).append(line.jetpack)
    shown = "\n\n".join(
        f"JetPack {', '.join(each.jetpack for each in packs)} (TensorRT {packs[0].tensorrt})\n"
        + "".join(f"  {each.note}\n" for each in packs if each.note)
        + f"  {text}"
        for text, packs in same.items()
    )
    return f"""\
A model for {target.title}, compiled by tcompile.

Copy this folder to the device and run, in it,

  sh {SCRIPT}

It finds trtexec, sees which TensorRT it belongs to, and writes engine/model.trtX.Y.engine.
It needs {_least(commands)[1]}.
An engine runs only on the TensorRT version and the kind of device that built it.
{batches}{_README_PLUGINS if plugins else ""}
Or run trtexec by hand, from this folder, after `mkdir -p engine; rm -f engine/*{_DIGEST}`:

{shown}

To measure, with the clocks locked (sudo nvpmodel -m 0; sudo jetson_clocks):

  TensorRT 10:  trtexec --loadEngine=ENGINE --noDataTransfers --useSpinWait --useCudaGraph
  TensorRT 11:  trtexec --loadEngine=ENGINE
"""
