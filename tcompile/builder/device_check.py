"""What `check.sh` of a Jetson bundle needs: inputs, what they should give, how near it must be.

An engine is built and run where tcompile is not. So the bundle carries two scenes and the outputs
of the reduced model in fp32 on them, by ONNX Runtime, and a program of numpy that compares
(`examples/device/check.py`). Inputs are rounded to fp16 before they are run, so that nothing is
lost by storing them so; outputs are stored as fp16 where the model's own precision is no finer.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tcompile.artifact.polygraphy import CHECKS
from tcompile.core.model_files import TensorInfo
from tcompile.examples import FOLDER
from tcompile.runtime.samples import Samples, batches, feed
from tcompile.runtime.scenes import JUDGED_ON, scenes_for
from tcompile.runtime.signature import Signature, signature
from tcompile.runtime.token_outputs import INDEX, OWNER, for_output, is_bookkeeping
from tcompile.targets.backends import ort
from tcompile.targets.compatibility import NONE, Compatibility
from tcompile.targets.devices import HALF
from tcompile.targets.versions import TENSORRT
from tcompile.verify.lowered import COSINES
from tcompile.verify.numerics import FLIPPED_COSINE, TOLERANCES

Array = npt.NDArray[Any]
#: In that folder of the bundle, the program, its plan and its arrays.
PROGRAM, PLAN, DATA = "check.py", "check.json", "data.npz"
_SCENES = 2
_FLOAT16_MAX = 65504


def write_device_check(
    reference: Path,
    shipped: Path,
    precision: str,
    *,
    reduced: bool,
    smallest: int = 1,
    towers: Mapping[str, str] | None = None,
    compatibility: Compatibility | None = None,
) -> None:
    """Write the check beside the model that is shipped.

    Args:
        reference: the reduced model in fp32; it may give more than the shipped one.
        shipped: the lowered model, whose inputs and outputs an engine has.
        precision: of that.
        reduced: whether tokens leave it.
        smallest: images that an engine takes at least, of a model with a free batch.
        towers: output → tower whose tokens it holds.
        compatibility: what the engine is made compatible with.
    """
    model = signature(shipped)
    samples = _as_half(scenes_for(model.whole, count=_SCENES, seed=JUDGED_ON))
    runner = ort.OrtRunner(reference)
    outputs = [t.name for t in model.outputs]
    arrays: dict[str, Array] = {}
    runs, rows = 0, dict[str, int | None]()
    for given, size, true_rows in _runs(model, samples, smallest):
        found = runner.run(given)
        # A fixed batch is filled up with its last sample: those rows need not be stored.
        by_rows = all(found[n].ndim and len(found[n]) == size for n in outputs)
        kept = true_rows if by_rows and true_rows < size and not model.packed else None
        for name, array in given.items():
            cut = kept is not None and array.ndim > 0 and len(array) == size > kept
            rows[name] = size if cut else None
            arrays[f"{runs}/in/{name}"] = _stored(array[:kept] if cut else array, half=True)
        for name in outputs:
            array = np.atleast_1d(found[name])
            if model.packed and not is_bookkeeping(name):
                array = array[np.newaxis]
            array = array if kept is None else array[:kept]
            arrays[f"{runs}/out/{name}"] = _stored(array, half=precision != "fp32")
        runs += 1
    first = {name: arrays[f"0/out/{name}"] for name in outputs}
    plan = {
        "schema": 1,
        "model": shipped.name,
        "precision": precision,
        "compatibility": _compatibility(compatibility or NONE),
        "reference": f"the reduced model in fp32 (ONNX Runtime {ort.version()}), {samples.source}",
        "tolerance": _tolerance(precision),
        "runs": runs,
        "inputs": {t.name: {"dtype": _numpy(t), "rows": rows[t.name]} for t in model.inputs},
        "outputs": _outputs(outputs, first, model, towers),
        "unseen_choice": reduced and not any(n.startswith((INDEX, OWNER)) for n in outputs),
    }
    folder = shipped.parent / CHECKS
    folder.mkdir()
    shutil.copyfile(FOLDER / "device" / PROGRAM, folder / PROGRAM)
    (folder / PLAN).write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
    np.savez_compressed(folder / DATA, **arrays)  # type: ignore[arg-type]


def _runs(
    model: Signature, samples: Samples, smallest: int
) -> Iterator[tuple[dict[str, Array], int, int]]:
    """Feeds of whole runs, their batch and true rows: one sample a run where that may be."""
    size = 1 if model.packed else model.batch or smallest
    for arrays, true_rows in batches(samples, size):
        fed = arrays if model.host is None else model.host.fed(arrays)
        yield _rounded(feed(model.inputs, fed)), size, true_rows


def _as_half(samples: Samples) -> Samples:
    """Samples that fp16 holds without loss."""
    arrays = _rounded(samples.arrays)
    return Samples(arrays, samples.source, samples.real, scenes=samples.scenes)


def _rounded(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {
        n: a.astype(np.float16).astype(a.dtype) if _fits_half(a) else a for n, a in arrays.items()
    }


def _stored(array: Array, *, half: bool) -> Array:
    """The array in the smaller of two types that suffice."""
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        return array
    wide = array.astype(np.float32)
    return wide.astype(np.float16) if half and _fits_half(wide) else wide


def _fits_half(array: Array) -> bool:
    finite = array[np.isfinite(array)] if array.dtype.kind == "f" else array[:0]
    return array.dtype.kind == "f" and float(abs(finite).max(initial=0)) <= _FLOAT16_MAX


def _numpy(tensor: TensorInfo) -> str:
    """What numpy alone can hold."""
    return "float32" if tensor.dtype == "bfloat16" else tensor.dtype


def _compatibility(made: Compatibility) -> dict[str, Any]:
    """What the program goes by, with the rule in it."""
    fields = {name: getattr(made, name) for name in ("version", "lean_runtime", "plugins")}
    return {**fields, "across": TENSORRT.compatibility.version.across}


def _tolerance(precision: str) -> dict[str, Any]:
    """As `tcompile verify` and a build judge: errors bound fp32 and fp16, directions the others."""
    known = TOLERANCES.get("fp16" if precision in HALF else precision)
    if known is None:
        least = COSINES[precision]
        bounds = {"error": None, "statistic": "mean", "cosine": least, "token_overlap": least}
        return {**bounds, "flipped_cosine": least}
    return {
        "error": known.error,
        "statistic": known.statistic,
        "cosine": known.cosine,
        "token_overlap": known.token_overlap,
        "flipped_cosine": FLIPPED_COSINE,
    }


def _outputs(
    names: Sequence[str],
    arrays: Mapping[str, Array],
    model: Signature,
    towers: Mapping[str, str] | None,
) -> dict[str, dict[str, Any]]:
    """How each output is compared: as values, as a set of tokens, as a map of owners, or not."""
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        array = arrays[name]
        if name.startswith(INDEX):
            found[name] = {"kind": "index"}
        elif name.startswith(OWNER):
            found[name] = {"kind": "owner"}
        elif is_bookkeeping(name) or array.dtype.kind != "f":
            found[name] = {"kind": "none"}
        else:
            found[name] = {"kind": "values"}
            index = None
            if array.ndim > 2:
                index = for_output(INDEX, name, arrays, array.shape[1], towers)
            own = [n for n in names if n in arrays and arrays[n] is index]
            found[name] |= {"index": own[0]} if own else {}
            found[name] |= {"one_sample": True} if model.packed else {}
    return found
