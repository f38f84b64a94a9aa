"""What a model file holds, told without loading its weights: size, digest, inputs and outputs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class FileEntry:
    """A file: path relative to the folder that names it, with forward slashes."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Source:
    """The model that was compiled. `file` is the path as it was given, `external_data` the weight
    files it refers to (paths relative to the model's folder)."""

    file: str
    bytes: int
    sha256: str
    external_data: tuple[FileEntry, ...] = ()

    @property
    def digests(self) -> list[str]:
        """Digests of all its files, for keys of caches."""
        return [self.sha256, *(f"{e.path} {e.sha256}" for e in self.external_data)]


@dataclass(frozen=True)
class TensorEntry:
    """A graph input or output. A dimension is a number, or the name of a symbolic one."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


def file_entry(path: Path, folder: Path) -> FileEntry:
    """Size and digest of a file, named relative to `folder`."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    name = path.relative_to(folder).as_posix()
    return FileEntry(path=name, bytes=path.stat().st_size, sha256=digest.hexdigest())


def describe_source(path: str | Path) -> Source:
    """Digests of a model file and of the external-data files it names inside its own folder."""
    path = Path(path)
    own = file_entry(path, path.parent)
    external = [path.parent / name for name in sorted(_external_locations(path))]
    entries = tuple(file_entry(p, path.parent) for p in external if p.is_file())
    return Source(file=str(path), bytes=own.bytes, sha256=own.sha256, external_data=entries)


def _external_locations(path: Path) -> set[str]:
    import onnx
    from onnx.external_data_helper import uses_external_data

    model = onnx.load(str(path), "protobuf", load_external_data=False)
    names = {
        entry.value
        for tensor in model.graph.initializer
        if uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    # A path that climbs out of the folder is refused by the loader; never follow one here.
    return {n for n in names if not Path(n).is_absolute() and ".." not in Path(n).parts}


def describe_tensors(
    model: onnx.ModelProto,
) -> tuple[tuple[TensorEntry, ...], tuple[TensorEntry, ...]]:
    """The real inputs (no initialisers) and the outputs of a model."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_tensor(v) for v in model.graph.input if v.name not in weights)
    return inputs, tuple(_tensor(v) for v in model.graph.output)


def _tensor(value: onnx.ValueInfoProto) -> TensorEntry:
    import onnx

    tensor = value.type.tensor_type
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    shape = tuple(
        d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim
    )
    return TensorEntry(name=value.name, dtype=dtype, shape=shape)
