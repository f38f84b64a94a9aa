"""Arrays of .npy and .npz files, checked against the inputs that a model has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from tcompile.core.arrays import UNNAMED, Array
from tcompile.core.errors import UsageError
from tcompile.data.arrays import LABELS

if TYPE_CHECKING:
    from tcompile.runtime.signature import Signature


def check_inputs(model: Signature, arrays: Mapping[str, Array], where: str) -> dict[str, Array]:
    """The arrays for a model's inputs, one sample a row; labels are left out.

    A single array without a name stands for the first input. A single sample may come without the
    first axis. Values are checked against the input's type and returned in their own.

    Raises:
        UsageError: a name that is not an input's, the image input missing, another shape, values
            that the input's type cannot hold, NaN or Inf.
    """
    known = {tensor.name: tensor for tensor in model.inputs}
    rest = {name: array for name, array in arrays.items() if name != LABELS or name in known}
    if set(rest) == {UNNAMED} and UNNAMED not in known and known:
        rest = {next(iter(known)): rest[UNNAMED]}
    _check_names(model, rest, known, where)
    shaped: dict[str, Array] = {}
    for name, array in rest.items():
        _check_kind(name, array, known[name].dtype, where)
        shaped[name] = _one_a_row(name, array, model.rows(known[name]), where)
        _check_values(name, shaped[name], known[name].dtype, where)
    return shaped


def refuse_nonfinite(array: Array, name: str, where: str, hint: str = "") -> None:
    """Raise `UsageError` that names file, key, first index and count of NaN or Inf."""
    if array.dtype.kind not in "fc" and array.dtype.name != "bfloat16":
        return
    bad = ~np.isfinite(array)
    if bad.any():
        first = _first(bad)
        raise UsageError(
            f"'{name}' has {array[first]} at {list(first)}, {int(bad.sum())} of its "
            f"{array.size} values are not finite",
            where=where,
            hint=hint,
        )


def _check_names(
    model: Signature, given: Mapping[str, Array], known: Iterable[str], where: str
) -> None:
    takes = f"the model takes {_names(known)}"
    strange = sorted(set(given) - set(known))
    if strange:
        raise UsageError(
            f"has {_names(strange)}, which the model has no input for; {takes}",
            where=where,
            hint=f"name the arrays as the inputs; '{LABELS}' may be there too",
        )
    image = model.image_input or next((t for t in model.inputs if len(t.shape) > 2), None)
    missing = image is not None and image.name not in given
    if not given or missing:
        needs = f" '{image.name}'" if image is not None and missing else " any input"
        raise UsageError(f"holds no array for{needs}; {takes}", where=where)


def _one_a_row(name: str, array: Array, rows: tuple[int | str, ...], where: str) -> Array:
    if array.ndim == len(rows):
        array = array[np.newaxis]
    fits = array.ndim == len(rows) + 1 and all(
        want == got or isinstance(want, str)
        for want, got in zip(rows, array.shape[1:], strict=True)
    )
    if not fits:
        want_text = " × ".join(map(str, ("n", *rows)))
        have = " × ".join(map(str, array.shape)) or "a single number"
        raise UsageError(f"input '{name}' is {want_text}, the data {have}", where=where)
    return array


def _check_kind(name: str, array: Array, dtype: str, where: str) -> None:
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise UsageError(
            f"'{name}' holds {array.dtype}, not real numbers; the input is {dtype}", where=where
        )


def _check_values(name: str, array: Array, dtype: str, where: str) -> None:
    """Refuse what becomes another value in the input's type."""
    masked = "in a mask, write -1e4 for -inf" if array.ndim != 4 else ""
    refuse_nonfinite(array, name, where, masked)
    wanted = np.dtype(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(wanted)
    if wanted.kind in "biu":
        bad = cast.astype(np.float64) != array.astype(np.float64)
    else:
        bad = ~np.isfinite(cast)
    if bad.any():
        first = _first(bad)
        raise UsageError(
            f"'{name}' has {array[first]} at {list(first)}, which is not a value of "
            f"the input's type {dtype}",
            where=where,
        )


def _first(bad: Array) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), bad.shape))


def _names(names: Iterable[str]) -> str:
    """Names between quotation marks, a few of many."""
    found = [f"'{name}'" for name in names]
    more = f" and {len(found) - 8} more" if len(found) > 8 else ""
    return ", ".join(found[:8]) + more or "no inputs"
