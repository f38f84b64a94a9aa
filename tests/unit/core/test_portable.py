"""Windows and Python 3.10: what they lack is not used when a module is imported, and only where
it is asked for first elsewhere. Neither is run here; names are hidden and sources are read."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FOLDERS = ("tcompile", "passes", "plugins", "targets", "models")
#: Modules and names that Windows does not have.
MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix")
NAMES = {
    "os": (
        *("sched_getaffinity", "getuid", "geteuid", "getgid", "fork", "mkfifo", "statvfs"),
        *("getloadavg", "uname", "setsid", "killpg", "getpgid", "wait4", "O_NONBLOCK", "chown"),
        *("O_NOFOLLOW", "O_DIRECTORY", "O_CLOEXEC", "sysconf", "nice", "pread", "posix_fadvise"),
    ),
    "signal": ("SIGKILL", "SIGHUP", "SIGALRM", "SIGPIPE", "SIGUSR1", "alarm", "pthread_kill"),
    "time": ("tzset",),
    "socket": ("AF_UNIX",),
}
#: Files that use such a name, and ask first whether it is there.
ASKED = {"tcompile/core/machine.py", "tcompile/core/drafts.py"}


@cache
def sources() -> list[tuple[str, ast.Module]]:
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return [
        (path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8")))
        for path in paths
    ]


HIDING = """
import importlib, os, signal, socket, sys, time
import asyncio, concurrent.futures, ctypes, multiprocessing, shutil, subprocess, tempfile
import click, msgspec, numpy, onnx, onnx_graphsurgeon, platformdirs, polygraphy, rich.console
for name in {modules}:
    sys.modules[name] = None
for module, names in {names}.items():
    for name in names:
        if hasattr(sys.modules[module], name):
            delattr(sys.modules[module], name)
exporting = ("torch", "transformers", "timm", "onnxscript", "open_clip", "torchvision")
sys.modules.update(dict.fromkeys(exporting))
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in exporting:
            raise
        print(name)
from tcompile.cli import main
code = main(["targets", "cpu"]) or main(["doctor"])
sys.exit(code)
"""


def test_every_module_is_imported_without_what_windows_lacks() -> None:
    names = []
    for path, _ in sources():
        if path.endswith("__main__.py"):
            continue
        dotted = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        names.append(dotted if dotted.startswith("tcompile") else f"tcompile.{dotted}")
    assert len(names) > 200
    done = subprocess.run(
        [sys.executable, "-c", HIDING.format(modules=MODULES, names=NAMES), *names],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    skipped = [line for line in done.stdout.splitlines() if line.startswith("tcompile.")]
    assert all(name.startswith("tcompile.models.") for name in skipped), skipped


def test_what_windows_lacks_is_asked_for_first() -> None:
    for path, tree in sources():
        if path in ASKED:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert not {n.name for n in node.names} & set(MODULES), path
            if isinstance(node, ast.ImportFrom):
                assert node.module not in MODULES, path
                lacking = NAMES.get(node.module or "", ())
                assert not {n.name for n in node.names} & set(lacking), path
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert node.attr not in NAMES.get(node.value.id, ()), f"{path}:{node.lineno}"


def test_every_text_has_an_encoding() -> None:
    """On Windows that of the country is taken otherwise."""
    for path, tree in sources():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if ast.unparse(node.func.value) == "super()":  # of click's help
                continue
            given, name = {k.arg: k.value for k in node.keywords}, node.func.attr
            modes = [a.value for a in node.args if isinstance(a, ast.Constant)]
            opened = name in ("open", "fdopen", "NamedTemporaryFile") and (
                not node.args or any(m in ("r", "w", "a", "x", "r+", "w+") for m in modes)
            )
            if name in ("read_text", "write_text") or opened or "text" in given:
                where = f"{path}:{node.lineno}"
                assert "encoding" in given or "b" in str(given.get("mode", "")), where
                assert "text" not in given, f"{where}: encoding says it"


#: What Python 3.11 and newer brought, by module.
NEWER = {
    "typing": {"Self", "assert_never", "Never", "LiteralString", "Required", "NotRequired"},
    "enum": {"StrEnum", "verify", "nonmember", "member"},
    "datetime": {"UTC"},
    "hashlib": {"file_digest"},
    "contextlib": {"chdir"},
    "itertools": {"batched"},
    "tomllib": {"load", "loads"},
    "math": {"cbrt", "exp2", "sumprod"},
    "asyncio": {"TaskGroup", "timeout", "Runner"},
}


@pytest.mark.parametrize("folder", [*FOLDERS, "tests", "tools"])
def test_nothing_newer_than_python_3_10_is_used(folder: str) -> None:
    for path in sorted((ROOT / folder).rglob("*.py")):
        # Raises for syntax of a newer Python, such as `except*`.
        tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))
        for node in ast.walk(tree):
            where = f"{path}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                assert "tomllib" not in {n.name for n in node.names}, where
            if isinstance(node, ast.ImportFrom):
                newer = NEWER.get(node.module or "", set())
                assert not {n.name for n in node.names} & newer, where
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert node.attr not in NEWER.get(node.value.id, ()), where
            if isinstance(node, ast.Name):
                assert node.id not in ("ExceptionGroup", "BaseExceptionGroup"), where
