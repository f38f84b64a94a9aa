"""One pass over the data: both models on each chunk, figures collected on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from tcompile.core.errors import UsageError
from tcompile.core.progress import Progress, silent
from tcompile.data.base import Source
from tcompile.evaluation.boxes import Boxes, TrueBoxes
from tcompile.evaluation.classes import Classes
from tcompile.evaluation.collector import Batch, Collector
from tcompile.evaluation.embeddings import Embeddings
from tcompile.evaluation.features import Features, Numbers
from tcompile.evaluation.findings import OutputFindings, Overlap
from tcompile.evaluation.kept import Overlaps
from tcompile.evaluation.label_maps import LabelMaps
from tcompile.evaluation.labels import ClassNumbers
from tcompile.evaluation.zero_shot import TextEmbeddings
from tcompile.runtime.decoding import Unread, none_readable
from tcompile.runtime.metrics import holds_classes
from tcompile.runtime.samples import Samples
from tcompile.runtime.signature import Signature
from tcompile.runtime.stream import chunks
from tcompile.runtime.token_outputs import is_bookkeeping, tower_of_outputs

Array = npt.NDArray[Any]
#: Runs a model on samples: outputs by name, samples first.
Run = Callable[[Samples], Mapping[str, Array]]
TASKS = ("classes", "embedding", "features")


@dataclass(frozen=True)
class Asked:
    """What is to be found out.

    Attributes:
        only: the one output to look at; None: all.
        task: of outputs [B, X], and of all others `features`; None: by their names and shapes.
        texts: embeddings of classes.
        label_maps: the folder of them.
        boxes: of the images.
        names: of the classes; empty: not known.
        schedule: of the reduced model, as JSON.
        worst: images to list.
        limit: samples to look at, at most; see `Source.spread`.
        seed: of the bootstrap.
    """

    only: str | None = None
    task: str | None = None
    texts: TextEmbeddings | None = None
    label_maps: Path | None = None
    boxes: TrueBoxes | None = None
    names: tuple[str, ...] = ()
    schedule: Mapping[str, Any] | None = None
    worst: int = 10
    limit: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Pass:
    """What a pass over the data found.

    Attributes:
        images, labelled: how many samples there were, and those with a label.
    """

    images: int
    labelled: int
    unread: tuple[Unread, ...]
    outputs: tuple[OutputFindings, ...]
    overlaps: tuple[Overlap, ...]


def run_over(
    source: Source,
    model: Signature,
    dense: Run | None,
    reduced: Run,
    asked: Asked,
    *,
    size: int,
    others: Mapping[str, Run] | None = None,
    progress: Progress = silent,
) -> Pass:
    """Run both models, and others whose tokens are compared, on all of a source.

    Args:
        model: inputs of the models, with images as large as the dense model's.
        dense: None: there is none, and figures are those of the reduced model alone.
        size: samples at a time.

    Raises:
        UsageError: data that cannot be used, or nothing in it that can be read.
    """
    source = source if asked.limit is None else source.spread(asked.limit)
    unread: list[Unread] = []
    overlaps = Overlaps()
    collectors: list[Collector] | None = None
    done = labelled = 0
    total = min(x for x in (source.count, asked.limit, 1 << 62) if x is not None)
    start, stage = time.monotonic(), f"evaluating {source.name}"
    progress(stage)
    for chunk in chunks(model, source, size, unread, asked.limit):
        actual = reduced(chunk.samples)
        wanted = actual if dense is None else dense(chunk.samples)
        batch = Batch(chunk.ids, chunk.labels, wanted, actual)
        if collectors is None:
            collectors = make_collectors(batch, source, model, asked)
        for collector in collectors:
            collector.add(batch)
        for name, other in (others or {}).items():
            overlaps.add(name, actual, other(chunk.samples))
        overlaps.add_frames(chunk.clips, actual)
        done += len(chunk)
        labelled += sum(label is not None for label in chunk.labels)
        progress(f"{stage}: " + _told(done, total, len(unread), time.monotonic() - start))
    if collectors is None:
        if unread:
            raise none_readable(source, unread)
        raise UsageError("holds no samples", where=source.name)
    progress("working out intervals")
    found = tuple(collector.found() for collector in collectors)
    return Pass(done, labelled, tuple(unread), found, overlaps.found())


def _told(done: int, total: int, unread: int, seconds: float) -> str:
    """`1,200 of 50,000 images (3 unreadable), 41 a second, 20 min left`."""
    rate = done / max(seconds, 1e-9)
    known = total < 1 << 62
    text = f"{done:,} of {total:,} images" if known else f"{done:,} images"
    text += f" ({unread} unreadable)" if unread else ""
    text += f", {rate:.3g} a second"
    left = (total - done - unread) / rate if known else 0
    if left >= 1:
        text += f", {left / 60:.0f} min left" if left >= 90 else f", {left:.0f} s left"
    return text


def make_collectors(
    batch: Batch, source: Source, model: Signature, asked: Asked
) -> list[Collector]:
    """What collects the figures of each output that both models have, going by the first samples.

    Raises:
        UsageError: there is no such output, or none that what was given is for.
    """
    names = [
        name
        for name, array in batch.dense.items()
        if name in batch.reduced and array.dtype.kind == "f" and not is_bookkeeping(name)
    ]
    if asked.only is not None:
        if asked.only not in names:
            raise UsageError(
                f"there is no output '{asked.only}' that can be compared",
                where="--only",
                hint=f"one of {', '.join(names)}",
            )
        names = [asked.only]
    # Later samples may have a label where the first have none; names alone are not looked up.
    has_labels = not source.classes or any(label is not None for label in batch.labels)
    found: list[Collector] = []
    towers = tower_of_outputs(asked.schedule or {})
    counted = mapped = texts = False
    for name in names:
        want = batch.dense[name]
        same = want.shape == batch.reduced[name].shape
        if same and want[:1].size == 1:
            found.append(Numbers(name, asked.worst, asked.seed))
        elif same and want.ndim == 2 and _task(name, want, asked) == "classes":
            numbers = None
            if has_labels and not counted:
                numbers = ClassNumbers(source, asked.names, want.shape[1], f"output '{name}'")
                counted = True
            found.append(Classes(name, asked.names, numbers, asked.worst))
        elif same and want.ndim == 2 and _task(name, want, asked) == "embedding":
            if asked.texts is not None and want.shape[1] == asked.texts.rows.shape[1]:
                found.append(_zero_shot(name, asked.texts, source, asked, has_labels))
                texts = True
            found.append(Embeddings(name, asked.worst, asked.seed))
        elif same and want.ndim == 4 and asked.label_maps is not None and not mapped:
            maps, classes = asked.label_maps, want.shape[1]
            record = model.preprocessing
            found.append(
                LabelMaps(name, maps, record, asked.names, classes, asked.worst, asked.seed)
            )
            mapped = True
        else:
            channels = _channels(want, asked.schedule or {})
            found.append(Features(name, asked.worst, asked.seed, towers, channels))
    if asked.boxes is not None:
        found.append(_boxes(batch, names, asked, model))
    _check_used(asked, texts, mapped, batch)
    return found


def _boxes(batch: Batch, names: Sequence[str], asked: Asked, model: Signature) -> Boxes:
    """What collects the average precision of boxes [B, Q, 4] with scores [B, Q, C] beside; of
    several the one that is called so, since there may be four scores."""
    assert asked.boxes is not None
    shapes = {n: a.shape for n, a in batch.dense.items() if n in names and a.ndim == 3}
    fitting = [name for name, shape in shapes.items() if shape[2] == 4]
    for boxes in sorted(fitting, key=lambda name: "box" not in name.lower()):
        for scores, shape in shapes.items():
            same = shape[1] == shapes[boxes][1] == batch.reduced[boxes].shape[1]
            if scores != boxes and same and batch.reduced[scores].shape == shape:
                record = model.preprocessing
                truth, labels, worst = asked.boxes, asked.names, asked.worst
                return Boxes(scores, boxes, truth, labels, shape[2], record, worst)
    have = ", ".join(f"'{n}' {list(a.shape[1:])}" for n, a in batch.dense.items())
    raise UsageError(
        f"no outputs are scores [queries, classes] and boxes [queries, 4]; there is {have}",
        where="--boxes",
    )


def _check_used(asked: Asked, texts: bool, mapped: bool, batch: Batch) -> None:
    have = ", ".join(f"'{n}' {list(a.shape[1:])}" for n, a in batch.dense.items())
    if asked.texts is not None and not texts:
        width = asked.texts.rows.shape[1]
        raise UsageError(
            f"no output is an embedding of {width} numbers, as the texts are; there is {have}",
            where="--texts",
        )
    if asked.label_maps is not None and not mapped:
        raise UsageError(
            f"no output has scores [classes, height, width]; there is {have}", where="--label-maps"
        )


def _zero_shot(
    name: str, texts: TextEmbeddings, source: Source, asked: Asked, has_labels: bool
) -> Classes:
    count = len(texts.rows)
    names = texts.names or (asked.names if len(asked.names) == count else ())
    numbers = ClassNumbers(source, names, count, "the texts") if has_labels else None
    prefix = ("zeroshot", "zeroshot_")
    return Classes(name, names, numbers, asked.worst, scores=texts.scores(), prefix=prefix)


def _task(name: str, array: Array, asked: Asked) -> str:
    if asked.task is not None:
        return asked.task
    if asked.texts is not None and array.shape[1] == asked.texts.rows.shape[1]:
        return "embedding"
    return "classes" if holds_classes(name, array) else "embedding"


def _channels(array: Array, schedule: Mapping[str, Any]) -> int | None:
    """The axis of channels, see `Features`: of [B, X, Y] they are the last axis if X counts the
    model's tokens, or if nothing says how many these are; else it is a map."""
    if array.ndim == 4:
        return 1
    shape = schedule.get("model") or {}
    counts = [shape[key] for key in ("tokens", "patches") if key in shape]
    if array.ndim == 3 and (not counts or array.shape[1] in counts):
        return None
    return 0
