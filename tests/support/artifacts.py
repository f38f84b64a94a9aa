"""Small artifacts written by hand, for tests that need one and not the compiler."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from tcompile.artifact.directory import new_artifact
from tcompile.artifact.manifest import Flops, Manifest, TargetEntry, installed_versions
from tcompile.core.model_files import describe_source, describe_tensors
from tcompile.core.schedule import BlockTokens


def manifest_for(source: Path, model: Path, **changes: Any) -> Manifest:
    """A manifest of a build for the CPU in which no token leaves."""
    inputs, outputs = describe_tensors(onnx.load(str(model)))
    manifest = Manifest(
        source=describe_source(source),
        target=TargetEntry("cpu", "onnxruntime"),
        precision="fp32",
        outputs_mode="reduced",
        inputs=inputs,
        outputs=outputs,
        schedule={"schema": 1, "method": "topk", "reductions": []},
        tokens_per_block=(BlockTokens(0, 17, 17),),
        flops=Flops(dense=2_000_000, reduced=1_000_000),
        versions=installed_versions(),
    )
    return replace(manifest, **changes)


def make_artifact(
    directory: Path,
    source: Path,
    model: Path | None = None,
    *,
    engine: Callable[[Path], object] = lambda folder: None,
    **changes: Any,
) -> Path:
    """Write an artifact whose model is `model` (the source itself unless given).

    `engine` may write more files into the directory it is given.
    """
    model = model or source

    def fill(folder: Path) -> Manifest:
        shutil.copyfile(model, folder / "model.onnx")
        engine(folder)
        return manifest_for(source, model, **changes)

    return write_artifact(directory, fill)


def write_artifact(directory: Path, fill: Callable[[Path], Manifest], force: bool = False) -> Path:
    """Write an artifact whose files a function puts into the folder that it is given."""
    with new_artifact(directory, force) as draft:
        draft.finish(fill(draft.empty()))
    return draft.directory
