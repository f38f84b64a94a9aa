"""Arrays of .npy and .npz files, read as data: nothing in them is executed, and none is made that
is larger than what the file holds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile

import numpy as np
from numpy.lib import format as npy

from tcompile.core.errors import UsageError
from tcompile.core.files import in_words, regular_file

Array = np.ndarray[Any, np.dtype[Any]]

#: The name that `numpy.savez` gives to an array without one.
UNNAMED = "arr_0"
#: Bytes that a packed file may unpack to whatever its size, and times its size beyond that.
_SMALL, _RATIO = 1 << 30, 100
_MEMBERS = 10_000


def read_arrays(path: str | Path, *, most: int | None = None) -> dict[str, Array]:
    """Return every array of a file by name; the one of an .npy is `arr_0`, as in an .npz.

    Args:
        most: bytes that they may have in all.

    Raises:
        UsageError: not such a file, one that holds more than plain arrays, or larger ones.
    """
    path = regular_file(path, hint="an .npy or .npz file")
    try:
        if path.suffix == ".npy":
            with path.open("rb") as stream:
                return {UNNAMED: _read(stream, path.stat().st_size, most)}
        with ZipFile(path) as packed:
            members = {info.filename.removesuffix(".npy"): info for info in packed.infolist()}
            size = sum(info.file_size for info in packed.infolist())
            if len(members) < len(packed.infolist()) or len(members) > _MEMBERS:
                raise ValueError("two arrays of one name, or very many")
            if size > (most or max(_SMALL, _RATIO * path.stat().st_size)):
                raise UsageError(
                    f"holds arrays of {in_words(size)}, which is too much for a file of "
                    f"{in_words(path.stat().st_size)}"
                    if most is None
                    else f"holds arrays of {in_words(size)}; {in_words(most)} are allowed",
                    where=str(path),
                )
            found = {}
            for name, info in members.items():
                with packed.open(info) as stream:
                    _check_header(stream, info.file_size)
                with packed.open(info) as stream:
                    found[name] = npy.read_array(stream, allow_pickle=False)
            return found
    except (UsageError, MemoryError):
        raise
    except Exception as error:  # Of a damaged file a decoder may raise anything.
        # NumPy's own message about such a file advises to load it unsafely.
        raise UsageError(
            f"cannot be read as {path.suffix}, which holds plain arrays", where=str(path)
        ) from error


def map_array(path: str | Path) -> Array:
    """Return the array of an .npy file, which stays on the disk until it is looked at.

    Raises:
        UsageError: as `read_arrays`.
    """
    path = regular_file(path, hint="an .npy or .npz file")
    try:
        with path.open("rb") as stream:
            _check_header(stream, path.stat().st_size)
        return npy.open_memmap(path, mode="r")
    except Exception as error:  # Of a damaged file a decoder may raise anything.
        raise UsageError(
            f"cannot be read as {path.suffix}, which holds plain arrays", where=str(path)
        ) from error


def _read(stream: IO[bytes], size: int, most: int | None) -> Array:
    if most is not None and size > most:
        raise ValueError("too large")
    _check_header(stream, size)
    stream.seek(0)
    found: Array = npy.read_array(stream, allow_pickle=False)
    return found


def _check_header(stream: IO[bytes], size: int) -> None:
    """Raise `ValueError` where an array is larger than the `size` bytes that hold it."""
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError("not a plain array")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.hasobject or any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize > size:
        raise ValueError("not a plain array, or cut off")
