"""Bind every input dim: literal, or a free batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.errors import ModelError, UsageError
from tcompile.core.graph import BATCH, free_factors, free_size, is_free, tensors_of

Shapes = Mapping[str, Sequence[int | str]]


class FreeDimError(ModelError):
    """A dim other than a batch is free."""


def bind_inputs(
    graph: gs.Graph, shapes: Shapes | None = None, joined: Mapping[str, str] | None = None
) -> list[str]:
    """Give every graph input a literal shape; a symbolic first dim becomes a prime.

    Dim names that are digit strings are literals (transformers' exporter writes `'224'`). All
    intermediate shapes are dropped: they may be stale. A single free dim is called `batch`; several
    keep their names, and one that has none is called after its input.

    Args:
        shapes: input name → dims, to bind a dynamic image size by hand. A string dim stays free.
        joined: name of a free dim → that of another that is the same one.

    Returns:
        The names of the free dims, as they came, those that are joined once.

    Raises:
        FreeDimError: a dim other than the first is dynamic.
        UsageError: `shapes` names no input, or has the wrong rank.
    """
    initialised = [t for t in graph.inputs if isinstance(t, gs.Constant)]
    graph.inputs = [t for t in graph.inputs if not any(t is c for c in initialised)]
    shapes, joined = dict(shapes or {}), joined or {}
    found: dict[str, list[int | str]] = {}
    for tensor in graph.inputs:
        found[tensor.name] = _bound(tensor, shapes.pop(tensor.name, None))
    if shapes:
        inputs = ", ".join(t.name for t in graph.inputs)
        raise UsageError(f"the model has no input '{next(iter(shapes))}'", hint=f"it has: {inputs}")
    for tensor in tensors_of(graph).values():
        if not isinstance(tensor, gs.Constant) and not any(tensor is t for t in graph.inputs):
            tensor.shape = None
    free = {n: joined.get(n, n) for dims in found.values() for n in dims if isinstance(n, str)}
    names = list(dict.fromkeys(free.values()))
    primes = {n: free_size(one if len(names) > 1 else BATCH) for n, one in free.items()}
    for tensor in graph.inputs:
        tensor.shape = [primes[d] if isinstance(d, str) else d for d in found[tensor.name]]
        _check_literals(tensor, found[tensor.name])
    return names


def _bound(tensor: gs.Tensor, given: Sequence[int | str] | None) -> list[int | str]:
    """The dims of an input, the name of the first where it is free."""
    known = isinstance(tensor.dtype, (type, np.dtype)) and np.dtype(tensor.dtype).kind in "biuf"
    if tensor.shape is None or not known:
        raise ModelError(
            f"input '{tensor.name}' is not a tensor of a type and rank that tcompile knows",
            hint="export the model in fp32, its inputs numbers with shapes",
        )
    dims = list(given if given is not None else tensor.shape or [])
    if given is not None and tensor.shape and len(given) != len(tensor.shape):
        raise UsageError(
            f"has {len(tensor.shape)} dims, {len(given)} were given", where=tensor.name
        )
    _check_given(tensor, given)
    bound: list[int | str] = []
    for axis, dim in enumerate(dims):
        literal = dim if isinstance(dim, int) else _digits(dim)
        if literal is not None and literal > 0:
            bound.append(literal)
        elif axis == 0:
            named = isinstance(dim, str) and dim.strip() and "*" not in dim and literal is None
            bound.append(str(dim) if named else f"{tensor.name}_batch")
        else:
            raise FreeDimError(
                f"dim {axis} ('{dim}') of input '{tensor.name}' is dynamic: tcompile reads a model "
                "for one size of its inputs",
                hint=f"bind it with --shape {tensor.name}=DIMS",
            )
    return bound


def _check_literals(tensor: gs.Tensor, dims: Sequence[int | str]) -> None:
    """Raises ModelError where a literal dim looks like a free one."""
    for axis, dim in enumerate(dims):
        if not isinstance(dim, str) and is_free(dim):
            raise ModelError(
                f"dim {axis} of input '{tensor.name}' is {dim}; multiples of "
                f"{free_size(free_factors(dim)[0][0])} stand for a free batch inside tcompile",
                hint="use another size",
            )


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
