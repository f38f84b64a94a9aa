"""Registers all ops by the `tensorrt.plugin` of a bindings wheel, without TensorRT's libraries.

    python aot_bindings.py FOLDER WORK

FOLDER holds a wheel's `tensorrt_bindings`; what it needs of TensorRT's libraries is replaced by
functions that return nothing, built in WORK: classes and checks are real, nothing can be built or
run. Shapes are computed by stand-ins for TensorRT's expressions. Prints the ops.
"""

from __future__ import annotations

import ctypes
import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.cases import cases
from tcompile.plugins.aot.register import register
from tcompile.plugins.aot_kernels import aot_launch
from tcompile.plugins.ops import OPS


class Number:
    """A dimension that is known."""

    def __init__(self, value: int) -> None:
        self.value = value

    def is_constant(self) -> bool:
        return True

    def get_constant_value(self) -> int:
        return self.value


class Builder:
    """Computes, where TensorRT would remember what to compute."""

    def constant(self, value: int) -> Number:
        return Number(value)

    def operation(self, op: Any, a: Number, b: Number) -> Number:
        x, y = a.value, b.value
        return Number(
            {
                "SUM": x + y,
                "SUB": x - y,
                "PROD": x * y,
                "FLOOR_DIV": x // (y or 1),
                "CEIL_DIV": -(-x // (y or 1)),
            }[op.name]
        )


def load(folder: Path, work: Path) -> Any:
    """The bindings as `tensorrt`."""
    module = next((folder / "tensorrt_bindings").glob("tensorrt*.so"))
    needed = subprocess.run(["readelf", "-d", module], capture_output=True, text=True, check=True)
    undefined = subprocess.run(
        ["nm", "-D", "--undefined-only", "-j", module], capture_output=True, text=True, check=True
    ).stdout.split()
    ours = [n for n in undefined if re.search(r"INTERNAL$|^get[A-Z]|^init[A-Z]", n)]
    source = work / "empty.c"
    source.write_text("".join(f"void *{n}(void) {{ return 0; }}\n" for n in ours))
    for name in re.findall(r"\[(lib(?:nvinfer|nvonnx)[^\]]*)\]", needed.stdout):
        subprocess.run(
            [
                "gcc",
                "-w",
                "-shared",
                "-fPIC",
                str(source),
                f"-Wl,-soname,{name}",
                "-o",
                str(work / name),
            ],
            check=True,
        )
        ctypes.CDLL(str(work / name), mode=ctypes.RTLD_GLOBAL)
    sys.path.insert(0, str(folder))
    trt = importlib.import_module("tensorrt_bindings")
    sys.modules["tensorrt"] = trt
    return trt


def main() -> None:
    """Register, then ask for shapes and kernels as TensorRT would."""
    trt = load(Path(sys.argv[1]), Path(sys.argv[2]))
    trt.IDimensionExpr = Number
    trtp = importlib.import_module("tensorrt_bindings.plugin")
    sys.modules["tensorrt.plugin"] = trtp
    lib = importlib.import_module("tensorrt_bindings.plugin._lib")
    tensors = importlib.import_module("tensorrt_bindings.plugin._tensor")
    register_module = sys.modules["tcompile.plugins.aot.register"]
    register_module.kernel_ptx = lambda *given: "ptx"  # type: ignore[attr-defined]
    register(trtp, 87, lazy_register=True)
    dtypes = {"f32": trt.float32, "f16": trt.float16, "bf16": trt.bfloat16, "i64": trt.int64}
    for op in OPS:
        entry = lib.QDP_REGISTRY[f"tcompile::{op.name}"]
        assert entry.num_outputs == len(op.gives)
        assert entry.input_tensor_names == [t.name for t in op.takes]
        assert list(entry.aot_impl_attr_names) == [f"plugin_{f}" for f in op.fields]
        attributes = {f"plugin_{f}": 0 for f in op.fields}
        kinds = ["i64" if t.kind == "index" else "f32" for t in op.takes]
        ghosts = [
            desc(trtp, tensors, dtypes[k], None, len(t.dims))
            for k, t in zip(kinds, op.takes, strict=True)
        ]
        assert len(entry.register_func(*ghosts, **dict.fromkeys(attributes, 3))) == len(op.gives)
        for case in (c for c in cases(op, 12, seed=4) if c.types["index"] == "i64"):
            tensors.SymIntExpr._exprBuilder = Builder()
            inputs = [
                desc(trtp, tensors, dtypes[case.types[t.kind]], a.shape, a.ndim)
                for a, t in zip(case.inputs, op.takes, strict=True)
            ]
            numbers = {f"plugin_{f}": case.numbers[f] for f in op.fields}
            outputs = entry.register_func(*inputs, **numbers)
            shapes = tuple(a.shape for a in case.inputs)
            got = tuple(tuple(e.constant_value() for e in o.shape_expr) for o in outputs)
            assert got == op.shapes(shapes, case.numbers), op.name
            name, ptx, params, extras = entry.aot_impl_func(
                *inputs, *numbers.values(), list(outputs), 0
            )
            launch = aot_launch(op, shapes, case.types, case.numbers)
            assert (name, ptx) == (launch.symbol, "ptx")
            assert isinstance(params, trtp.KernelLaunchParams)
            assert isinstance(extras, trtp.SymIntExprs)
            assert all(isinstance(e, trtp.SymInt32) for e in extras)
            assert [e._expr.value for e in extras] == list(launch.numbers)
            assert params.grid_x._expr.value == launch.grid[0]
            assert params.grid_z._expr.value == launch.grid[2]
            assert params.block_x._expr.value == launch.block
            assert params.shared_mem._expr.value == launch.shared
            tensors.SymIntExpr._exprBuilder = None
        sys.stdout.write(op.name + "\n")


def desc(trtp: Any, tensors: Any, dtype: Any, shape: Any, rank: int) -> Any:
    """A tensor as TensorRT describes it; without a shape, as where it asks for types alone."""
    made = trtp.TensorDesc()
    made.dtype = dtype
    if shape is None:
        made.shape_expr = tensors.ShapeExprs(rank, _is_dummy=True)
        return made
    made.shape_expr = tensors.ShapeExprs(rank)
    for i, size in enumerate(shape):
        made.shape_expr[i] = tensors.ShapeExpr(Number(size))
    return made


if __name__ == "__main__":
    main()
