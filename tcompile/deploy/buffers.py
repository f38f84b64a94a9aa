"""From objects that have memory of their own (numpy, PyTorch, CuPy, numba, JAX) to buffers that a
runtime reads and writes, and what is checked of these before anything runs."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tcompile.core.errors import UsageError
from tcompile.core.model_files import TensorInfo
from tcompile.targets.backends.buffers import Buffer, numpy_dtype

_TAKEN = "give an array of numpy, or an object with __dlpack__ or __cuda_array_interface__"
#: The default stream, as DLPack names it.
_DEFAULT_STREAM = 1
#: DLPack: kinds of memory that a GPU reads, and kinds of numbers.
_ON_GPU, _PINNED, _ON_CPU = (2, 13), (3,), (1,)
_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 6: "bool"}
_FLOAT8 = {10: "float8_e4m3fn", 12: "float8_e5m2"}


def buffers_of(
    kind: str, given: Mapping[str, object], stream: int, *, on_cpu: bool = False
) -> dict[str, Buffer]:
    """The memory of each object, which stays where it is.

    Args:
        kind: input or output, for messages; outputs must be writable.
        stream: that the run is put into; what makes an object is waited for there.
        on_cpu: it runs there, where pinned memory is like any other of the CPU's.

    Raises:
        UsageError: an object that has no memory of a kind that is known, or with gaps in it.
    """
    return {
        name: _buffer(f"{kind} '{name}'", value, stream, on_cpu, written=kind == "output")
        for name, value in given.items()
    }


def check_buffers(
    inputs: Mapping[str, Buffer],
    outputs: Mapping[str, Buffer],
    takes: Sequence[TensorInfo],
    gives: Sequence[TensorInfo],
    where: str,
) -> None:
    """Raise UsageError unless all inputs and one output or more are there, no others, each of the
    dtype and shape that the model has, and none written over another."""
    for kind, given, known in (("input", inputs, takes), ("output", outputs, gives)):
        names = [tensor.name for tensor in known]
        does = "takes" if kind == "input" else "gives"
        strange = [f"'{name}'" for name in given if name not in names]
        missing = [f"'{n}'" for n in names if n not in given] if kind == "input" else []
        if strange or missing or not given:
            what = f"has no {', '.join(missing)}" if missing else "none is wanted"
            what = f"has {', '.join(strange)}" if strange else what
            raise UsageError(f"{what}; the model {does} {', '.join(names)}", where=f"{kind}s")
    sizes: dict[str, int] = {}
    for kind, given, known in (("input", inputs, takes), ("output", outputs, gives)):
        for tensor in known:
            if tensor.name in given:
                _check_one(kind, given[tensor.name], tensor, sizes, where)
    _check_apart(inputs, outputs)


def _check_one(
    kind: str, buffer: Buffer, tensor: TensorInfo, sizes: dict[str, int], where: str
) -> None:
    same = (buffer.dtype, len(buffer.shape)) == (tensor.dtype, len(tensor.shape))
    wanted = list(tensor.shape)
    for i, (want, have) in enumerate(zip(tensor.shape, buffer.shape, strict=False)):
        if isinstance(want, str) and "*" not in want and want != "?":
            sizes.setdefault(want, have)  # a free dim is known once it is met
        size = _settled(want, sizes)
        if size is not None:
            wanted[i] = size
            same = same and size == have
    if not same:
        verb = "wants" if kind == "input" else "gives"
        raise UsageError(
            f"{kind} '{tensor.name}' is {buffer.dtype} {list(buffer.shape)}, the model {verb} "
            f"{tensor.dtype} {wanted}",
            where=where,
        )
    if buffer.address == 0 and buffer.size:
        raise UsageError("is a null pointer", where=f"{kind} '{tensor.name}'")
    item = numpy_dtype(buffer.dtype).itemsize
    if buffer.address % item:
        raise UsageError(
            f"lies at an address that is not a multiple of {item}", where=f"{kind} '{tensor.name}'"
        )


def _settled(dim: int | str, sizes: Mapping[str, int]) -> int | None:
    """A dim such as 3, `batch` or `batch*3` with the free ones put in; None: one is not known."""
    if isinstance(dim, int):
        return dim
    found = [int(f) if f.isdigit() else sizes.get(f) for f in dim.split("*")]
    return None if None in found else math.prod(f for f in found if f is not None)


def settled(dim: int | str, number: int) -> int:
    """A dim with a number in place of every free one."""
    factors = str(dim).split("*")
    return math.prod(int(f) if f.isdigit() else number for f in factors)


def _check_apart(inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
    others = [(f"input '{n}'", b) for n, b in inputs.items()]
    for name, buffer in outputs.items():
        for other, its in others:
            if buffer.address < its.address + its.size and its.address < (
                buffer.address + buffer.size
            ):
                raise UsageError(
                    f"lies over {other}", where=f"output '{name}'", hint="give each its own memory"
                )
        others.append((f"output '{name}'", buffer))


def _buffer(where: str, value: Any, stream: int, on_cpu: bool, *, written: bool) -> Buffer:
    if isinstance(value, np.ndarray):
        if not value.dtype.isnative:
            raise UsageError(
                f"is {value.dtype.str}, in another byte order than this machine's",
                where=where,
                hint="astype the model's dtype",
            )
        if written and not value.flags.writeable:
            raise UsageError("cannot be written to", where=where)
        return _whole(where, value.ctypes.data, value.dtype.name, value.shape, value.strides)
    try:
        if hasattr(value, "__dlpack__"):
            return _of_dlpack(where, value, stream, on_cpu)
        found = getattr(value, "__cuda_array_interface__", None)
    except UsageError:
        raise
    except Exception as error:  # of another library: a tensor with a gradient
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"{type(value).__name__} gives no buffer: {reason}", where=where
        ) from error
    if not isinstance(found, Mapping):
        raise UsageError(f"{type(value).__name__} is not understood", where=where, hint=_TAKEN)
    address, fixed = found["data"]
    if written and fixed:
        raise UsageError("cannot be written to", where=where)
    if found.get("stream") not in (None, stream or _DEFAULT_STREAM):
        raise UsageError(
            f"is made on stream {found['stream']}, the run is put into {stream}",
            where=where,
            hint="give the same stream, or synchronise and give the object without one",
        )
    dtype = np.dtype(found["typestr"]).name
    return _whole(where, address, dtype, tuple(found["shape"]), found.get("strides"), on_gpu=True)


class _Tensor(ctypes.Structure):
    """DLTensor, with which a managed one begins: that which `__dlpack__` gives unasked."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def _of_dlpack(where: str, value: Any, stream: int, on_cpu: bool) -> Buffer:
    device = int(value.__dlpack_device__()[0])
    if device not in (*_ON_GPU, *_PINNED, *_ON_CPU):
        raise UsageError(f"is on a device of DLPack's kind {device}", where=where, hint=_TAKEN)
    on_gpu = device in _ON_GPU or (device in _PINNED and not on_cpu)
    # PyTorch's pinned tensors are the CPU's, and take no stream. It is looked at and not taken:
    # what it holds is freed with the capsule, the memory is not.
    order = {"stream": stream or _DEFAULT_STREAM} if device in _ON_GPU else {}
    capsule = value.__dlpack__(**order)
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    tensor = _Tensor.from_address(get(capsule, b"dltensor"))
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    name = f"{_KINDS.get(tensor.code, 'unknown')}{tensor.bits}"
    dtype = _FLOAT8.get(tensor.code, "bool" if name == "bool8" else name)
    if dtype.startswith("unknown") or tensor.lanes != 1:
        raise UsageError(f"is of DLPack's type {tensor.code}, {tensor.bits} bits", where=where)
    strides = None
    if tensor.strides:
        item = numpy_dtype(dtype).itemsize
        strides = tuple(tensor.strides[i] * item for i in range(tensor.ndim))
    address = (tensor.data or 0) + tensor.byte_offset
    return _whole(where, address, dtype, shape, strides, on_gpu=on_gpu)


def _whole(
    where: str,
    address: int,
    dtype: str,
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None,
    *,
    on_gpu: bool = False,
) -> Buffer:
    """The buffer, if it has no gaps."""
    step = numpy_dtype(dtype).itemsize
    for dim, stride in reversed(list(zip(shape, strides or (), strict=False))):
        if dim > 1 and stride != step and 0 not in shape:
            raise UsageError(
                "has gaps between its rows, or another order than rows",
                where=where,
                hint="make it contiguous",
            )
        step *= dim
    return Buffer(address, dtype, shape, on_gpu)
