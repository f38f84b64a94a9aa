"""The Python API of TensorRT by version: which classes, members and constants there are.

pip download --no-deps -d DIR tensorrt-cu12-bindings==10.3.0     # one for each version
python -m tools.tensorrt_api DIR > tests/support/tensorrt/api.json

The wheels hold the bindings without TensorRT's libraries. The few functions that the extension
module wants of those are made here, each returning nothing, so that it can be imported and listed:
nothing can be built or run this way. TensorRT-RTX, which is whole, is listed as it is installed.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

#: Those that our code uses, and enumerations whose members it names.
CLASSES = [
    "Builder",
    "BuilderFlag",
    "ComputeCapability",
    "CudaGraphStrategy",
    "DataType",
    "EngineInspector",
    "HardwareCompatibilityLevel",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IPluginRegistry",
    "IProgressMonitor",
    "IRuntimeConfig",
    "ITensor",
    "ITimingCache",
    "LayerInformationFormat",
    "Logger",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "ParserError",
    "ProfilingVerbosity",
    "Runtime",
    "TensorIOMode",
]


def listed(module: ModuleType) -> dict[str, list[str]]:
    """Return class → members that are no secret; under an empty name what the module has."""
    names = [n for n in dir(module) if not n.startswith("_")]
    found = {"": names}
    for name in CLASSES:
        kind = getattr(module, name, None)
        if kind is not None:
            found[name] = [n for n in dir(kind) if not n.startswith("_") or n == "__init__"]
    return found


def of_wheel(wheel: Path, folder: Path) -> dict[str, list[str]]:
    """List the bindings of a wheel, in a process of its own."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    (extension,) = folder.glob("tensorrt_bindings/tensorrt*.so")
    symbols = _output("nm", "-D", "--undefined-only", str(extension))
    wanted = re.findall(
        r" U ((?:create|get|init)\w+(?:_INTERNAL|Registry|Version|Plugins))$", symbols, re.M
    )
    needed = re.findall(
        r"NEEDED\s+(lib(?:nv|cu)\w+\.so\.\d+)", _output("objdump", "-p", str(extension))
    )
    source = folder / "stub.c"
    source.write_text("".join(f"void* {name}(void) {{ return 0; }}\n" for name in wanted))
    for library in needed:
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-o", str(folder / library), str(source)], check=True
        )
    program = (
        "import json, tensorrt_bindings as trt\n"
        "from tools.tensorrt_api import listed\n"
        "print(json.dumps(listed(trt)))"
    )
    root = str(Path(__file__).resolve().parents[1])
    paths = {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": f"{folder}{os.pathsep}{root}"}
    found: dict[str, list[str]] = json.loads(
        _output(sys.executable, "-W", "ignore", "-c", program, env={**os.environ, **paths})
    )
    return found


def table(wheels: Path) -> dict[str, Any]:
    """Return version → class → members."""
    found: dict[str, dict[str, list[str]]] = {}
    for wheel in sorted(wheels.rglob("*.whl"), key=_version):
        with tempfile.TemporaryDirectory() as folder:
            found[".".join(map(str, _version(wheel)))] = of_wheel(wheel, Path(folder))
    rtx = importlib.import_module("tensorrt_rtx")
    found[f"rtx {rtx.__version__}"] = listed(rtx)
    names = sorted({n for classes in found.values() for n in classes})
    return {
        "source": "bindings of tensorrt-cu12-bindings and tensorrt_rtx, by tools/tensorrt_api.py",
        "versions": list(found),
        "classes": {name: _by_member(name, found) for name in names},
    }


def _by_member(name: str, found: dict[str, dict[str, list[str]]]) -> dict[str, list[str]]:
    """Member → the versions that have it; nothing where all do that have the class."""
    there = [v for v in found if name in found[v]]
    members = sorted({m for v in there for m in found[v][name]})
    rows = {m: [v for v in there if m in found[v][name]] for m in members}
    return {m: [] if len(there) == len(found) == len(v) else v for m, v in rows.items()}


def text(wheels: Path) -> str:
    """Return the file, a line for each class."""
    found = table(wheels)
    classes = ",\n".join(f'  "{k}": {json.dumps(v)}' for k, v in found["classes"].items())
    head = ",\n".join(f' "{k}": {json.dumps(found[k])}' for k in ("source", "versions"))
    return f'{{\n{head},\n "classes": {{\n{classes}\n }}\n}}\n'


def _version(wheel: Path) -> tuple[int, ...]:
    return tuple(int(n) for n in wheel.name.split("-")[1].split(".") if n.isdecimal())


def _output(*command: str, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, encoding="utf-8", env=env
    )
    return done.stdout


if __name__ == "__main__":
    print(text(Path(sys.argv[1])), end="")
