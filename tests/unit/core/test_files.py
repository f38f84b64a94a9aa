"""Whatever a person names as a file ends in one line: pipes, devices, documents, arrays."""

from __future__ import annotations

import os
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcompile.core.arrays import read_arrays
from tcompile.core.decode import parse_json, read_json, read_yaml
from tcompile.core.errors import TcompileError, UsageError
from tcompile.core.files import in_words, output_file, read_bytes, regular_file
from tcompile.core.load import load
from tcompile.core.schedule import read_schedule
from tcompile.models.images import read_rgb
from tcompile.plugins.check import check_library
from tcompile.profiling.imported import read_csv
from tcompile.profiling.profile import read_profile

DEEP = "[" * 100_000
READERS: tuple[Callable[[Path], Any], ...] = (
    load,
    read_schedule,
    read_profile,
    read_csv,
    read_arrays,
    read_rgb,
    check_library,
)


@pytest.fixture(params=["pipe", "socket", "device", "endless", "directory", "circle", "nothing"])
def odd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Something that is not a file."""
    path = tmp_path / "odd.npz"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "socket":
        monkeypatch.chdir(tmp_path)  # the path of a socket must be short
        socket.socket(socket.AF_UNIX).bind(path.name)
    elif request.param == "device":
        return Path("/dev/null")
    elif request.param == "endless":
        path.symlink_to("/dev/zero")
    elif request.param == "directory":
        path.mkdir()
    elif request.param == "circle":
        path.symlink_to(path)
    return path


@pytest.mark.parametrize("read", READERS)
def test_what_is_not_a_file_is_not_opened(read: Callable[[Path], Any], odd: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read(odd)
    assert str(odd) in str(caught.value)
    assert caught.value.exit_code == 2


def test_files_have_a_largest_size(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(11))
    with pytest.raises(UsageError, match="larger than 10 bytes"):
        read_bytes(path, most=10)
    assert read_bytes(path, most=11) == bytes(11)
    with pytest.raises(UsageError):
        regular_file("a\0b")
    assert [in_words(n) for n in (0, 1023, 1 << 20, 3 << 36)] == [
        "0 bytes",
        "1023 bytes",
        "1 MiB",
        "192 GiB",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (DEEP, "nested"),
        ('{"a":' * 70 + "1" + "}" * 70, "nested"),
        ("9" * 10_000, "64 bits"),
        ("9" * 20, "64 bits"),
        ("1e400", "finite"),
        ("NaN", "finite"),
        ("-Infinity", "finite"),
        (r'"\ud800"', "Unicode"),
        (r'{"\udfff": 1}', "Unicode"),
        ("{", "line 1"),
    ],
)
def test_documents_nobody_can_use(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        parse_json(text)
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="is not a profile") as caught:
        read_json(path, "a profile")
    assert len(str(caught.value)) < 400


def test_ordinary_documents() -> None:
    text = '{"a": [1, -2.5, true, null, "é"], "b": 9223372036854775807}'
    assert parse_json(text) == {"a": [1, -2.5, True, None, "é"], "b": (1 << 63) - 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (DEEP, "nested"),
        ("- " * 2_000 + "1", "nested"),
        ("a: " + "9" * 10_000, "digits"),
        ("a: 99999999999999999999", "64 bits"),
        ("a: .inf", "finite"),
        ("a: 2001-01-01", "type date"),
        ("a: 2001-99-99", "month"),
        ("1: 2", "type int"),
        ("a: &a [*a]", "nested"),
        ("a: !!int ''", ""),
        ("a: !!bool maybe", ""),
        ("a: !!timestamp x", ""),
        ("a: !!python/object/apply:os.system [x]", "could not determine"),
        ("a: &a {b: 1}\nc: {<<: *a}", "merges"),
        (f"a: '{'x' * (1 << 20)}'", "larger than 1 MiB"),
        (
            "a0: &a0 [1,1,1,1,1,1,1,1]\n"
            + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 8)}]\n" for i in range(1, 12)),
            "more than",
        ),
    ],
)
def test_yaml_nobody_can_use(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=f"is not a schedule in YAML.*{words}"):
        read_yaml(path, "a schedule")


def test_values_that_yaml_shares_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: &one {b: [1, 2.5]}\nc: *one\n")
    assert read_yaml(path, "a schedule") == {"a": {"b": [1, 2.5]}, "c": {"b": [1, 2.5]}}


def encrypted(path: Path, array: Path) -> None:
    with zipfile.ZipFile(path, "w") as packed:
        packed.write(array, "x.npy")
    data = bytearray(path.read_bytes())
    for mark, at in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        data[data.index(mark) + at] |= 1
    path.write_bytes(data)


def compressed(method: int) -> Callable[[Path, Path], None]:
    def write(path: Path, array: Path) -> None:
        """Say that a stored member is compressed otherwise."""
        with zipfile.ZipFile(path, "w") as packed:
            packed.write(array, "x.npy")
        data = bytearray(path.read_bytes())
        for mark, at in ((b"PK\1\2", 10), (b"PK\3\4", 8)):
            data[data.index(mark) + at] = method
        path.write_bytes(data)

    return write


def damaged(path: Path, array: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.write(array, "x.npy")
    data = bytearray(path.read_bytes())
    data[60:70] = bytes(10)
    path.write_bytes(data)


def claims_much(path: Path, array: Path) -> None:
    data = array.read_bytes().replace(b"(4, 4), }     ", b"(99999999,), }")
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("x.npy", data)


def twice(path: Path, array: Path) -> None:
    with zipfile.ZipFile(path, "w") as packed:
        packed.write(array, "x.npy")
        packed.write(array, "x")


def an_npy(path: Path, array: Path) -> None:
    path.write_bytes(array.read_bytes())


def objects(path: Path, array: Path) -> None:
    np.savez(path, x=np.array([{}], dtype=object))


@pytest.mark.parametrize(
    "write",
    [
        encrypted,
        *(compressed(method) for method in (1, 8, 12, 14, 99)),
        damaged,
        claims_much,
        twice,
        an_npy,
        objects,
    ],
)
def test_arrays_nobody_can_use(write: Callable[[Path, Path], None], tmp_path: Path) -> None:
    array, path = tmp_path / "x.npy", tmp_path / "x.npz"
    np.save(array, np.arange(16.0).reshape(4, 4))
    write(path, array)
    with pytest.raises(UsageError, match=r"cannot be read as \.npz, which holds plain arrays"):
        read_arrays(path)


def test_arrays_that_unpack_to_far_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tcompile.core.arrays._SMALL", 1 << 20)
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros(1 << 19))
    with pytest.raises(UsageError, match="holds arrays of 4 MiB, which is too much"):
        read_arrays(tmp_path / "x.npz")
    np.save(tmp_path / "y.npy", np.zeros(8))
    data = (tmp_path / "y.npy").read_bytes()
    (tmp_path / "y.npy").write_bytes(data[:-8])
    with pytest.raises(UsageError, match=r"as \.npy"):
        read_arrays(tmp_path / "y.npy")


def test_lines_are_bounded() -> None:
    error = TcompileError("x" * 5_000 + " and \x1b[2J", where="a " * 5_000, hint="do this")
    line = error.one_line()
    assert len(line) < 1_300
    assert line.endswith("(do this)")
    assert line.startswith("a a a")
    assert line.isprintable()
    assert TcompileError("node '" + "n" * 999 + "' is odd").one_line().endswith("nnn' is odd")


def test_only_regular_files_are_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "real").mkdir()
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "real" / "x.json")
    for path, words in (
        ("/dev/null", "is a device, not a file"),
        (tmp_path / "pipe", "is a pipe, not a file"),
        (tmp_path / "real", "is a directory, not a file"),
        (tmp_path / "a", "is (not a path|a link) that leads"),
        (tmp_path / "none" / "x.json", "the folder does not exist"),
    ):
        with pytest.raises(UsageError, match=words):
            output_file(path)
    assert output_file(tmp_path / "real" / "x.json") == tmp_path / "real" / "x.json"
    assert output_file(tmp_path / "link") == tmp_path / "real" / "x.json"
