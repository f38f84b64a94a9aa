"""What `check.sh` of a Jetson bundle needs: inputs, what they should give, how near it must be.

An engine is built and run where tcompile is not. So the bundle carries scenes (`check_inputs`) and
the outputs of the reduced model in fp32 on them, by ONNX Runtime, and a program of numpy that
compares (`examples/device/check.py`). Outputs are stored as fp16 where the model's own precision is
no finer.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tcompile.artifact.polygraphy import CHECKS
from tcompile.builder.check_inputs import check_inputs, stored_dtype, write_inputs
from tcompile.examples import FOLDER
from tcompile.runtime.signature import Signature, signature
from tcompile.runtime.token_outputs import INDEX, OWNER, for_output, is_bookkeeping
from tcompile.targets.backends import ort
from tcompile.targets.compatibility import NONE, Compatibility
from tcompile.targets.devices import HALF
from tcompile.targets.versions import TENSORRT
from tcompile.verify.lowered import COSINES
from tcompile.verify.numerics import FLIPPED_COSINE, TOLERANCES

Array = npt.NDArray[Any]
#: In that folder of the bundle, the program, its plan and its outputs.
PROGRAM, PLAN, DATA = "check.py", "check.json", "data.npz"
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
    runs, scenes = check_inputs(model, smallest)
    runner = ort.OrtRunner(reference)
    outputs = [t.name for t in model.outputs]
    arrays: dict[str, Array] = {}
    size = model.batch or smallest
    for i, given in enumerate(runs):
        found = runner.run(given)
        # A fixed batch is filled up with its last sample: those rows need not be stored.
        by_rows = all(found[n].ndim and len(found[n]) == size for n in outputs)
        kept = len(scenes) - i * size if by_rows and not model.packed else None
        for name in outputs:
            array = np.atleast_1d(found[name])
            if model.packed and not is_bookkeeping(name):
                array = array[np.newaxis]
            array = array if kept is None else array[:kept]
            arrays[f"{i}/out/{name}"] = _stored(array, half=precision != "fp32")
    first = {name: arrays[f"0/out/{name}"] for name in outputs}
    plan = {
        "schema": 1,
        "model": shipped.name,
        "precision": precision,
        "compatibility": _compatibility(compatibility or NONE),
        "reference": f"the reduced model in fp32 (ONNX Runtime {ort.version()}), {scenes.source}",
        "tolerance": _tolerance(precision),
        "runs": len(runs),
        "inputs": {t.name: {"dtype": stored_dtype(t.dtype)} for t in model.inputs},
        "outputs": _outputs(outputs, first, model, towers),
        "unseen_choice": reduced and not any(n.startswith((INDEX, OWNER)) for n in outputs),
    }
    folder = shipped.parent / CHECKS
    write_inputs(shipped.parent, runs)
    shutil.copyfile(FOLDER / "device" / PROGRAM, folder / PROGRAM)
    (folder / PLAN).write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
    np.savez_compressed(folder / DATA, **arrays)  # type: ignore[arg-type]


def _stored(array: Array, *, half: bool) -> Array:
    """The array in the smaller of two types that suffice."""
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        return array
    wide = array.astype(np.float32)
    return wide.astype(np.float16) if half and _fits_half(wide) else wide


def _fits_half(array: Array) -> bool:
    finite = array[np.isfinite(array)] if array.dtype.kind == "f" else array[:0]
    return array.dtype.kind == "f" and float(abs(finite).max(initial=0)) <= _FLOAT16_MAX


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
