"""Evaluate an artifact on data: the task's own measure, dense and reduced in one run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tcompile.api.reference import find_dense, gone
from tcompile.artifact.directory import is_artifact, load_artifact
from tcompile.artifact.manifest import Manifest
from tcompile.core.arrays import UNNAMED
from tcompile.core.errors import TcompileError, UsageError
from tcompile.core.files import output_file, regular_file, write_file
from tcompile.core.progress import Progress, silent
from tcompile.data.base import ArrayItem, ImageItem, Item, Unreadable
from tcompile.data.opening import open_source
from tcompile.deploy.checks import ENGINES, RUNTIMES
from tcompile.deploy.load import load
from tcompile.evaluation.boxes import read_boxes
from tcompile.evaluation.result import COMPARED, Bound, Evaluation, in_order, judged
from tcompile.evaluation.run import TASKS, Asked, Run, run_over
from tcompile.evaluation.zero_shot import read_texts
from tcompile.runtime.samples import run_samples
from tcompile.runtime.signature import Signature, fixed_dim, signature
from tcompile.runtime.token_outputs import showing_choice
from tcompile.targets.backends.cpu import ORT, on_cpu

#: Bytes of outputs that are held at a time, and samples at most.
_OUTPUTS, _MOST = 64 << 20, 32


@dataclass(frozen=True, eq=False)
class _Opened:
    """A model that is ready to run, and tells its tokens where it can."""

    run: Run
    model: Signature
    runtime: str
    manifest: Manifest | None
    notes: tuple[str, ...] = ()


def evaluate(
    artifact: str | Path,
    data: Any,
    *,
    against: str | Path | None = None,
    preprocess: str | None = None,
    runtime: str | None = None,
    labels: bool = True,
    only: str | None = None,
    task: str | None = None,
    texts: str | Path | None = None,
    label_maps: str | Path | None = None,
    boxes: str | Path | None = None,
    also: Sequence[str | Path] = (),
    limit: int | None = None,
    every: int = 1,
    worst: int = 10,
    seed: int = 0,
    fail_under: Sequence[tuple[str, float]] = (),
    fail_drop: Sequence[tuple[str, float]] = (),
    progress: Progress = silent,
) -> Evaluation:
    """Run an artifact and the dense model on data, and measure what the task is about.

    Where the dense model is gone, figures are those of the artifact alone, and a note says so.

    Samples are read, decoded in parallel and run some at a time, so that memory does not grow with
    their number, but for embeddings, of which 20,000 are held.

    Args:
        artifact: the directory that a build wrote; or an ONNX file, with `against`.
        data: see `tcompile.data.opening.FORMS`; or a data set, an iterable of (image, class), or
            {input name: array}. Scripts and callables that are named are executed.
        against: the dense model; by default the source, where the manifest says it lies.
        preprocess: how images are prepared, in place of what the artifact records.
        runtime: that runs the artifact, as `tcompile.load` has it.
        labels: whether classes that the data has are used.
        only: the one output to look at; by default all.
        task: classes, embedding or features: of outputs whose names do not tell.
        texts: embeddings of a text for each class, for zero-shot: see `zero_shot.read_texts`.
        label_maps: a folder of them, for segmentation: see `label_maps.LabelMaps`.
        boxes: true boxes in COCO's form, for detection: see `boxes.Boxes`.
        also: other runtimes, or artifacts, with whose kept tokens the artifact's are compared.
        limit: samples at most, equally far apart in the data where these can be had alone (folders,
            lists, data sets with an index), else the first.
        every: of a video, the distance between two frames.
        worst: images to list.
        seed: of the bootstrap.
        fail_under, fail_drop: bounds (measure, value) on the reduced model, and on what it loses;
            see `Evaluation.require`.

    Raises:
        UsageError: something given cannot be used; the dense model is gone, and a bound is on a
            comparison with it.
        ModelError: the artifact is damaged.
        MissingExtraError: what reads the data, or runs the artifact, is not installed.
    """
    bounds = [Bound(*pair) for pair in fail_under] + [Bound(*pair, drop=True) for pair in fail_drop]
    for bound in bounds:
        bound.check()
    if task is not None and task not in TASKS:
        raise UsageError(
            f"there is no task '{task}'", where="task", hint=f"one of {', '.join(TASKS)}"
        )
    dense, same = _dense(artifact, against)
    if dense is None and (lacking := [b for b in bounds if b.drop or b.measure in COMPARED]):
        raise UsageError(
            f"'{lacking[0].measure}' compares with the dense model, which {gone(artifact)}",
            where=lacking[0].option,
            hint="give it as --against",
        )
    source = open_source(data, labels=labels, every=every)
    source = source if labels else source.without_labels()
    kinds: set[type] = set()
    whole: set[str] = set()

    def seen(item: Item) -> Item:
        kinds.add(type(item))
        if isinstance(item, ArrayItem):
            whole.update(n for n, array in item.arrays.items() if array.dtype.name == "uint8")
        return item

    asked = Asked(
        only=only,
        task=task,
        texts=None if texts is None else read_texts(texts),
        label_maps=None if label_maps is None else _folder(label_maps),
        boxes=None if boxes is None else read_boxes(boxes),
        worst=worst,
        limit=limit,
        seed=seed,
    )
    with ExitStack() as stack:
        progress(f"opening {artifact}" + ("" if dense is None else f" and {dense}"))
        own = stack.enter_context(_opened(artifact, runtime, preprocess))
        others = {}
        for name in map(str, also):
            path, other = (artifact, name) if name in RUNTIMES else (name, None)
            opened = _opened(path, other, preprocess, beside=True)
            others[name] = stack.enter_context(opened).run
        runner = None if dense is None else ORT.open(dense)
        found = run_over(
            source.through(seen),
            own.model,
            None if runner is None else partial(run_samples, runner),
            own.run,
            _described(asked, own, dense),
            size=_size(own.model, None if dense is None else signature(dense)),
            others=others,
            progress=progress,
        )
    # Arrays are prepared: how images would be is not told of them.
    notes = [n for n in own.notes if ImageItem in kinds or n not in own.model.notes]
    image = own.model.image_input
    if image is not None and image.dtype != "uint8" and whole & {image.name, UNNAMED}:
        notes.append(
            f"the data has whole numbers for '{image.name}', as pixels are: they went in as they "
            "are, while images are scaled and normalised first"
        )
    if dense is None:
        notes.append(
            f"figures are those of the artifact alone: the dense model {gone(artifact)} "
            "(--against names one)"
        )
    target = "" if own.manifest is None else own.manifest.target.runtime
    if target in (*ENGINES, "jetson") and own.runtime not in ENGINES:
        notes.append(f"its model.onnx ran in {own.runtime} on the CPU; the engine was not run")
    compared = {overlap.between for overlap in found.overlaps}
    for name in sorted(others.keys() - compared):
        notes.append(f"kept tokens are not compared with {name}: both must tell as many of them")
    outputs = in_order(found.outputs)
    return Evaluation(
        artifact=str(artifact),
        dense=None if dense is None else str(dense),
        same_source=same,
        runtime=own.runtime,
        precision="as it is" if own.manifest is None else own.manifest.precision,
        data=source.name,
        images=found.images,
        labelled=found.labelled,
        unreadable=tuple(Unreadable(x.id, x.error.what) for x in found.unread),
        outputs=outputs,
        overlaps=found.overlaps,
        gates=judged(bounds, outputs),
        seed=seed,
        notes=tuple(notes),
    )


def write_evaluation(found: Evaluation, path: str | Path) -> Path:
    """Write an evaluation's JSON as a whole or not at all.

    Raises:
        UsageError: it cannot be written there.
    """
    text = json.dumps(found.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
    write_file(output_file(path), text + "\n")
    return Path(path)


def _dense(artifact: str | Path, against: str | Path | None) -> tuple[Path | None, bool | None]:
    """The dense model, and whether it is what the artifact was built from; None: it is gone."""
    path = Path(artifact)
    if path.is_file() or (path.suffix == ".onnx" and not is_artifact(path)):
        if against is None:
            raise UsageError(
                "is an ONNX file, which does not say what it was made from",
                where=str(artifact),
                hint="give the dense model as --against",
            )
        return regular_file(against), None
    dense = find_dense(load_artifact(path), against)
    return (None, None) if dense is None else (dense.path, dense.same)


@contextmanager
def _opened(
    artifact: str | Path, runtime: str | None, preprocess: str | None, *, beside: bool = False
) -> Iterator[_Opened]:
    """A model, checked as `tcompile.load` does; of an ONNX file one that tells its tokens.

    Args:
        beside: it is one of those whose tokens are compared.
    """
    with ExitStack() as stack:
        try:
            model = stack.enter_context(load(artifact, runtime, preprocess=preprocess))
        except TcompileError as error:
            error.hint = _hint_here(error.hint, beside)
            error.args = (error.one_line(),)
            raise
        manifest, notes = model.manifest, model.notes
        if model.runtime in ENGINES:
            yield _Opened(model.run, model.signature.whole, model.runtime, manifest, notes)
            return
        model.close()
        precision = "fp32" if manifest is None else manifest.precision
        path = stack.enter_context(showing_choice(model.path))
        runner = on_cpu(model.runtime, precision).open(path)
        described = signature(model.path).whole.prepared(preprocess)
        yield _Opened(
            lambda samples: run_samples(runner, samples), described, model.runtime, manifest, notes
        )


def _hint_here(hint: str, beside: bool) -> str:
    """A hint of `tcompile.load` without what cannot be said here."""
    parts = [part for part in hint.split("; ") if not part.startswith("allow_failed=")]
    other = 'runtime="onnxruntime"'
    if beside:  # --runtime is that of the artifact alone
        parts = [part for part in parts if not part.startswith(other)]
    return "; ".join(parts).replace(other, "--runtime onnxruntime")


def _described(asked: Asked, own: _Opened, dense: Path | None) -> Asked:
    """What is asked, with what the model's own files say of its classes and tokens."""
    labels: Sequence[str] = () if own.manifest is None else own.manifest.labels
    labels = labels or own.model.preprocessing.get("labels", ())
    if not labels and dense is not None:
        labels = signature(dense).preprocessing.get("labels", ())
    schedule = None if own.manifest is None else own.manifest.schedule
    return replace(asked, names=tuple(labels), schedule=schedule)


def _folder(path: str | Path) -> Path:
    if not Path(path).is_dir():
        raise UsageError("no such folder", where=str(path))
    return Path(path)


def _size(own: Signature, dense: Signature | None) -> int:
    """Samples at a time: whole batches, whose outputs are not too large."""
    tensors = (*own.outputs, *(() if dense is None else dense.outputs))
    values = sum(math.prod(map(fixed_dim, tensor.shape[1:])) for tensor in tensors)
    most = max(min(_OUTPUTS // (4 * max(values, 1)), _MOST), 1)
    batch = own.batch or 1
    return -(-most // batch) * batch
