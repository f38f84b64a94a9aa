"""The texts of a Jetson bundle: its scripts and its README."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from tcompile.plugins.build import LIBRARY
from tcompile.targets.backends.jetson_versions import (
    ASKED_OF_BUILD,
    fits_words,
    layer_flags,
    plugin_flags,
)
from tcompile.targets.compatibility import NONE, Compatibility
from tcompile.targets.devices import Target
from tcompile.targets.versions import (
    TENSORRT,
    Container,
    JetPack,
    containers_for,
    first_with_plugins_first,
    parse_version,
)

SCRIPT, README, LINES = "build_engine.sh", "README.txt", "trtexec.json"
CHECK_SCRIPT, PLUGIN_SCRIPT = "check.sh", "build_plugins.sh"
#: Where the bundle looks for our plugin library, where its sources lie, and what the model without
#: the bodies of token ops is called, for a TensorRT whose parser takes those before plugins.
PLUGINS, SOURCES, BARE = f"plugins/{LIBRARY}", "plugins/source", "model.plugin.onnx"
DIGEST = ".sha256"
#: Holds what kind of board filled the folder.
BOARD_FILE = "engine/board"
TYPED = "--stronglyTyped"
#: How trtexec measures the GPU alone, without copies, by a CUDA graph: told so before version 11,
#: where it is what it does.
MEASURE = ("--noDataTransfers", "--useSpinWait", "--useCudaGraph")

_HEAD = """\
#!/bin/sh
# {what}
set -eu
{first}cd "$(dirname "$0")"

"""
#: Finds trtexec, while the folder is still the caller's: TRTEXEC is a path or a name on PATH.
LOCATE = """\
trtexec=$(command -v "${TRTEXEC:-trtexec}" || echo "${TRTEXEC:-/usr/src/tensorrt/bin/trtexec}")
case "$trtexec" in /*) ;; *) trtexec=$PWD/$trtexec ;; esac
"""
#: Sees to its version. The first line it prints reads '... [TensorRT v100300] ...': two
#: digits each from version 10 on.
FIND = """\
if ! [ -f "$trtexec" ] || ! [ -x "$trtexec" ]; then
    echo "no trtexec at $trtexec: sudo apt install libnvinfer-bin, or set TRTEXEC" >&2
    exit 2
fi
told=$("$trtexec" --help 2>&1 || true)
number=$(printf '%s\\n' "$told" | sed -n 's/.*\\[TensorRT v\\([0-9]*\\)\\].*/\\1/p' | head -n 1)
if [ -z "$number" ]; then
    printf '%s\\n' "$told" | head -n 5 >&2
    echo "cannot tell the TensorRT version of $trtexec, which says the above" >&2
    exit 2
fi
"""
#: Sets `board`, empty where the device does not tell, and starts anew where `engine/` was filled on
#: another kind of board, or not said by which: trtexec itself takes timings of any.
BOARD = """\
board=$(cat /proc/device-tree/model 2> /dev/null | tr -cd A-Za-z0-9 || true)
mkdir -p engine
if [ "$(cat {0} 2> /dev/null || echo unknown)" != "$board" ]; then
    rm -f {1}
    echo "$board" > {0}
fi
"""
VERSION = """\
major=$((number / 10000))
minor=$((number / 100 % 100))

# The graph says the precision of every tensor. TensorRT 10 has to be told; 11 knows no other way.
typed=
if [ "$major" -lt {only_since} ]; then typed={typed}; fi
"""
_PLUGINS_HERE = """\
plugins=${{PLUGINS:-{0}}}
if ! [ -f "$plugins" ]; then
    echo "no plugin library at $plugins: sh {1} builds it, or set PLUGINS" >&2
    exit 2
fi

"""
_CUT = """\
# Before TensorRT {3} a function in the file goes before a plugin. Ours are the end of the file.
if [ "$number" -lt {4} ]; then
    head -c {0} {1} > {2}
    model={2}
fi

"""
_NO_DLA = """\
for each in "$@"; do
    case "$each" in
    --useDLACore=* | --buildDLAStandalone | --layerDeviceTypes=*DLA*)
        echo "$each: {0}" >&2
        exit 2
        ;;
    --hardwareCompatibilityLevel=*)
        echo "$each: TensorRT has no such engines on JetPack; build on each kind of device" >&2
        exit 2
        ;;
    --versionCompatible | --vc | --excludeLeanRuntime)
        echo "$each: {1}" >&2
        exit 2
        ;;
    esac
done

"""


def why_no_dla() -> str:
    """The reason why no engine is built for the DLA, in a sentence."""
    there = "; ".join(
        f"{row.since} to before {row.before} on {row.devices}"
        if row.before
        else f"{row.since} and newer on {row.devices}"
        for row in TENSORRT.dla
    )
    return (
        "the DLA is for convolutional networks: what chooses tokens (TopK, Gather) is not among "
        "its layers, so that the model would run in pieces, there and on the GPU. TensorRT has a "
        f"DLA from {there}"
    )


def number(version: str) -> int:
    """A version as trtexec writes it: two digits each."""
    major, minor = parse_version(version)
    return 10000 * major + 100 * minor


def version_test() -> str:
    """Lines of a script that set `major`, `minor` and `typed`."""
    only_since = parse_version(TENSORRT.strongly_typed.only_since)[0]
    return VERSION.format(only_since=only_since, typed=TYPED)


def build_script(
    model: str,
    arguments: Sequence[str],
    bodies_from: int | None,
    oldest: str,
    needed: str,
    wanted: Compatibility = NONE,
) -> str:
    """The script that builds the engine on the device.

    Args:
        arguments: for trtexec, of all versions.
        bodies_from: see `jetson.lines`.
        oldest, needed: the oldest TensorRT that will do, and the same in words.
        wanted: what the engine is compatible with; the arguments have its flags.
    """
    plugins = "" if bodies_from is None else _PLUGINS_HERE.format(PLUGINS, PLUGIN_SCRIPT)
    cut, flag = "", ""
    if bodies_from is not None:
        first = first_with_plugins_first()
        cut = _CUT.format(bodies_from, shlex.quote(model), BARE, first, number(first))
        flag = "".join(f" {name}" for name in plugin_flags(wanted, '"$plugins"'))
    layers = "".join(f'"{name}" ' for name in layer_flags(wanted, "engine/model.trt$major.$minor"))
    head = _HEAD.format(
        what=f"Builds engine/model.trtX.Y.engine from {model} with the TensorRT of this Jetson.\n"
        "# Further arguments go to trtexec as they are. TRTEXEC=/path/to/trtexec chooses another\n"
        "# one. A second build is faster: what kernels took is in engine/timing.trtX.Y.cache,\n"
        "# for the kind of board in engine/board.",
        first=LOCATE,
    )
    return f"""\
{head}{_NO_DLA.format(why_no_dla(), ASKED_OF_BUILD)}{FIND}
{plugins}\
if [ "$number" -lt {number(oldest)} ]; then
    echo "this model needs {needed}; $trtexec is of TensorRT v$number" >&2
    exit 2
fi
{version_test()}
model={shlex.quote(model)}
{cut}{BOARD.format(BOARD_FILE, "engine/timing.*")}engine=engine/model.trt$major.$minor.engine
trap 'rm -f "$engine.part"' EXIT
trap 'exit 130' INT TERM HUP
"$trtexec" --onnx="$model" {" ".join(shlex.quote(each) for each in arguments)} \\
    --saveEngine="$engine.part" --timingCacheFile="engine/timing.trt$major.$minor.cache" \\
    {layers}$typed{flag} --skipInference "$@"
rm -f "$engine{DIGEST}"
mv "$engine.part" "$engine"
# `tcompile verify` tells by it that the engine is whole, and made here.
sha256sum "$engine" > "$engine{DIGEST}" || rm -f "$engine{DIGEST}"
echo "$engine"
"""


def check_script() -> str:
    """The script that runs the engine on stored inputs and compares what it gives."""
    return (
        _HEAD.format(
            what="Runs the engine on the inputs in checks/ and compares with what it should give.\n"
            "# sh check.sh --onnx runs model.onnx in ONNX Runtime instead, on any machine.\n"
            "# Exit codes: 0 as it should be; 1 an output is not; 2 it cannot be run.",
            first="",
        )
        + """\
python=${PYTHON:-python3}
if ! command -v "$python" > /dev/null; then
    echo "no $python found: set PYTHON" >&2
    exit 2
fi
exec "$python" checks/check.py "$@"
"""
    )


def plugin_script(target: Target) -> str:
    """The script that builds the plugin library from the sources in the bundle."""
    architecture = (target.compute_capability or "").replace(".", "")
    return (
        _HEAD.format(
            what=f"Builds {PLUGINS} from {SOURCES}, with CMake 3.24 or newer and nvcc.\n"
            "# Further arguments go to cmake: -DTENSORRT_ROOT=DIR names where TensorRT lies.",
            first="",
        )
        + f"""\
PATH=$PATH:/usr/local/cuda/bin
for tool in cmake nvcc; do
    if ! command -v $tool > /dev/null; then
        echo "no $tool found: pip install cmake; nvcc is in JetPack's CUDA toolkit" >&2
        exit 2
    fi
done
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT TERM HUP
cmake -S {SOURCES} -B "$folder" -DCMAKE_BUILD_TYPE=Release \\
    -DCMAKE_CUDA_ARCHITECTURES={architecture} "$@"
cmake --build "$folder"
cp "$folder/{LIBRARY}" {PLUGINS}
echo {PLUGINS}
"""
    )


def _plugins_words(compatibility: Compatibility) -> str:
    return _README_PLUGINS + (_PLUGINS_INSIDE if compatibility.plugins else _PLUGINS_APART)


_README_PLUGINS = f"""
Its token ops are plugins of tcompile. The library that holds them, {PLUGINS}, has to be built once,
on the device: its sources are here, in {SOURCES}.

  sh {PLUGIN_SCRIPT}                     or, with tcompile:  tcompile plugins build -o plugins
"""
_PLUGINS_INSIDE = """
The library is put into the engine (--setPluginsToSerialize), which is loaded without it.
"""
_PLUGINS_APART = f"""
The engine needs the library whenever it is loaded:
trtexec --loadEngine=ENGINE --dynamicPlugins={PLUGINS}, or in an application
getPluginRegistry()->loadLibrary(PATH) before deserializeCudaEngine.
From TensorRT {first_with_plugins_first()} on the same model builds without it too (the bodies of
its functions run then): omit --dynamicPlugins.
"""


def readme(
    target: Target,
    shown: Sequence[tuple[tuple[JetPack, ...], str]],
    needed: str,
    *,
    plugins: bool,
    batches: str,
    shapes: Sequence[str],
    compatibility: Compatibility = NONE,
) -> str:
    """The README of a bundle.

    Args:
        shown: JetPacks with the same command, and it.
        needed: the TensorRT that it needs, in words.
        batches: a line on batch sizes; may be empty.
        shapes: flags for trtexec where it runs the engine.
        compatibility: what the engine is compatible with.
    """
    lines = "\n\n".join(
        f"JetPack {', '.join(each.jetpack for each in packs)} (TensorRT {packs[0].tensorrt})\n"
        + "".join(f"  {each.note}\n" for each in packs if each.note)
        + f"  {text}"
        for packs, text in shown
    )
    apart = plugins and not compatibility.plugins
    library = f" --dynamicPlugins={PLUGINS}" if apart else ""
    library += " --versionCompatible" if compatibility.version else ""
    run = " ".join([f"--loadEngine=ENGINE{library}", *(shlex.quote(each) for each in shapes)])
    return f"""\
A model for {target.title}, compiled by tcompile.

Copy this folder to the device and run, in it,

  sh {SCRIPT}            and then        sh {CHECK_SCRIPT}

The first finds trtexec, sees which TensorRT it belongs to, and writes engine/model.trtX.Y.engine.
It needs {needed}.
{fits_words(compatibility)}
The second runs the engine on the inputs in checks/ and compares with what the model gives in fp32,
output by output. It needs python3 with numpy and TensorRT's package: apt install python3-libnvinfer
{batches}{_plugins_words(compatibility) if plugins else ""}
Or run trtexec by hand, from this folder, after
`mkdir -p engine; rm -f engine/*{DIGEST} {BOARD_FILE} engine/timing.*`:

{lines}

To measure, with the clocks locked (sudo nvpmodel -m 0; sudo jetson_clocks):

  TensorRT 10:  trtexec {run} {" ".join(MEASURE)} --exportTimes=times.json
  TensorRT 11:  trtexec {run} --exportTimes=times.json

So that tcompile plans with what this device takes, where tcompile is installed:

  tcompile profile MODEL --target {target.name} --kit DIR

No DLA: {why_no_dla()}.
{_in_containers(containers_for(target))}"""


def _in_containers(containers: Sequence[Container]) -> str:
    """Lines for Docker; empty where no image is known."""
    if not containers:
        return ""
    shown = "\n".join(
        f"\n  {each.line(f'sh {SCRIPT}')}\n"
        f"  # TensorRT {each.tensorrt}, JetPack {', '.join(each.jetpacks)}; {each.note}"
        for each in containers
    )
    return f"""
In a container (with NVIDIA's Container Toolkit on the host). tcompile's tests do not run these:
images and options are from other projects; targets/devices/_containers.json of tcompile names them.
{shown}
"""
