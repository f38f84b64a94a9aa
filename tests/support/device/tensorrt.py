"""A package `tensorrt` for a test of check.py: an engine is an ONNX file, memory is the host's.

It has what check.py asks for and no more; the table of the real API is what those names are held
against (`test_tensorrt_api.py`).
"""

import ctypes
import os
from enum import Enum
from pathlib import Path

import numpy as np
import onnxruntime

__version__ = os.environ.get("FAKE_TENSORRT", "10.3.0")
_KINDS = {
    "tensor(float)": ("FLOAT", "float32"),
    "tensor(float16)": ("HALF", "float16"),
    "tensor(int64)": ("INT64", "int64"),
}


class TensorIOMode(Enum):
    NONE, INPUT, OUTPUT = range(3)


class Logger:
    ERROR = 1

    def __init__(self, severity):
        self.severity = severity


class _Registry:
    def load_library(self, path):
        return None if os.environ.get("FAKE_TENSORRT_REFUSES") else path


def get_plugin_registry():
    return _Registry()


class Runtime:
    """Its engines hold host code where FAKE_TENSORRT_CODE is set, and a lean runtime runs another
    version's."""

    def __init__(self, logger):
        self.logger, self.engine_host_code_allowed = logger, False

    def load_runtime(self, path):
        if os.environ.get("FAKE_TENSORRT_REFUSES"):
            return None
        print(f"lean runtime {Path(path).name}")
        return Runtime(self.logger)

    def deserialize_cuda_engine(self, plan):
        if bool(os.environ.get("FAKE_TENSORRT_CODE")) != self.engine_host_code_allowed:
            return None
        try:
            return _Engine(plan)
        except Exception:
            return None


class _DataType:
    def __init__(self, name):
        self.name = name


class _Engine:
    def __init__(self, plan):
        self.session = onnxruntime.InferenceSession(plan, providers=["CPUExecutionProvider"])
        self.inputs = {v.name: v for v in self.session.get_inputs()}
        self.all = {**self.inputs, **{v.name: v for v in self.session.get_outputs()}}

    @property
    def num_io_tensors(self):
        return len(self.all)

    def get_tensor_name(self, index):
        return list(self.all)[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return _DataType(_KINDS[self.all[name].type][0])

    def create_execution_context(self):
        return _Context(self)


class _Context:
    def __init__(self, engine):
        self.engine, self.shapes, self.addresses = engine, {}, {}

    def set_input_shape(self, name, shape):
        dims = self.engine.inputs[name].shape
        fits = all(isinstance(d, str) or d == s for d, s in zip(dims, shape, strict=True))
        self.shapes[name] = tuple(shape)
        return fits

    def get_tensor_shape(self, name):
        if name in self.shapes:
            return self.shapes[name]
        batch = next(iter(self.shapes.values()))[0]
        return tuple(d if isinstance(d, int) else batch for d in self.engine.all[name].shape)

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        names = [v.name for v in self.engine.session.get_outputs()]
        feed = {name: self._view(name).copy() for name in self.engine.inputs}
        for name, array in zip(names, self.engine.session.run(names, feed), strict=True):
            self._view(name)[...] = array
        return True

    def _view(self, name):
        kind = np.dtype(_KINDS[self.engine.all[name].type][1])
        shape = self.get_tensor_shape(name)
        size = int(np.prod(shape)) * kind.itemsize
        raw = (ctypes.c_char * size).from_address(self.addresses[name])
        return np.frombuffer(raw, kind).reshape(shape)
