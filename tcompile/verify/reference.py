"""What an artifact is checked against: the dense source, and the reduced graph before lowering."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tcompile.artifact import Artifact
from tcompile.errors import UsageError
from tcompile.manifest import describe_source


@dataclass(frozen=True)
class DenseModel:
    """The dense model to compare with; `same` when it is, byte for byte, what was compiled."""

    path: Path
    same: bool


def find_dense(artifact: Artifact, against: str | Path | None) -> DenseModel | None:
    """The model given as `against`, else the source where the manifest says it was.

    A source that has changed since is not used unless it was asked for: it proves nothing.
    Raises `UsageError` when `against` is no file.
    """
    source = artifact.manifest.source
    if against is not None:
        path = Path(against)
        if not path.is_file():
            raise UsageError("no such file", where=str(path), hint="see --against")
        return DenseModel(path, describe_source(path).sha256 == source.sha256)
    for path in (Path(source.file), artifact.directory.parent / Path(source.file).name):
        if path.is_file() and describe_source(path).sha256 == source.sha256:
            return DenseModel(path, True)
    return None


@contextmanager
def reduced_reference(artifact: Artifact, dense: Path) -> Iterator[Path]:
    """The fp32 reduced graph, made again from the dense model with the artifact's schedule.

    It only exists inside the `with` block. Raises what `tcompile.pipeline.reduce` raises.
    """
    from tcompile import pipeline
    from tcompile.saving import save

    manifest = artifact.manifest
    reduced = pipeline.reduce(
        dense,
        target=manifest.target.name,
        schedule=manifest.schedule,
        outputs=manifest.outputs_mode,
        shapes=manifest.shapes,
        prefix=manifest.prefix,
    )
    with tempfile.TemporaryDirectory(prefix="tcompile-") as folder:
        path = Path(folder) / "reference.onnx"
        save(reduced.graph, path, reduced.metadata)
        yield path
