"""Checks of a plugin library: is it that of tcompile, for this machine, of this specification?

They read the file.

One that does not fit would be refused by TensorRT with a word about a creator that is missing, or
worse, taken. So it is checked before anything loads it, and nothing in it is run.
"""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from pathlib import Path

from tcompile._version import __version__
from tcompile.core.errors import UsageError
from tcompile.plugins.elf import ElfError, SharedLibrary, read_library
from tcompile.plugins.header import header
from tcompile.plugins.ops import OPS
from tcompile.plugins.spec import API_VERSION, PLUGIN_VERSION

VERSION, TABLE = "tcompile_plugins_version", "tcompile_plugins_table"
#: What TensorRT calls, and what our own tools do.
SYMBOLS = (
    "getCreators",
    "setLoggerFinder",
    "tc_api_version",
    "tc_op_find",
    "tc_infer",
    "tc_check",
    "tc_workspace",
    "tc_launch",
)


@dataclass(frozen=True)
class LibraryReport:
    """The facts of a plugin library.

    Attributes:
        path: the file.
        machine: what it runs on, such as `aarch64`.
        facts: what it says it was built from: package, plugin, api, tensorrt, cuda, architectures,
            specification (SHA-256 of the generated header). Empty where it is not that of tcompile.
        ops: names of its plugins.
        needed: libraries that it loads.
        problems: why it must not be loaded; empty where it may. Each a sentence.
        notes: what is worth knowing, and does no harm.
    """

    path: Path
    machine: str
    facts: dict[str, str]
    ops: tuple[str, ...]
    needed: tuple[str, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        return {
            "path": str(self.path),
            "machine": self.machine,
            **{key: self.facts.get(key, "") for key in _FACTS},
            "ops": list(self.ops),
            "needed": list(self.needed),
            "problems": list(self.problems),
            "notes": list(self.notes),
        }

    def text(self) -> str:
        """For people: some lines."""
        facts = self.facts
        lines = [f"{self.path}: for {self.machine}"]
        if facts:
            lines += [
                f"built by tcompile {facts.get('package', '?')} with TensorRT "
                f"{facts.get('tensorrt', '?')} and CUDA {facts.get('cuda', '?')}, "
                f"for GPU architectures {facts.get('architectures', '?')}",
                f"{len(self.ops)} plugins of version {facts.get('plugin', '?')}; "
                f"needs {', '.join(self.needed) or 'no library'}",
            ]
        lines += [f"problem: {text}" for text in self.problems]
        lines += [f"note: {text}" for text in self.notes]
        return "\n".join(lines if self.problems else [*lines, "nothing wrong"])


_FACTS = ("package", "plugin", "api", "tensorrt", "cuda", "architectures", "specification")


def check_library(
    path: str | Path,
    *,
    machine: str | None = None,
    tensorrt: tuple[int, int] | None = None,
    architecture: int | None = None,
) -> LibraryReport:
    """Check a plugin library, without loading it.

    Args:
        machine: what it must run on, as `platform.machine()` has it; this machine by default.
        tensorrt: (major, minor) of the TensorRT that is to load it, where that is known.
        architecture: of the GPU, such as 87, where that is known.

    Raises:
        UsageError: there is no such file, or it is not a shared library.
    """
    path = Path(path)
    try:
        library = read_library(path)
    except ElfError as error:
        raise UsageError(f"{error}, so no plugin library", where=str(path)) from error
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(path)) from error
    facts = _facts(library)
    ops = tuple((library.text(TABLE) or "").split())
    problems = _wrong_machine(library, machine or platform.machine())
    if facts:
        problems += [
            *_wrong_symbols(library),
            *_wrong_version(facts, ops),
            *(_wrong_tensorrt(facts, tensorrt) if tensorrt else []),
            *(_wrong_architecture(facts, architecture) if architecture else []),
        ]
    else:
        problems.append(f"it has no {VERSION}: not a plugin library of tcompile")
    notes = []
    if facts and facts.get("package") != __version__:
        notes.append(f"built by tcompile {facts.get('package')}, this is {__version__}")
    return LibraryReport(
        path, library.machine, facts, ops, library.needed, tuple(problems), tuple(notes)
    )


def require_library(path: str | Path, *, tensorrt: tuple[int, int] | None = None) -> LibraryReport:
    """`check_library`, for who wants to load it on this machine.

    Raises:
        UsageError: as there, or something is wrong with it; says what.
    """
    report = check_library(path, tensorrt=tensorrt)
    if report.problems:
        raise UsageError(
            report.problems[0], where=str(path), hint="`tcompile plugins check` says all"
        )
    return report


def specification_digest() -> str:
    """SHA-256 of the specification as the kernels and plugins are built from it."""
    return hashlib.sha256(header().encode()).hexdigest()


def _facts(library: SharedLibrary) -> dict[str, str]:
    words = (library.text(VERSION) or "").split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def _wrong_machine(library: SharedLibrary, machine: str) -> list[str]:
    wanted = {"arm64": "aarch64", "AMD64": "x86_64"}.get(machine, machine)
    if library.machine == wanted:
        return []
    return [f"it is for {library.machine}, this machine is {wanted}: build it there"]


def _wrong_symbols(library: SharedLibrary) -> list[str]:
    missing = [name for name in SYMBOLS if name not in library.exported]
    return [f"it does not export {', '.join(missing)}"] if missing else []


def _wrong_version(facts: dict[str, str], ops: tuple[str, ...]) -> list[str]:
    problems = []
    for key, name, want in (
        ("plugin", "its plugins are of version", PLUGIN_VERSION),
        ("api", "its interface is of version", str(API_VERSION)),
    ):
        if facts.get(key) != want:
            problems.append(f"{name} {facts.get(key, 'none')}, not {want}: build it anew")
    missing = [op.name for op in OPS if op.name not in ops]
    if missing:
        problems.append(f"it has no {', '.join(missing)}: build it anew")
    elif facts.get("specification") != specification_digest():
        problems.append("it was built from another specification of the ops: build it anew")
    return problems


def _wrong_tensorrt(facts: dict[str, str], tensorrt: tuple[int, int]) -> list[str]:
    built = facts.get("tensorrt", "?")
    if built.split(".")[0] == str(tensorrt[0]):
        return []
    return [f"it was built for TensorRT {built}, not {tensorrt[0]}.{tensorrt[1]}"]


def _wrong_architecture(facts: dict[str, str], architecture: int) -> list[str]:
    """Machine code runs on the same major version from its minor on; PTX on everything newer."""
    listed = facts.get("architectures", "")
    for entry in listed.split(","):
        number, _, form = entry.partition("-")
        if not number.rstrip("af").isdigit():  # native, all: whatever the builder's machine said
            return []
        built = int(number.rstrip("af"))
        exact = number[-1] in "af"
        runs = built == architecture if exact else built <= architecture
        same = built // 10 == architecture // 10
        if runs and (same if form == "real" else True):
            return []
    return [f"it has no code for GPU architecture {architecture}, only {listed}"]
