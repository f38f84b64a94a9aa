"""The contents of a model file without its weights: size, digest, inputs and outputs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from tcompile.core.decode import Count

if TYPE_CHECKING:
    import onnx

#: The shape of a tensor: a string is a dimension that stays free.
Dims = tuple[Count | str, ...]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
#: A path that does not leave its folder; `Manifest.from_json` checks it and says so in words.
InFolder = Annotated[str, Meta(extra_json_schema={"pattern": r"^(?!/)(?!.*(^|/)\.\.(/|$)).+$"})]


@dataclass(frozen=True)
class FileEntry:
    """A file of a folder.

    Attributes:
        path: relative to the folder that lists it, forward slashes.
        sha256: SHA-256 of the file's bytes, in hexadecimal.
    """

    path: InFolder
    bytes: Count
    sha256: Sha256


@dataclass(frozen=True)
class SourceFile:
    """The model that was compiled.

    Attributes:
        file: path of the model, as it was given.
        sha256: SHA-256 of the file's bytes, in hexadecimal.
        external_data: weight files that the model refers to, relative to its folder.
    """

    file: str
    bytes: Count
    sha256: Sha256
    external_data: tuple[FileEntry, ...] = ()

    @property
    def digests(self) -> list[str]:
        """Digests of all its files, for keys of caches."""
        return [self.sha256, *(f"{e.path} {e.sha256}" for e in self.external_data)]


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a model.

    Attributes:
        dtype: numpy name, e.g. float32.
        shape: a number for each dimension, or the name of a symbolic one.
    """

    name: str
    dtype: str
    shape: Dims


def file_entry(path: Path, folder: Path) -> FileEntry:
    """Size and digest of a file, named relative to `folder`."""
    state = path.stat()
    digest = _digest(path, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    return FileEntry(path.relative_to(folder).as_posix(), state.st_size, digest)


@lru_cache(maxsize=256)
def _digest(path: Path, *state: int) -> str:
    """SHA-256 of a file, read once for each state of it: models are large, and a build asks often.

    Args:
        state: what changes with the file.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def describe_source(path: str | Path) -> SourceFile:
    """Digests of a model file and of the external-data files it names inside its own folder.

    Raises:
        UsageError, ModelError: it is not an ONNX file.
    """
    path = Path(path)
    external = [path.parent / name for name in sorted(_external_locations(path))]
    own = file_entry(path, path.parent)
    entries = tuple(file_entry(p, path.parent) for p in external if p.is_file())
    return SourceFile(str(path), own.bytes, own.sha256, entries)


def is_source(path: str | Path, source: SourceFile) -> bool:
    """Tell whether a file is the model that was compiled, byte for byte; what else it may be does
    not matter."""
    path = Path(path)
    return path.is_file() and file_entry(path, path.parent).sha256 == source.sha256


def _external_locations(path: Path) -> set[str]:
    from onnx.external_data_helper import uses_external_data

    from tcompile.core.load import read_structure

    names = {
        entry.value
        for tensor in read_structure(path).graph.initializer
        if uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    # A path that climbs out of the folder is refused by the loader; never follow one here.
    return {n for n in names if not Path(n).is_absolute() and ".." not in Path(n).parts}


def describe_tensors(
    model: onnx.ModelProto,
) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    """The real inputs (no initialisers) and the outputs of a model."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_tensor(v) for v in model.graph.input if v.name not in weights)
    return inputs, tuple(_tensor(v) for v in model.graph.output)


def _tensor(value: onnx.ValueInfoProto) -> TensorInfo:
    import onnx

    tensor = value.type.tensor_type
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    shape = tuple(
        d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim
    )
    return TensorInfo(name=value.name, dtype=dtype, shape=shape)
