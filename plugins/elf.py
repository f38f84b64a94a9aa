"""The facts that a shared library tells of itself, read from the file: nothing in it is run.

ELF, 64 bits, little-endian, as all targets have it. Layout: System V ABI, chapters 4 and 5.
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass, field
from pathlib import Path

MACHINES = {62: "x86_64", 183: "aarch64", 3: "i386", 40: "arm", 243: "riscv64", 21: "ppc64"}
_LARGEST = 1 << 28
#: Bytes of the tables of symbols, and of all their names, that a plugin library is far below.
_TABLE, _NAMES = 1 << 22, 1 << 24
_SHARED = 3
_LOAD = 1
_STRINGS, _DYNAMIC, _SYMBOLS = 3, 6, 11
_NEEDED = 1


class ElfError(ValueError):
    """The file is not a shared library that can be read; says why."""


@dataclass(frozen=True)
class SharedLibrary:
    """A shared library.

    Attributes:
        machine: as `platform.machine()` calls it, or `machine 40` where we know no name.
        needed: names of the libraries that it loads.
        exported: symbol → its address, for those that others can use.
    """

    machine: str
    needed: tuple[str, ...]
    exported: dict[str, int]
    _data: bytes = field(repr=False)
    _loads: tuple[tuple[int, int, int], ...] = field(repr=False)

    def text(self, symbol: str) -> str | None:
        """The zero-terminated text that a symbol stands for; None where there is none."""
        address = self.exported.get(symbol)
        if address is None:
            return None
        for offset, start, size in self._loads:
            if start <= address < start + size:
                at = offset + address - start
                end = self._data.find(b"\0", at, min(at + 65536, offset + size))
                return self._data[at:end].decode("ascii", "replace") if end >= 0 else None
        return None


def read_library(path: Path) -> SharedLibrary:
    """Read a shared library.

    Raises:
        ElfError: it is not a shared library, is of another kind, or is cut off.
        OSError: the file cannot be read.
    """
    found = path.stat()
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise ElfError("is not a regular file")  # Reading a device or a pipe may never end.
    if found.st_size > _LARGEST:
        raise ElfError("is larger than any plugin library")
    with path.open("rb") as stream:
        data = stream.read(6)
        if data[:4] != b"\x7fELF":
            raise ElfError("is not an ELF file")
        if data[4:] != b"\x02\x01":
            raise ElfError("is not a 64-bit little-endian library")
        stream.seek(0)
        data = stream.read(found.st_size)
    try:
        return _read(data)
    except (struct.error, IndexError, ValueError, OverflowError) as error:
        if isinstance(error, ElfError):
            raise
        raise ElfError("is damaged or cut off") from error


def _read(data: bytes) -> SharedLibrary:
    kind, machine = struct.unpack_from("<HH", data, 16)
    if kind != _SHARED:
        raise ElfError("is not a shared library")
    programs, sections = struct.unpack_from("<QQ", data, 32)
    program_size, program_count, section_size, section_count = struct.unpack_from("<HHHH", data, 54)
    loads = []
    for i in range(program_count):
        what, _, offset, address, _, size = struct.unpack_from(
            "<IIQQQQ", data, programs + i * program_size
        )
        if what == _LOAD:
            loads.append((offset, address, size))
    heads = [
        struct.unpack_from("<IIQQQQIIQQ", data, sections + i * section_size)
        for i in range(section_count)
    ]
    exported: dict[str, int] = {}
    needed: list[str] = []
    if any([head[1] for head in heads].count(kind) > 1 for kind in (_SYMBOLS, _DYNAMIC)):
        raise ElfError("is damaged: it has two tables of one kind")
    left = _NAMES
    for _, what, _, _, offset, size, link, _, _, _ in heads:
        if what not in (_SYMBOLS, _DYNAMIC):
            continue
        strings = heads[link]
        if strings[1] != _STRINGS or offset + size > len(data):
            raise ElfError("is damaged or cut off")
        if max(size, strings[5]) > _TABLE:
            raise ElfError("has more symbols than any plugin library")
        names = data[strings[4] : strings[4] + strings[5]]
        if what == _SYMBOLS:
            for at in range(offset, offset + size, 24):
                name, info, _, section, value, _ = struct.unpack_from("<IBBHQQ", data, at)
                if section and info >> 4:  # defined here, and not local
                    text = _name(names, name, left)
                    left -= len(text)
                    exported[text] = value
        else:
            for at in range(offset, offset + size, 16):
                tag, value = struct.unpack_from("<qQ", data, at)
                if tag == _NEEDED:
                    needed.append(_name(names, value, left))
                    left -= len(needed[-1])
    return SharedLibrary(
        MACHINES.get(machine, f"machine {machine}"), tuple(needed), exported, data, tuple(loads)
    )


def _name(names: bytes, at: int, left: int) -> str:
    """A zero-terminated name of at most `left` bytes."""
    end = names.index(b"\0", at)
    if end - at > left:
        raise ElfError("has more symbols than any plugin library")
    return names[at:end].decode("ascii", "replace")
