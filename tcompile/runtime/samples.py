"""Inputs for a model, from data or a seed, and what it makes of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from tcompile.core.errors import UsageError
from tcompile.core.model_files import TensorInfo
from tcompile.core.save import saved
from tcompile.data.base import ArrayItem, Label, Source
from tcompile.data.opening import open_source
from tcompile.data.video import SUFFIXES as VIDEOS
from tcompile.runtime.arrays import check_inputs
from tcompile.runtime.decoding import Unread, decoded, image_input, none_readable
from tcompile.runtime.host_image import read_host_image
from tcompile.runtime.signature import Signature, fixed_dim, is_packed, leading_input
from tcompile.runtime.token_outputs import is_bookkeeping

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from tcompile.targets.backends.base import Opened
    from tcompile.targets.backends.cpu import OnCpu

Array = npt.NDArray[Any]
#: Values of a batch of any size: eight images of 224 × 224, since activations grow with them.
_AT_ONCE = 8 * 3 * 224 * 224
#: Frames of a video that are held at a time, and bytes of images.
_FRAMES, _HELD = 256, 2 << 30


@dataclass(frozen=True)
class Samples:
    """Inputs by name, one sample a row, and where they come from.

    Attributes:
        real: whether these are real inputs, whose classes mean something.
        ids: of images, by which a person finds each row's again: its path within the data.
        labels: the number of the model's class each, where they were asked for and are known.
        left_out: how many images could not be read, and why; empty where all were.
        scenes: whether they are procedural scenes, with the statistics of images; where neither
            this nor `real` holds, they are white noise.
    """

    arrays: Mapping[str, Array]
    source: str
    real: bool
    ids: tuple[str, ...] = ()
    labels: tuple[Label, ...] | None = None
    left_out: str = ""
    scenes: bool = False

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    @property
    def kind(self) -> Literal["data", "scenes", "noise"]:
        """What these are: given by a person, procedural scenes, or white noise."""
        return "data" if self.real else "scenes" if self.scenes else "noise"

    def first(self, count: int) -> Samples:
        """The first samples alone."""
        if count >= len(self):
            return self
        arrays = {name: array[:count] for name, array in self.arrays.items()}
        source = f"{count} of {self.source}"
        labels = None if self.labels is None else self.labels[:count]
        return replace(self, arrays=arrays, source=source, ids=self.ids[:count], labels=labels)

    def name_of(self, row: int) -> str:
        """A sample by its file's name, or by its number among the others, from 1 on; bytes of a
        name that are no UTF-8 are replaced."""
        if not self.ids:
            return f"sample {row + 1}"
        return Path(self.ids[row]).name.encode("utf-8", "surrogateescape").decode(errors="replace")


def samples_for(
    model: Signature,
    data: str | Path | None = None,
    *,
    count: int = 8,
    seed: int = 0,
    skip_unreadable: bool = False,
    labels: bool = False,
) -> Samples:
    """Read all of `data` (see `tcompile.data.opening.FORMS`), or draw `count` random inputs.

    Of a video with more than 256 frames, as many are taken, equally far apart; of more images than
    fit into 2 GiB, so many.

    Args:
        seed: of what is drawn.
        skip_unreadable: leave out images that cannot be read; `source` counts them.
        labels: read classes too, where the data has them.

    Raises `UsageError` for data that does not fit the model.
    """
    if data is None:
        return _random(model, count, seed)
    if Path(data).is_dir():
        image_input(model)
    source = open_source(data, labels=labels)
    sparse = ""
    if source.count and Path(data).suffix.lower() in VIDEOS and source.count > _FRAMES:
        every = -(-source.count // _FRAMES)
        source, sparse = open_source(data, every=every), f" (1 of {every} frames)"
    image = model.image_input
    size = 4 * math.prod(map(fixed_dim, image.shape[1:])) if image is not None else 1
    most, total = max(_HELD // max(size, 1), 1), source.count or 0
    if source.item is not None and total > most:
        source, sparse = source.spread(most), f" ({most:,} of {total:,}, equally far apart)"
    unread: list[Unread] = []
    found = _all_of(model, source, unread)
    if found is None and unread:
        raise none_readable(source, unread)
    if unread and not skip_unreadable:
        raise unread[0].error
    if found is None:
        raise UsageError("holds no samples", where=source.name)
    if unread:
        total = len(unread) + len(found)
        left_out = f"{len(unread)} of {total} images left out: {unread[0].error.one_line()}"
        found = replace(found, source=f"{found.source} ({left_out})", left_out=left_out)
    return replace(found, source=found.source + sparse)


def _all_of(model: Signature, source: Source, unread: list[Unread]) -> Samples | None:
    """All samples of a source; None: it has none that can be read."""
    parts: list[Mapping[str, Array]] = []
    ids: list[str] = []
    labels: list[Label | None] = []
    for item, row in decoded(model, source, unread):
        if isinstance(item, ArrayItem):
            parts.append({name: np.asarray(array) for name, array in item.arrays.items()})
            labels += [None] if item.labels is None else np.atleast_1d(item.labels).tolist()
        else:
            source.check_label(item)
            parts.append({image_input(model).name: row})
            ids.append(item.id)
            labels.append(item.label)
    if not parts:
        return None
    try:
        arrays = {
            n: np.concatenate([p[n] for p in parts]) if len(parts) > 1 else a
            for n, a in parts[0].items()
        }
    except (KeyError, ValueError, TypeError) as error:
        raise UsageError("gives arrays of different shapes", where=source.name) from error
    found = sample_arrays(model, arrays, Path(source.name))
    # Numbers of classes that the data names itself are not those of the model's classes.
    known = () if source.classes else tuple(label for label in labels if label is not None)
    return replace(found, ids=tuple(ids), labels=known if len(known) == len(labels) else None)


def sample_arrays(model: Signature, arrays: Mapping[str, Array], path: Path) -> Samples:
    """Arrays by input name as samples, with ones for inputs that have none.

    Raises `UsageError`, naming `path`, for arrays that do not fit the model.
    """
    arrays = _for_each_sample(model, check_inputs(model, arrays, str(path)), path)
    lengths = {len(array) for array in arrays.values()}
    if lengths == {0}:
        raise UsageError("holds no samples", where=str(path))
    if len(lengths) != 1 or 0 in lengths:
        raise UsageError("arrays must hold the same number of samples", where=str(path))
    missing = [t for t in model.inputs if t.name not in arrays]
    rest = {t.name: _placeholder(model, t, max(lengths)) for t in missing} if missing else {}
    total = len(next(iter(arrays.values())))
    filled = f" (ones for {', '.join(rest)})" if rest else ""
    source = f"{total} sample{'s' if total != 1 else ''} from {path.name}{filled}"
    return Samples({**arrays, **rest}, source, real=True)


def _for_each_sample(model: Signature, arrays: Mapping[str, Array], path: Path) -> dict[str, Array]:
    """Arrays of inputs with a batch of their own (texts) once for each sample, unless they hold as
    many rows as there are samples."""
    own = {t.name for t in model.inputs if model.own_batch(t) and t.name in arrays}
    counts = [len(array) for name, array in arrays.items() if name not in own]
    found = dict(arrays)
    for tensor in model.inputs:
        if tensor.name not in own or not counts:
            continue
        array, fixed = found[tensor.name], isinstance(tensor.shape[0], int)
        if len(array) == counts[0] and (not fixed or model.batch == 1):
            continue
        if fixed:
            if len(array) != 1:
                raise UsageError(
                    f"input '{tensor.name}' has a batch of its own, which is given once for all "
                    f"samples: {list(tensor.shape)}",
                    where=str(path),
                )
            array = array[0]
        found[tensor.name] = np.broadcast_to(array, (counts[0], *array.shape))
    return found


def batches(samples: Samples, size: int | None) -> Iterator[tuple[dict[str, Array], int]]:
    """Cut samples into batches, each with its count of true rows.

    The last one is filled up by repeating its last row: a fixed batch takes no fewer.

    Args:
        size: of a batch; None: eight at most, fewer where they are large.
    """
    total = len(samples)
    if size is None:
        values = max(sum(a[:1].size for a in samples.arrays.values()), 1)
        size = min(total, 8, max(_AT_ONCE // values, 1))
    for start in range(0, total, size):
        rows = np.minimum(np.arange(start, start + size), total - 1)
        yield {name: a[rows] for name, a in samples.arrays.items()}, min(size, total - start)


def run_all(path: str | Path, samples: Samples, how: OnCpu | None = None) -> dict[str, Array]:
    """Return every output for every sample, samples first.

    Extra arrays are ignored, dtypes adapted.

    Args:
        how: in ONNX Runtime by default.
    """
    from tcompile.targets.backends.cpu import ORT

    return run_samples((how or ORT).open(Path(path)), samples)


def run_samples(runner: Opened, samples: Samples, at_once: int | None = None) -> dict[str, Array]:
    """Return every output of an open model for every sample, as `run_all` does.

    Args:
        at_once: samples in a run of a model that takes any number; None: as `batches` has it.
    """
    packed = bool(runner.inputs) and is_packed(runner.inputs[0])
    fixed, host = rows_of(runner), read_host_image(runner.metadata)
    kept: dict[str, list[Array]] = {tensor.name: [] for tensor in runner.outputs}
    for arrays, true_rows in batches(samples, fixed or at_once):
        size = len(next(iter(arrays.values())))
        arrays = arrays if host is None else host.fed(arrays)
        for name, array in runner.run(feed(runner.inputs, arrays)).items():
            if packed and not is_bookkeeping(name):
                array = array[np.newaxis]  # what it says of the tokens has a batch of 1 already
            kept[name].append(by_sample(array, size)[:true_rows])
    return {name: np.concatenate(parts) for name, parts in kept.items() if parts}


def feeds(model: Signature, samples: Samples, least: int = 1) -> Iterator[dict[str, Array]]:
    """What a model is given for the samples, run after run; `least` samples a run where it takes
    any number."""
    for arrays, _ in batches(samples, model.batch or least):
        yield feed(model.inputs, arrays if model.host is None else model.host.fed(arrays))


def run_graph(graph: gs.Graph, samples: Samples) -> dict[str, Array]:
    """Return every output of a graph for every sample, as `run_all` gives those of a file."""
    with saved(graph) as path:
        return run_all(path, samples)


def rows_of(runner: Opened) -> int | None:
    """Samples that a model takes at once; None: any number."""
    if runner.inputs and is_packed(runner.inputs[0]):
        return 1
    first = leading_input(runner.inputs).shape[:1] if runner.inputs else ()
    return first[0] if first and isinstance(first[0], int) else None


def by_sample(array: Array, batch: int) -> Array:
    """An output of a run of `batch` samples, samples first.

    Some models give [N, B, C], some merge the batch with another axis, and some outputs have
    nothing to do with it (of texts, or a number): those are every sample's.
    """
    if array.ndim and array.shape[0] == batch:
        return array
    if array.ndim > 1 and array.shape[1] == batch:
        return np.moveaxis(array, 1, 0)
    if array.ndim and array.shape[0] and array.shape[0] % batch == 0:
        return array.reshape(batch, -1, *array.shape[1:])
    return np.broadcast_to(array, (batch, *array.shape))


def feed(inputs: Sequence[TensorInfo], arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays a model asks for, in the dtypes it asks for."""
    missing = [tensor.name for tensor in inputs if tensor.name not in arrays]
    if missing:
        raise UsageError(f"no data for input '{missing[0]}'", hint="name it in an .npz file")
    found = {t.name: arrays[t.name].astype(t.dtype, copy=False) for t in inputs}
    # Packed patches have no batch axis; what has a batch of its own is the same for all samples.
    return {
        t.name: found[t.name][0] if found[t.name].ndim == len(t.shape) + 1 else found[t.name]
        for t in inputs
    }


def _random(model: Signature, count: int, seed: int) -> Samples:
    rng = np.random.default_rng(seed)
    arrays: dict[str, Array] = {}
    for tensor in model.inputs:
        shape = [count, *(fixed_dim(d) for d in model.rows(tensor))]
        if tensor.dtype.startswith("float"):
            drawn = rng.standard_normal(shape)
            if tensor.name in model.pixels:
                drawn = np.clip(127.5 + 64 * drawn, 0, 255)
            drawn = drawn.astype(tensor.dtype)
            whole = len(shape) > len(tensor.shape) and not model.packed
            arrays[tensor.name] = np.broadcast_to(drawn[:1], shape) if whole else drawn
        elif tensor.dtype == "uint8" and len(shape) == 4:
            arrays[tensor.name] = rng.integers(256, size=shape, dtype=np.uint8)
        else:
            arrays[tensor.name] = _placeholder(model, tensor, count)
    if not arrays:
        raise UsageError("the model has no inputs", where=str(model.path))
    source = f"{count} random input{'s' if count != 1 else ''} (seed {seed})"
    return Samples(arrays, source, real=False)


def _placeholder(model: Signature, tensor: TensorInfo, count: int) -> Array:
    """Ones: right for masks and harmless for ids."""
    return np.ones([count, *(fixed_dim(d) for d in model.rows(tensor))], dtype=tensor.dtype)
