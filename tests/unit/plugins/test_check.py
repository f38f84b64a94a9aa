"""Answers of the check on libraries that do not fit; none of them is loaded."""

from __future__ import annotations

import shutil
import struct
import subprocess
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tcompile._version import __version__
from tcompile.core.errors import UsageError
from tcompile.plugins.check import SYMBOLS, check_library, require_library, specification_digest
from tcompile.plugins.ops import OPS

Make = Callable[..., Path]
FACTS = {
    "package": __version__,
    "plugin": "1",
    "api": "1",
    "tensorrt": "10.3.0",
    "cuda": "12.6.68",
    "architectures": "75-real,87-real,90",
    "specification": specification_digest(),
}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A library with the symbols of ours and nothing in them."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("libraries")

    def made(
        name: str,
        facts: dict[str, str] | None = None,
        ops: list[str] | None = None,
        symbols: tuple[str, ...] = SYMBOLS,
        options: tuple[str, ...] = (),
    ) -> Path:
        said = " ".join(f"{k}={v}" for k, v in (FACTS if facts is None else facts).items())
        listed = " ".join([op.name for op in OPS] if ops is None else ops)
        source, library = folder / f"{name}.c", folder / f"{name}.so"
        text = "".join(f"void {s}(void) {{}}\n" for s in symbols)
        if said:
            text += f'const char tcompile_plugins_version[] = "{said}";\n'
        text += f'const char tcompile_plugins_table[] = "{listed}";\n'
        source.write_text(text)
        command = [compiler, "-shared", "-fPIC", str(source), "-o", str(library), *options]
        subprocess.run(command, check=True)
        return library

    return made


@pytest.fixture(scope="module")
def good(make: Make) -> Path:
    return make("good", options=("-Wl,-soname,libtcompile_plugins.so", "-Wl,--no-as-needed", "-lm"))


def test_a_good_one(good: Path) -> None:
    report = check_library(good, tensorrt=(10, 16), architecture=87)
    assert report.problems == report.notes == ()
    assert report.facts == FACTS
    assert report.ops == tuple(op.name for op in OPS)
    assert "libm.so.6" in report.needed
    assert report.to_json()["tensorrt"] == "10.3.0"
    assert "nothing wrong" in report.text()
    assert require_library(good) == check_library(good)


def test_a_stripped_one_is_read_too(good: Path, tmp_path: Path) -> None:
    strip = shutil.which("strip")
    if strip is None:
        pytest.skip("no strip")
    copy = tmp_path / "stripped.so"
    subprocess.run([strip, "-o", str(copy), str(good)], check=True)
    assert check_library(copy).problems == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"plugin": "2"}, "its plugins are of version 2, not 1"),
        ({"api": "7"}, "its interface is of version 7, not 1"),
        ({"specification": "0" * 64}, "another specification"),
    ],
)
def test_another_version(make: Make, changes: dict[str, str], words: str) -> None:
    report = check_library(make("other", {**FACTS, **changes}))
    assert len(report.problems) == 1
    assert words in report.problems[0]
    with pytest.raises(UsageError, match=words):
        require_library(report.path)


def test_an_op_that_is_missing(make: Make) -> None:
    report = check_library(make("less", ops=[op.name for op in OPS[2:]]))
    assert report.problems == (f"it has no {OPS[0].name}, {OPS[1].name}: build it anew",)


def test_symbols_that_are_missing(make: Make) -> None:
    report = check_library(make("mute", symbols=SYMBOLS[1:]))
    assert report.problems == ("it does not export getCreators",)


def test_another_library(make: Make) -> None:
    report = check_library(make("foreign", facts={}))
    assert len(report.problems) == 1
    assert "not a plugin library of tcompile" in report.problems[0]


def test_a_built_by_another_package_is_a_note(make: Make) -> None:
    report = check_library(make("older", {**FACTS, "package": "0.0.9"}))
    assert report.problems == ()
    assert report.notes == (f"built by tcompile 0.0.9, this is {__version__}",)


def test_another_machine(good: Path, tmp_path: Path) -> None:
    data = bytearray(good.read_bytes())
    here = check_library(good).machine
    other, number = ("aarch64", 183) if here != "aarch64" else ("x86_64", 62)
    struct.pack_into("<H", data, 18, number)
    foreign = tmp_path / "foreign.so"
    foreign.write_bytes(data)
    report = check_library(foreign)
    assert report.problems == (f"it is for {other}, this machine is {here}: build it there",)
    assert check_library(foreign, machine=other).problems == ()


@pytest.mark.parametrize(
    ("tensorrt", "fits"), [((10, 0), True), ((10, 16), True), ((11, 1), False), ((8, 6), False)]
)
def test_another_tensorrt(good: Path, tensorrt: tuple[int, int], fits: bool) -> None:
    problems = check_library(good, tensorrt=tensorrt).problems
    assert (problems == ()) == fits
    assert fits or "built for TensorRT 10.3.0" in problems[0]


@pytest.mark.parametrize(
    ("architecture", "fits"),
    # 75-real: Turing alone. 87-real: Orin, and 8.9 by the same major version. 90 has PTX too.
    [
        (75, True),
        (80, False),
        (86, False),
        (87, True),
        (89, True),
        (90, True),
        (120, True),
        (72, False),
    ],
)
def test_another_gpu(good: Path, architecture: int, fits: bool) -> None:
    problems = check_library(good, architecture=architecture).problems
    assert (problems == ()) == fits
    assert fits or f"no code for GPU architecture {architecture}" in problems[0]


def test_files_that_are_no_library(good: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        check_library(tmp_path / "none.so")
    with pytest.raises(UsageError, match="cannot be read"):
        check_library(tmp_path)
    data = good.read_bytes()
    for name, content, words in (
        ("empty", b"", "is not an ELF file"),
        ("text", b"hello, this is a text", "is not an ELF file"),
        ("narrow", b"\x7fELF\x01" + data[5:], "64-bit"),
        ("program", data[:16] + b"\x02\x00" + data[18:], "not a shared library"),
        ("cut", data[:100], "damaged or cut off"),
        ("half", data[: len(data) // 2], "damaged or cut off"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UsageError, match=words):
            check_library(path)


def test_damage_is_never_a_crash(good: Path, tmp_path: Path) -> None:
    data = good.read_bytes()
    path = tmp_path / "damaged.so"
    for at in [*range(16, 64), *range(len(data) - 400, len(data), 3)]:
        damaged = bytearray(data)
        damaged[at] ^= 0xFF
        path.write_bytes(damaged)
        with suppress(UsageError):
            check_library(path)


def crafted(names: bytes, symbols: int, tables: int = 1) -> bytes:
    """A shared library of nothing but symbols, each with a longer name than the one after it."""
    entries = b"".join(struct.pack("<IBBHQQ", i, 0x10, 0, 1, 0, 0) for i in range(symbols))
    heads = [struct.pack("<IIQQQQIIQQ", 0, 3, 0, 0, 64, len(names), 0, 0, 0, 0)]
    heads += tables * [
        struct.pack("<IIQQQQIIQQ", 0, 11, 0, 0, 64 + len(names), len(entries), 0, 0, 0, 24)
    ]
    start = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHI", 3, 62, 1)
    sections = 64 + len(names) + len(entries)
    start += struct.pack("<QQQIHHHHHH", 0, 0, sections, 0, 64, 56, 0, 64, len(heads), 0)
    return start + names + entries + b"".join(heads)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (crafted(b"x" * 200_000 + b"\0", 1_000), "more symbols than any"),
        (crafted(bytes(2), 200_000), "more symbols than any"),
        (crafted(bytes(5 << 20), 1), "more symbols than any"),
        (crafted(b"x\0", 1, tables=2), "two tables of one kind"),
    ],
    ids=["names", "symbols", "texts", "tables"],
)
def test_libraries_that_would_fill_the_memory(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "crafted.so"
    path.write_bytes(crafted(b"x" * 99 + b"\0", 99))
    assert check_library(path).problems  # it can be read, and is none of ours
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match=words):
            check_library(path)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(data) + (40 << 20)
    finally:
        tracemalloc.stop()


def test_a_large_file_that_is_no_library_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "hole.so"
    with path.open("wb") as stream:
        stream.truncate(1 << 28)
    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match="not an ELF file"):
            check_library(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
