"""Builds the plugin library with kernels for the host, and calls it as TensorRT would.

TCOMPILE_TENSORRT_INCLUDE names folders with TensorRT's headers (NvInferRuntime.h), with `:` between
them; they are not ours to ship. What is built is all of `plugins/trt`, and the kernels by their
host shim.
"""

from __future__ import annotations

import _ctypes
import ctypes
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.gpu import host_build
from benchmarks.gpu.cases import Case
from benchmarks.gpu.library import TYPES
from tcompile._version import __version__
from tcompile.plugins.check import specification_digest
from tcompile.plugins.ops import OPS
from tcompile.plugins.spec import Array, TokenOp
from tests.unit.plugins.on_host import pack, unpack

ENV = "TCOMPILE_TENSORRT_INCLUDE"
SOURCES = host_build.CUDA.parent / "trt"
_PROBE = Path(__file__).parent / "trt_probe.cpp"
#: Kinds of fields that `probe_create` makes.
INT32, INT64, FLOAT32, NOTHING = range(4)


def includes() -> list[Path]:
    """The folders with headers."""
    return [Path(p) for p in os.environ.get(ENV, "").split(os.pathsep) if p]


def cuda_include() -> Path | None:
    """Return where cuda_runtime_api.h lies: a toolkit, or one of the wheels."""
    nvcc = shutil.which("nvcc")
    wheels = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    places = [
        *([Path(nvcc).resolve().parent.parent / "include"] if nvcc else []),
        Path("/usr/local/cuda/include"),
        *sorted(wheels.glob("*/include")),
    ]
    return next((p for p in places if (p / "cuda_runtime_api.h").is_file()), None)


def build_objects(folder: Path) -> None:
    """The kernels for the host, once for all versions of TensorRT."""
    for name in host_build.SOURCES:
        host_build.compile_one(host_build.CUDA / name, folder, optimise="-O0")


def major(include: Path) -> int:
    """Version of the TensorRT that the headers are of."""
    text = (include / "NvInferVersion.h").read_text()
    found = re.search(r"#define (?:NV_TENSORRT_MAJOR|TRT_MAJOR_ENTERPRISE) +(\d+)", text)
    assert found
    return int(found[1])


def build_plugins(folder: Path, kernels: Path, include: Path) -> tuple[Path, Path, Path]:
    """The plugin library, the probe, and an empty libnvinfer, by the headers in a folder."""
    cuda = cuda_include()
    assert cuda is not None, "cuda_runtime_api.h is nowhere"
    version = major(include)
    info = (SOURCES / "build_info.h.in").read_text()
    for name, value in {
        "PACKAGE": __version__,
        "TENSORRT": f"{version}.0.0",
        "CUDA": "0",
        "ARCHITECTURES": "host",
        "SPECIFICATION": specification_digest(),
        "OPS": " ".join(op.name for op in OPS),
    }.items():
        info = info.replace(f"@TC_BUILD_{name}@", value)
    (folder / "build_info.h").write_text(info)
    common = [
        host_build.compiler() or "g++",
        "-std=c++17",
        "-fPIC",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-shared",
        "-fvisibility=hidden",
        "-isystem",
        str(include),
        "-isystem",
        str(cuda),
        "-I",
        str(host_build.CUDA),
        "-I",
        str(SOURCES),
        "-I",
        str(folder),
    ]
    library, probe = folder / "libtcompile_plugins.so", folder / "libprobe.so"
    name = f"libnvinfer.so.{version}"
    own = sorted(map(str, SOURCES.glob("*.cpp")))
    for command in (
        [
            *common,
            *own,
            *map(str, sorted(kernels.glob("*.o"))),
            "-ldl",
            "-Wl,--no-undefined",
            f"-Wl,--version-script={SOURCES / 'exports.map'}",
            "-o",
            str(library),
        ],
        [*common, str(_PROBE), str(SOURCES / "call.cpp"), "-o", str(probe)],
        [*common, "-x", "c++", os.devnull, f"-Wl,-soname={name}", "-o", str(folder / name)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return library, probe, folder / name


class CProbe(ctypes.Structure):
    """`probe_tensor`."""

    _fields_ = [(n, ctypes.c_int32) for n in ("type", "format", "rank", "symbolic")] + [
        (n, ctypes.c_int64 * 8) for n in ("dims", "min", "opt", "max")
    ]


def tensor(
    shape: Sequence[int],
    kind: str = "f32",
    *,
    layout: int = 0,
    symbolic: bool = False,
    bounds: tuple[Sequence[int], ...] | None = None,
) -> CProbe:
    """A tensor as TensorRT describes it.

    Args:
        kind: element type, as in `library.TYPES`; `fp8` is one that no op takes.
        layout: nvinfer1::TensorFormat; 0 is linear.
        bounds: min, opt and max of the profile; all the shape itself by default.
    """
    made = CProbe(TYPES.get(kind, -1), layout, len(shape), symbolic)
    given = (shape, *(bounds or [shape] * 3))
    for name, sizes in zip(("dims", "min", "opt", "max"), given, strict=True):
        getattr(made, name)[: len(sizes)] = list(sizes)
    return made


def array(tensors: Sequence[CProbe]) -> ctypes.Array[CProbe]:
    """As C takes them."""
    return (CProbe * max(len(tensors), 1))(*tensors)


@dataclass
class Plugins:
    """A library of plugins and what stands in for TensorRT."""

    path: Path
    probe_path: Path
    tensorrt: Path
    probe: ctypes.CDLL = field(init=False)
    _library: ctypes.CDLL = field(init=False)

    def __post_init__(self) -> None:
        self._library, self.probe = ctypes.CDLL(str(self.path)), ctypes.CDLL(str(self.probe_path))
        for name in ("create", "again", "clone", "attach"):
            getattr(self.probe, f"probe_{name}").restype = ctypes.c_void_p
        for name in ("about", "log"):
            getattr(self.probe, f"probe_{name}").restype = ctypes.c_char_p
        self.probe.probe_workspace.restype = ctypes.c_uint64
        self.listen()

    def listen(self) -> None:
        """Give the library our logger."""
        # By its name the library knows that a finder of loggers has the layout it expects.
        tensorrt = ctypes.CDLL(str(self.tensorrt))
        self.probe.probe_listen(self._library.setLoggerFinder)
        _ctypes.dlclose(tensorrt._handle)

    def log(self) -> str:
        """Return what the plugins said since the last call, but for details."""
        lines = str(self.probe.probe_log().decode()).splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("4 "))

    def create(
        self, name: str, fields: Sequence[tuple[str, int, int, int]], phase: int = 0
    ) -> ctypes.c_void_p | None:
        """A plugin from fields (name, kind, value, length), or None where it was refused."""
        n = len(fields)
        names, kinds, values, lengths = zip(*fields, strict=True) if fields else ((), (), (), ())
        made = self.probe.probe_create(
            self._library.getCreators,
            name.encode(),
            n,
            (ctypes.c_char_p * max(n, 1))(*[each.encode() for each in names]),
            (ctypes.c_int32 * max(n, 1))(*kinds),
            (ctypes.c_int64 * max(n, 1))(*values),
            (ctypes.c_int32 * max(n, 1))(*lengths),
            phase,
        )
        return ctypes.c_void_p(made) if made else None

    @contextmanager
    def plugin(self, op: TokenOp, numbers: Mapping[str, int]) -> Iterator[ctypes.c_void_p]:
        """A plugin with the fields of a legal call."""
        made = self.create(op.name, [(f"plugin_{f}", INT32, numbers[f], 1) for f in op.fields])
        assert made is not None, self.log()
        try:
            yield made
        finally:
            self.probe.probe_destroy(made)

    def again(self, plugin: ctypes.c_void_p) -> ctypes.c_void_p:
        """Return what a plan makes of the plugin's fields."""
        return ctypes.c_void_p(self.probe.probe_again(self._library.getCreators, plugin))

    def about(self, plugin: ctypes.c_void_p) -> list[str]:
        """Name, version, namespace, number of outputs, timing cache id, kept fields."""
        return str(self.probe.probe_about(plugin).decode()).split("|")


def run_case(plugins: Plugins, plugin: ctypes.c_void_p, case: Case) -> tuple[Array, ...]:
    """Return what `enqueue` makes of a case."""
    op, kinds = case.op, case.types
    stored = [pack(a, kinds[t.kind]) for a, t in zip(case.inputs, op.takes, strict=True)]
    shapes = op.shapes(tuple(a.shape for a in case.inputs), case.numbers)
    results = [
        np.full(s, 0x7B, pack(np.zeros(1), kinds[t.kind]).dtype)
        for s, t in zip(shapes, op.gives, strict=True)
    ]
    ins = array(
        [tensor(a.shape, kinds[t.kind]) for a, t in zip(case.inputs, op.takes, strict=True)]
    )
    outs = array([tensor(s, kinds[t.kind]) for s, t in zip(shapes, op.gives, strict=True)])
    counts = (len(op.takes), ins, len(op.gives), outs)
    size = plugins.probe.probe_workspace(plugin, *counts)
    space = np.zeros(size + 16, np.uint8)
    start = space.ctypes.data + -space.ctypes.data % 16
    status = plugins.probe.probe_run(
        plugin,
        *counts,
        (ctypes.c_void_p * 8)(*[a.ctypes.data for a in stored]),
        (ctypes.c_void_p * 8)(*[a.ctypes.data for a in results]),
        ctypes.c_void_p(start),
    )
    assert status == 0, plugins.log()
    return tuple(unpack(a, kinds[t.kind]) for a, t in zip(results, op.gives, strict=True))
