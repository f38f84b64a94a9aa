"""References that an artifact is checked against: the dense source, the reduced fp32 graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tcompile.artifact.directory import Artifact, load_artifact
from tcompile.core.drafts import scratch
from tcompile.core.files import regular_file
from tcompile.core.load import read_structure
from tcompile.core.memory import release
from tcompile.core.model_files import is_source

if TYPE_CHECKING:
    from tcompile.passes.stages import Analysed, Reduced


@dataclass(frozen=True)
class DenseModel:
    """The dense model to compare with; `same` when it is, byte for byte, what was compiled."""

    path: Path
    same: bool


def find_dense(artifact: Artifact, against: str | Path | None) -> DenseModel | None:
    """The model given as `against`, else the source where the manifest says it was.

    A source that has changed since is not used unless it was asked for: it proves nothing.
    Raises `UsageError` when `against` is not a file.
    """
    source = artifact.manifest.source
    if against is not None:
        path = regular_file(against)
        return DenseModel(path, is_source(path, source))
    for path in (Path(source.file), artifact.directory.parent / Path(source.file).name):
        if is_source(path, source):
            return DenseModel(path, True)
    return None


def gone(artifact: str | Path) -> str:
    """Say of the dense model of an artifact that it is not to be found."""
    source = load_artifact(artifact).manifest.source
    return f"is not where it was, or was changed since: '{source.file}'"


def analyse_again(artifact: Artifact, dense: Path) -> Analysed:
    """The dense model, analysed as the build did. Raises what `tcompile.pipeline.read` raises."""
    from tcompile import pipeline

    manifest = artifact.manifest
    return pipeline.read(
        dense, shapes=manifest.shapes, prefix=manifest.prefix, tower=manifest.schedule.get("tower")
    )


def reduce_again(artifact: Artifact, dense: Path) -> Reduced:
    """The dense model, reduced with the artifact's schedule.

    Raises what `tcompile.pipeline.reduce` raises.
    """
    from tcompile import pipeline

    manifest = artifact.manifest
    return pipeline.reduce(
        dense,
        target=manifest.target.name,
        schedule=manifest.schedule,
        outputs=manifest.outputs_mode,
        shapes=manifest.shapes,
        prefix=manifest.prefix,
    )


@contextmanager
def reduced_reference(artifact: Artifact, dense: Path) -> Iterator[Path]:
    """The fp32 reduced graph, made again from the dense model with the artifact's schedule.

    It only exists inside the `with` block. Raises what `tcompile.pipeline.reduce` raises.
    """
    from tcompile.core.save import save

    with scratch() as folder:
        path = folder / "reference.onnx"
        reduced = reduce_again(artifact, dense)
        save(reduced.graph, path, reduced.metadata)
        del reduced  # its weights go before the file is run; its nodes and tensors are circles
        release()
        yield path


@contextmanager
def normal_form(artifact: Artifact, dense: Path) -> Iterator[Path | None]:
    """The fp32 normal form of a dense model that computes in fp16, or is to be run in OpenVINO,
    inside the `with` block; None for any other."""
    from tcompile.core.save import save
    from tcompile.passes.lower import lower
    from tcompile.targets import load_target

    plain = artifact.manifest.target.runtime == "openvino"
    apart = plain or mentions_fp16(dense)
    found = analyse_again(artifact, dense).normalized if apart else None
    if found is None or not (plain or found.widened):
        yield None
        return
    with scratch() as folder:
        path, graph = folder / "normal.onnx", found.graph
        if plain:
            target = load_target(artifact.manifest.target.name)
            graph = lower(graph, target=target, precision="fp32")
        save(graph, path)
        del found, graph
        release()
        yield path


@contextmanager
def dense_rival(artifact: Artifact, dense: Path) -> Iterator[Path | None]:
    """The dense model in the precision that an artifact was compared with, made again inside the
    `with` block; None for an artifact in another than int8 and bf16, or the dense model itself.

    Static ranges are taken from scenes, whatever they were taken from for the artifact.
    """
    import onnx

    from tcompile.core.save import save
    from tcompile.passes.lower import lower
    from tcompile.passes.lower.int8 import quantized
    from tcompile.runtime.samples import feeds
    from tcompile.runtime.scenes import calibration_for, evidence_count
    from tcompile.runtime.signature import signature
    from tcompile.runtime.smoothing import smooth_file
    from tcompile.targets import load_target

    manifest = artifact.manifest
    if manifest.rival is None:
        yield None
        return
    with scratch() as folder:
        path = folder / "dense.onnx"
        target, kind = load_target(manifest.target.name), manifest.rival.kind
        save(lower(analyse_again(artifact, dense).graph, target=target, precision="fp32"), path)
        release()
        if kind in ("dynamic", "static"):
            model = signature(path)
            scenes = calibration_for(model, count=evidence_count(manifest.flops.dense))
            smooth_file(path, folder / "smoothed.onnx")
            ranges = list(feeds(model, scenes))
            made = quantized(onnx.load(folder / "smoothed.onnx"), kind, ranges)
            onnx.save(made, path)
            del made
            release()
        yield path


def mentions_fp16(path: Path) -> bool:
    """Tell whether a file may compute in fp16, without normalising it."""
    import onnx

    model, half = read_structure(path), onnx.TensorProto.FLOAT16
    graph = model.graph
    nodes = [*graph.node, *(n for f in model.functions for n in f.node)]
    return (
        any(w.data_type == half for w in graph.initializer)
        or any(v.type.tensor_type.elem_type == half for v in (*graph.input, *graph.value_info))
        or any(half in (a.i, a.t.data_type) for n in nodes for a in n.attribute)
    )
