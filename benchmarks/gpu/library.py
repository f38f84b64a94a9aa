"""The C interface of the kernels (cuda/tcompile_ops.h) by ctypes: for tests and benchmarks.

The same for the library that runs on a GPU and for the one that runs the kernels on the host; only
where the data lies differs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path

from tcompile.plugins.spec import API_VERSION, TokenOp

#: Element types by name, as `tc_type` has them.
TYPES = {"f32": 0, "f16": 1, "bf16": 2, "i32": 3, "i64": 4}


class CTensor(ctypes.Structure):
    """`tc_tensor`."""

    _fields_ = [("type", ctypes.c_int32), ("rank", ctypes.c_int32), ("dims", ctypes.c_int32 * 3)]


class CCall(ctypes.Structure):
    """`tc_call`."""

    _fields_ = [("input", CTensor * 8), ("output", CTensor * 3), ("field", ctypes.c_int32 * 4)]


class KernelError(RuntimeError):
    """An op was refused.

    Attributes:
        status: a `tc_status`.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Library:
    """A library of kernels.

    Raises:
        KernelError: it was built from another header.
    """

    def __init__(self, path: Path) -> None:
        #: For what has no method here.
        self.raw = self._lib = ctypes.CDLL(str(path))
        self._lib.tc_op_find.restype = ctypes.c_void_p
        self._lib.tc_op_find.argtypes = [ctypes.c_char_p]
        self._lib.tc_workspace.restype = ctypes.c_size_t
        self._lib.tc_status_text.restype = ctypes.c_char_p
        version = self._lib.tc_api_version()
        if version != API_VERSION:
            raise KernelError(7, f"{path} has interface {version}, not {API_VERSION}")

    def op(self, name: str) -> ctypes.c_void_p:
        """The op of that name, null if there is none."""
        return ctypes.c_void_p(self._lib.tc_op_find(name.encode()))

    def call(
        self,
        op: TokenOp,
        shapes: Sequence[tuple[int, ...]],
        types: Mapping[str, str],
        numbers: Mapping[str, int],
    ) -> CCall:
        """A call with its outputs filled in.

        Args:
            types: kind of tensor → element type.

        Raises:
            KernelError: it is not legal; the message names op and tensor or field.
        """
        call = CCall()
        for i, (tensor, shape) in enumerate(zip(op.takes, shapes, strict=True)):
            call.input[i] = _tensor(types[tensor.kind], shape)
        for i, name in enumerate(op.fields):
            call.field[i] = numbers[name]
        text = ctypes.create_string_buffer(256)
        status = self._lib.tc_infer(self.op(op.name), ctypes.byref(call), text, len(text))
        if status:
            raise KernelError(status, text.value.decode())
        if not any(t.kind == "index" for t in op.takes):
            for i, tensor in enumerate(op.gives):
                if tensor.kind == "index":
                    call.output[i].type = TYPES[types["index"]]
        return call

    def workspace(self, op: TokenOp, call: CCall) -> int:
        """Bytes of workspace that the call needs."""
        return int(self._lib.tc_workspace(self.op(op.name), ctypes.byref(call)))

    def launch(
        self,
        op: TokenOp,
        call: CCall,
        inputs: Sequence[int],
        outputs: Sequence[int],
        workspace: tuple[int, int] = (0, 0),
        stream: int = 0,
    ) -> None:
        """Put the op on a stream.

        Args:
            inputs, outputs: addresses.
            workspace: its address and its size.

        Raises:
            KernelError: it was refused.
        """
        pointers = [(ctypes.c_void_p * max(len(p), 1))(*p) for p in (inputs, outputs)]
        status = self._lib.tc_launch(
            self.op(op.name),
            ctypes.byref(call),
            *pointers,
            ctypes.c_void_p(workspace[0]),
            ctypes.c_size_t(workspace[1]),
            ctypes.c_void_p(stream),
        )
        if status:
            raise KernelError(status, self._lib.tc_status_text(status).decode())


def _tensor(of: str, shape: tuple[int, ...]) -> CTensor:
    made = CTensor(TYPES[of], len(shape))
    for i, size in enumerate(shape[:3]):
        made.dims[i] = size
    return made
