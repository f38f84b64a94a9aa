"""Inputs for a model, from data or a seed, and what it makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

from tcompile.errors import UsageError
from tcompile.manifest import TensorEntry, describe_tensors
from tcompile.verify.choice import is_bookkeeping
from tcompile.verify.pixels import pixel_inputs

if TYPE_CHECKING:
    import numpy as np

    from tcompile.targets.backends.base import TensorInfo
    from tcompile.targets.backends.ort import OrtRunner

    Array = np.ndarray[Any, np.dtype[Any]]

IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"}


@dataclass(frozen=True)
class Signature:
    """What a model file takes and gives, and how images are prepared for it (may be empty)."""

    path: Path
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]
    preprocessing: Mapping[str, Any]
    #: Float inputs that hold pixels from 0 to 255: the model scales them itself.
    pixels: frozenset[str] = frozenset()

    @property
    def packed(self) -> bool:
        """Whether the rows of the first input are the patches of one sample, not samples."""
        return bool(self.inputs) and _packed(self.inputs[0])

    def rows(self, tensor: TensorEntry) -> tuple[int | str, ...]:
        """The shape of one sample of an input."""
        return tuple(tensor.shape if self.packed else tensor.shape[1:])

    @property
    def batch(self) -> int | None:
        """The fixed batch size, or None when any will do."""
        if self.packed:
            return 1
        first = self.inputs[0].shape[0] if self.inputs and self.inputs[0].shape else 1
        return first if isinstance(first, int) else None

    @property
    def image_input(self) -> TensorEntry | None:
        """The first floating-point input of four axes, or of packed patches, if there is one."""
        if self.packed:
            return self.inputs[0]
        images = (t for t in self.inputs if len(t.shape) == 4 and t.dtype.startswith("float"))
        return next(images, None)


@dataclass(frozen=True)
class Samples:
    """Inputs by name, one sample a row, and where they come from."""

    arrays: Mapping[str, Array]
    source: str
    #: True when these are real inputs, whose classes mean something.
    real: bool

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))


def _packed(tensor: TensorEntry | TensorInfo) -> bool:
    """A static [N, C] of floats with several rows: patches, as the Qwen processors pack them."""
    shape = tensor.shape
    static = len(shape) == 2 and all(isinstance(d, int) for d in shape)
    return static and shape[0] != 1 and str(tensor.dtype).startswith("float")


def signature(path: str | Path) -> Signature:
    """Read a model's inputs, outputs and preprocessing. Raises `UsageError` or `ModelError`."""
    path = Path(path)
    if not path.is_file():
        return _signature(path, 0, 0)  # which says what is wrong
    state = path.stat()
    return _signature(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=16)
def _signature(path: Path, changed: int, size: int) -> Signature:
    """Read once for each state of the file: weights may be large, and a build asks often."""
    from tcompile.loading import load
    from tcompile.models.preprocess import read_preprocessing

    model = load(path)
    inputs, outputs = describe_tensors(model)
    found = pixel_inputs(model)
    return Signature(path, inputs, outputs, read_preprocessing(model) or {}, found)


def samples_for(
    model: Signature, data: str | Path | None = None, *, count: int = 8, seed: int = 0
) -> Samples:
    """Read `data` (images in a folder, .npy or .npz), or draw `count` random inputs from a seed.

    Raises `UsageError` for data that does not fit the model.
    """
    if data is None:
        return _random(model, count, seed)
    path = Path(data)
    if not path.exists():
        raise UsageError("no such file or directory", where=str(path), hint="see --data")
    arrays = _read(model, path)
    arrays = {name: _checked(model, name, array, path) for name, array in arrays.items()}
    lengths = {len(array) for array in arrays.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise UsageError("arrays must hold the same number of samples", where=str(path))
    missing = [t for t in model.inputs if t.name not in arrays]
    rest = {t.name: _placeholder(model, t, max(lengths)) for t in missing} if missing else {}
    total = len(next(iter(arrays.values())))
    return Samples({**arrays, **rest}, f"{total} samples from {path.name}", real=True)


def batches(samples: Samples, size: int | None) -> Iterator[tuple[dict[str, Array], int]]:
    """Cut samples into batches, each with its count of true rows.

    The last one is filled up by repeating its last row: a fixed batch takes no fewer.
    """
    import numpy as np

    total = len(samples)
    size = size or min(total, 8)
    for start in range(0, total, size):
        rows = np.minimum(np.arange(start, start + size), total - 1)
        yield {name: a[rows] for name, a in samples.arrays.items()}, min(size, total - start)


def run_all(path: str | Path, samples: Samples, *, threads: int | None = None) -> dict[str, Array]:
    """Every output for every sample, samples first, on ONNX Runtime.

    Extra arrays are ignored, dtypes adapted.
    """
    import numpy as np

    from tcompile.targets.backends.ort import OrtRunner

    runner = OrtRunner(Path(path), threads=threads)
    packed = bool(runner.inputs) and _packed(runner.inputs[0])
    fixed = rows_of(runner)
    kept: dict[str, list[Array]] = {tensor.name: [] for tensor in runner.outputs}
    for arrays, true_rows in batches(samples, fixed):
        size = len(next(iter(arrays.values())))
        for name, array in runner.run(feed(runner.inputs, arrays)).items():
            if packed and not is_bookkeeping(name):
                array = array[np.newaxis]  # what it says of the tokens has a batch of 1 already
            kept[name].append(_batch_first(array, size)[:true_rows])
    return {name: np.concatenate(parts) for name, parts in kept.items() if parts}


def rows_of(runner: OrtRunner) -> int | None:
    """Samples that a model takes at once; None: any number."""
    if runner.inputs and _packed(runner.inputs[0]):
        return 1
    first = runner.inputs[0].shape[:1] if runner.inputs else ()
    return first[0] if first and isinstance(first[0], int) else None


def _batch_first(array: Array, batch: int) -> Array:
    """Some models give [N, B, C]; a batch of samples always comes first here."""
    import numpy as np

    if array.ndim > 1 and array.shape[0] != batch and array.shape[1] == batch:
        return np.moveaxis(array, 1, 0)
    return array


def feed(
    inputs: Sequence[TensorEntry | TensorInfo], arrays: Mapping[str, Array]
) -> dict[str, Array]:
    """The arrays a model asks for, in the dtypes it asks for."""
    missing = [tensor.name for tensor in inputs if tensor.name not in arrays]
    if missing:
        raise UsageError(f"no data for input '{missing[0]}'", hint="name it in an .npz file")
    found = {t.name: arrays[t.name].astype(t.dtype, copy=False) for t in inputs}
    # Packed patches have no batch axis: the one sample stands for itself.
    return {
        t.name: found[t.name][0] if found[t.name].ndim == len(t.shape) + 1 else found[t.name]
        for t in inputs
    }


def _random(model: Signature, count: int, seed: int) -> Samples:
    import numpy as np

    rng = np.random.default_rng(seed)
    arrays: dict[str, Array] = {}
    for tensor in model.inputs:
        shape = [count, *(_size(d) for d in model.rows(tensor))]
        if tensor.dtype.startswith("float"):
            drawn = rng.standard_normal(shape)
            if tensor.name in model.pixels:
                drawn = np.clip(127.5 + 64 * drawn, 0, 255)
            arrays[tensor.name] = drawn.astype(tensor.dtype)
        else:
            arrays[tensor.name] = _placeholder(model, tensor, count)
    if not arrays:
        raise UsageError("the model has no inputs", where=str(model.path))
    return Samples(arrays, f"{count} random inputs (seed {seed})", real=False)


def _placeholder(model: Signature, tensor: TensorEntry, count: int) -> Array:
    """Ones: right for masks and harmless for ids."""
    import numpy as np

    return np.ones([count, *(_size(d) for d in model.rows(tensor))], dtype=tensor.dtype)


def _size(dim: int | str) -> int:
    return dim if isinstance(dim, int) else 1


def _read(model: Signature, path: Path) -> dict[str, Array]:
    import numpy as np

    if path.is_dir() or path.suffix.lower() in IMAGES:
        return _read_images(model, path)
    first = model.inputs[0].name
    try:
        # allow_pickle stays off: a data file is data (DESIGN 5.12).
        if path.suffix == ".npy":
            return {first: np.load(path, allow_pickle=False)}
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            known = {t.name for t in model.inputs}
            named = {name: array for name, array in arrays.items() if name in known}
            if named or len(arrays) != 1:
                return _some(named, path, sorted(known))
            return {first: next(iter(arrays.values()))}
    except (ValueError, TypeError, OSError, EOFError, BadZipFile) as error:
        # What NumPy says of a file that is none advises to load it unsafely.
        raise UsageError(f"cannot be read as {path.suffix}, which holds plain arrays",
                         where=str(path)) from error  # fmt: skip
    raise UsageError(
        "unknown kind of data", where=str(path), hint="an image, a folder of images, .npy or .npz"
    )


def _some(named: dict[str, Array], path: Path, known: list[str]) -> dict[str, Array]:
    if not named:
        hint = f"name an array one of: {', '.join(known)}"
        raise UsageError("holds no array for any input of the model", where=str(path), hint=hint)
    return named


def _read_images(model: Signature, path: Path) -> dict[str, Array]:
    import numpy as np

    from tcompile.models.preprocess import load_image

    tensor = model.image_input
    if tensor is None:
        raise UsageError("the model takes no images [B, C, H, W]", where=str(model.path))
    if not model.preprocessing:
        raise UsageError(
            "does not say how images are prepared for it",
            where=str(model.path),
            hint="give the input as .npy or .npz",
        )
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGES)
    if not files:
        raise UsageError("no images in this folder", where=str(path))
    images = [load_image(file, model.preprocessing) for file in files]
    return {tensor.name: np.stack(images) if model.packed else np.concatenate(images)}


def _checked(model: Signature, name: str, array: Array, path: Path) -> Array:
    """Shape [n, …] as the input wants it; a single sample may come without the first axis."""
    import numpy as np

    tensor = next(t for t in model.inputs if t.name == name)
    rows = model.rows(tensor)
    if array.ndim == len(rows):
        array = array[np.newaxis]
    fits = array.ndim == len(rows) + 1 and all(
        want == got or isinstance(want, str)
        for want, got in zip(rows, array.shape[1:], strict=True)
    )
    if not fits:
        want_text = " × ".join(map(str, ("n", *rows)))
        have = " × ".join(map(str, array.shape))
        raise UsageError(f"input '{name}' is {want_text}, the data {have}", where=str(path))
    return array
