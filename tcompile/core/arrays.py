"""Arrays of .npy and .npz files, read as data: nothing in them is executed, and none is made that
is larger than what the file holds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile, ZipInfo

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


class StoredArray:
    """An array of a file, of which rows are read when they are asked for.

    It is read fastest, and without memory for more than those rows, from its first to its last.

    Attributes:
        shape, dtype: of the array.
    """

    def __init__(self, path: Path, stream: IO[bytes], size: int) -> None:
        self._path, self._stream = path, stream
        self.shape, self._by_columns, self.dtype = _header(stream, size)
        self._start = stream.tell()
        self._row = math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Array:
        """Read some rows, one after another. Raises `UsageError` where the file is damaged."""
        if self._by_columns:  # The values of a row are all over the file.
            return self.__array__()[rows]
        first, behind, _ = rows.indices(len(self))
        return self._read(first * self._row, (max(behind - first, 0), *self.shape[1:]))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """Read the whole array."""
        return self._read(0, self.shape).astype(dtype or self.dtype, copy=False)

    def _read(self, start: int, shape: tuple[int, ...]) -> Array:
        """An array of this shape, of the bytes from `start` on."""
        with _of_plain_arrays(self._path):
            self._stream.seek(self._start + start)
            found = np.empty(shape, self.dtype, order="F" if self._by_columns else "C")
            data = self._stream.read(found.nbytes)
            if len(data) != found.nbytes:
                raise ValueError("cut off")
            found.reshape(-1, order="A").view(np.uint8)[:] = np.frombuffer(data, np.uint8)
            return found


@contextmanager
def stored_arrays(path: str | Path) -> Iterator[dict[str, StoredArray]]:
    """Open every array of a file by name, as `read_arrays` has it; inside the `with` block.

    Raises:
        UsageError: as `read_arrays`.
    """
    path = regular_file(path, hint="an .npy or .npz file")
    with ExitStack() as stack:
        with _of_plain_arrays(path):
            if path.suffix == ".npy":
                stream: IO[bytes] = stack.enter_context(path.open("rb"))
                found = {UNNAMED: StoredArray(path, stream, path.stat().st_size)}
            else:
                packed = stack.enter_context(ZipFile(path))
                found = {
                    name: StoredArray(path, stack.enter_context(packed.open(info)), info.file_size)
                    for name, info in _members(packed, path, None).items()
                }
        yield found


def read_arrays(path: str | Path, *, most: int | None = None) -> dict[str, Array]:
    """Return every array of a file by name; the one of an .npy is `arr_0`, as in an .npz.

    Args:
        most: bytes that they may have in all.

    Raises:
        UsageError: not such a file, one that holds more than plain arrays, or larger ones.
    """
    path = regular_file(path, hint="an .npy or .npz file")
    with _of_plain_arrays(path):
        if path.suffix == ".npy":
            if most is not None and path.stat().st_size > most:
                raise ValueError("too large")
        else:
            with ZipFile(path) as packed:
                _members(packed, path, most)
    with stored_arrays(path) as found:
        return {name: np.asarray(array) for name, array in found.items()}


def _members(packed: ZipFile, path: Path, most: int | None) -> dict[str, ZipInfo]:
    """The arrays of an .npz by name. Raises `UsageError` where they are too large for it."""
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
    return members


@contextmanager
def _of_plain_arrays(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file raises into an error about it."""
    try:
        yield
    except (UsageError, MemoryError):
        raise
    except Exception as error:  # Of a damaged file a decoder may raise anything.
        # NumPy's own message about such a file advises to load it unsafely.
        raise UsageError(
            f"cannot be read as {path.suffix}, which holds plain arrays", where=str(path)
        ) from error


def _header(stream: IO[bytes], size: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and type. Raises `ValueError` where an array is larger
    than the `size` bytes that hold it."""
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError("not a plain array")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, by_columns, dtype = read(stream)
    if dtype.hasobject or any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize > size:
        raise ValueError("not a plain array, or cut off")
    return shape, by_columns, dtype
