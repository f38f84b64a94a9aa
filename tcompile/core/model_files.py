"""The contents of a model file without its weights: size, digest, inputs and outputs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
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
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    name = path.relative_to(folder).as_posix()
    return FileEntry(path=name, bytes=path.stat().st_size, sha256=digest.hexdigest())


def describe_source(path: str | Path) -> SourceFile:
    """Digests of a model file and of the external-data files it names inside its own folder."""
    path = Path(path)
    own = file_entry(path, path.parent)
    external = [path.parent / name for name in sorted(_external_locations(path))]
    entries = tuple(file_entry(p, path.parent) for p in external if p.is_file())
    return SourceFile(file=str(path), bytes=own.bytes, sha256=own.sha256, external_data=entries)


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
