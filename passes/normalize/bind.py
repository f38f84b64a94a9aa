"""Bind every input dim: literal, or the one symbolic batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.errors import ModelError, UsageError
from tcompile.ir import BATCH_SENTINEL

Shapes = Mapping[str, Sequence[int | str]]


def bind_inputs(graph: gs.Graph, shapes: Shapes | None = None) -> bool:
    """Give every graph input a literal shape; a symbolic first dim becomes the batch sentinel.

    Dim names that are digit strings are literals (transformers' exporter writes `'224'`). All
    intermediate shapes are dropped: they may be stale.

    Args:
        shapes: input name → dims, to bind a dynamic image size by hand. A string dim stays free.

    Returns:
        Whether the batch is symbolic.

    Raises:
        ModelError: a dim other than the first is dynamic.
        UsageError: `shapes` names no input, or has the wrong rank.
    """
    initialised = [t for t in graph.inputs if isinstance(t, gs.Constant)]
    graph.inputs = [t for t in graph.inputs if not any(t is c for c in initialised)]
    shapes = dict(shapes or {})
    symbolic = False
    for tensor in graph.inputs:
        if tensor.shape is None or not isinstance(tensor.dtype, (type, np.dtype)):
            raise ModelError(
                f"input '{tensor.name}' is no tensor of a type and rank that tcompile knows",
                hint="export the model in fp32, its inputs with shapes",
            )
        given = shapes.pop(tensor.name, None)
        dims = list(given if given is not None else tensor.shape or [])
        if given is not None and tensor.shape and len(given) != len(tensor.shape):
            raise UsageError(
                f"has {len(tensor.shape)} dims, {len(given)} were given", where=tensor.name
            )
        _check_given(tensor, given)
        bound: list[int] = []
        for axis, dim in enumerate(dims):
            literal = dim if isinstance(dim, int) else _digits(dim)
            if literal is not None and literal > 0:
                if literal % BATCH_SENTINEL == 0:
                    raise ModelError(
                        f"dim {axis} of input '{tensor.name}' is {literal}; multiples of "
                        f"{BATCH_SENTINEL} stand for a free batch inside tcompile",
                        hint="use another size",
                    )
                bound.append(literal)
            elif axis == 0:
                bound.append(BATCH_SENTINEL)
                symbolic = True
            else:
                raise ModelError(
                    f"dim {axis} ('{dim}') of input '{tensor.name}' is dynamic, so the number of "
                    "tokens is not known at compile time",
                    hint=f"bind it, e.g. --shape {tensor.name}="
                    + ",".join(
                        "batch" if i == 0 else "3" if i == 1 else "224" for i in range(len(dims))
                    ),
                )
        tensor.shape = bound
    if shapes:
        names = ", ".join(t.name for t in graph.inputs)
        raise UsageError(f"the model has no input '{next(iter(shapes))}'", hint=f"it has: {names}")
    for tensor in graph.tensors().values():
        if not isinstance(tensor, gs.Constant) and not any(tensor is t for t in graph.inputs):
            tensor.shape = None
    return symbolic


def _check_given(tensor: gs.Tensor, given: Sequence[int | str] | None) -> None:
    """A size that the file settles stays as it is: the weights may depend on it.

    Raises:
        UsageError: another one was given.
    """
    for axis, (dim, wanted) in enumerate(zip(tensor.shape or (), given or (), strict=False)):
        literal = dim if isinstance(dim, int) else _digits(dim)
        if literal is not None and literal > 0 and wanted != literal:
            raise UsageError(
                f"dim {axis} of input '{tensor.name}' is {literal} in the file, not {wanted}",
                where="--shape",
            )


def _digits(dim: object) -> int | None:
    return int(dim) if isinstance(dim, str) and dim.isdigit() else None
