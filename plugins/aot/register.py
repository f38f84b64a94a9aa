"""The kernels as plugins of `tensorrt.plugin`, whose rules are these (10.9 to 11.4):

a name is `namespace::name`; tensors come first, then attributes, all annotated, without defaults;
`aot_impl` gets the inputs, the attributes, `outputs` and `tactic`, and gives the kernel's name, its
PTX, how it is launched, and the 32-bit numbers between the pointers to inputs and to outputs. An
attribute is called as the field of the library's plugin is (`fields.py`), so that one ONNX file
serves both. Both cannot be registered in one process.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from types import GenericAlias, ModuleType
from typing import Any

from tcompile.core.errors import UsageError
from tcompile.plugins.aot.ptx import kernel_ptx, this_architecture
from tcompile.plugins.aot_kernels import aot_launch
from tcompile.plugins.fields import field_names
from tcompile.plugins.ops import OPS
from tcompile.plugins.shapes import symbols, terms
from tcompile.plugins.spec import PLUGIN_NAMESPACE, TokenOp

#: A size: a whole number, or one of TensorRT's symbolic expressions, which know + - * //.
Size = Any

_TYPES = {"FLOAT": "f32", "HALF": "f16", "BF16": "bf16", "INT32": "i32", "INT64": "i64"}
_done: set[str] = set()


def register(
    trtp: ModuleType | None = None, architecture: int | None = None, **options: Any
) -> tuple[str, ...]:
    """Register every op; those that are registered already stay.

    Args:
        trtp: `tensorrt.plugin`; imported by default.
        architecture: the oldest GPU that is to run the engine; this machine's by default.
        options: for `tensorrt.plugin.register`, such as `lazy_register`.

    Returns:
        Names of the ops.

    Raises:
        UsageError: there is no `tensorrt.plugin` with `aot_impl`.
    """
    trtp = trtp or _plugin_module()
    if not hasattr(trtp, "aot_impl"):
        raise UsageError(
            "this TensorRT takes no kernels compiled ahead of time: 10.9 is the first that does",
            where="--token-ops",
            hint="plugin is built on any",
        )
    arch = architecture or this_architecture()
    for op in OPS:
        if op.name in _done:
            continue
        name = f"{PLUGIN_NAMESPACE}::{op.name}"
        trtp.register(name, **options)(described(op, trtp))
        trtp.aot_impl(name)(implemented(op, trtp, arch))
        _done.add(op.name)
    return tuple(op.name for op in OPS)


def described(op: TokenOp, trtp: ModuleType) -> Callable[..., tuple[Any, ...]]:
    """For `tensorrt.plugin.register`: shapes and types of the outputs."""
    trt = sys.modules[trtp.__name__.rpartition(".")[0]]

    def describe(*given: Any) -> tuple[Any, ...]:
        inputs, numbers = given[: len(op.takes)], given[len(op.takes) :]
        sizes = _sizes(op, inputs, numbers)
        _check(op, inputs, sizes)
        outputs = []
        for tensor in op.gives:
            dtype = trt.int64 if tensor.kind == "index" else trt.float32
            if tensor.kind != "f32":
                for other, desc in zip(op.takes, inputs, strict=True):
                    if other.kind == tensor.kind:
                        dtype = desc.dtype
            shape = tuple(_value(d, sizes) for d in tensor.dims)
            outputs.append(trtp.from_shape_expr(shape, dtype))
        return tuple(outputs)

    results = GenericAlias(tuple, (trtp.TensorDesc,) * len(op.gives))
    return _signed(describe, op, trtp, (), results)


def implemented(op: TokenOp, trtp: ModuleType, architecture: int) -> Callable[..., tuple[Any, ...]]:
    """For `tensorrt.plugin.aot_impl`: the kernel and its launch."""

    def implement(*given: Any) -> tuple[Any, ...]:
        inputs, rest = given[: len(op.takes)], given[len(op.takes) :]
        numbers = dict(zip(op.fields, rest, strict=False))
        shapes = tuple(_shape(desc) for desc in inputs)
        if any(size is None for shape in shapes for size in shape):
            raise UsageError(
                f"{op.name}: kernels compiled ahead of time take static shapes only",
                where="--token-ops",
                hint="build for one batch size",
            )
        types = {t.kind: _TYPES[d.dtype.name] for t, d in zip(op.takes, inputs, strict=True)}
        if types.get("index", "i64") != "i64":
            raise UsageError(f"{op.name}: an index must be int64, as ONNX has it")
        try:
            launch = aot_launch(op, shapes, types, numbers)
        except ValueError as error:
            raise UsageError(str(error)) from error
        params = trtp.KernelLaunchParams()
        params.grid_x, params.grid_y, params.grid_z = launch.grid
        params.block_x, params.shared_mem = launch.block, launch.shared
        extras = trtp.SymIntExprs(len(launch.numbers))
        for i, number in enumerate(launch.numbers):
            extras[i] = trtp.SymInt32(number)
        return launch.symbol, kernel_ptx(launch.source, launch.symbol, architecture), params, extras

    results = GenericAlias(tuple, (str, str, trtp.KernelLaunchParams, trtp.SymIntExprs))
    return _signed(implement, op, trtp, ("outputs", "tactic"), results)


def _plugin_module() -> ModuleType:
    try:
        import tensorrt.plugin as trtp
    except ImportError as error:
        raise UsageError(
            "this TensorRT has no tensorrt.plugin",
            where="--token-ops",
            hint="it came with 10.6, and kernels compiled ahead of time with 10.9",
        ) from error
    module: ModuleType = trtp
    return module


def _signed(
    function: Callable[..., tuple[Any, ...]],
    op: TokenOp,
    trtp: ModuleType,
    behind: Sequence[str],
    results: Any,
) -> Callable[..., tuple[Any, ...]]:
    """The function with the signature that TensorRT reads: it calls by position."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [
        *(inspect.Parameter(t.name, kind, annotation=trtp.TensorDesc) for t in op.takes),
        *(inspect.Parameter(name, kind, annotation=int) for name in field_names(op)),
        *(inspect.Parameter(name, kind) for name in behind),
    ]
    order = [p.name for p in parameters]

    def call(*given: Any, **named: Any) -> tuple[Any, ...]:
        # Attributes come by name where shapes are asked for, by position otherwise.
        return function(*given, *(named[name] for name in order[len(given) :]))

    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        parameters, return_annotation=results
    )
    call.__name__ = op.name
    return call


def _sizes(op: TokenOp, inputs: Sequence[Any], numbers: Sequence[int]) -> dict[str, Size]:
    sizes: dict[str, Size] = {n: int(v) for n, v in zip(op.fields, numbers, strict=True)}
    for tensor, desc in zip(op.takes, inputs, strict=True):
        for i, text in enumerate(tensor.dims):
            if symbols(text) == (text,):
                sizes.setdefault(text, desc.shape_expr[i])
    return sizes


def _constant(size: Size) -> int | None:
    """The number that a size is, or None where it is not known yet."""
    if isinstance(size, int):
        return size
    if getattr(size, "is_fake", False) or not size.is_constant:
        return None
    return int(size.constant_value())


def _shape(desc: Any) -> tuple[Any, ...]:
    """Sizes of a tensor as far as they are known; None for the others."""
    return tuple(_constant(size) for size in desc.shape_expr)


def _check(op: TokenOp, inputs: Sequence[Any], numbers: Mapping[str, Size]) -> None:
    """Refuse an illegal call as soon as all of its sizes are known."""
    shapes = tuple(_shape(desc) for desc in inputs)
    if any(size is None for shape in shapes for size in shape):
        return
    try:
        op.bind(shapes, {n: numbers[n] for n in op.fields})
    except ValueError as error:
        raise UsageError(str(error)) from error


def _value(text: str, sizes: Mapping[str, Size]) -> Size:
    """An expression of the specification. A symbolic term goes first: a number knows no `+ T`."""
    parts = []
    for sign, name, divisor in terms(text):
        size = int(name) if name.isdigit() else sizes[name]
        parts.append((sign, size // divisor if divisor != 1 else size))
    parts.sort(key=lambda part: (part[0] < 0, isinstance(part[1], int)))
    total = parts[0][1]
    for sign, size in parts[1:]:
        total = total + size if sign > 0 else total - size
    return total
