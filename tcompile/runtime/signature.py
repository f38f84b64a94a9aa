"""The inputs and outputs of a model file, as those who run it see them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tcompile.core.model_files import TensorInfo, describe_tensors
from tcompile.core.op_traits import MOVES
from tcompile.models.preprocess_option import overrides, resolved
from tcompile.runtime.host_image import HostImage, read_host_image
from tcompile.runtime.token_outputs import read_record


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a model file, and how images are prepared for it (may be empty)."""

    path: Path
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    preprocessing: Mapping[str, Any]
    #: Float inputs that hold pixels from 0 to 255: the model scales them itself.
    pixels: frozenset[str] = frozenset()
    #: What to know of how images are prepared, where a person stated that.
    notes: tuple[str, ...] = ()
    #: Output with fewer tokens → the output that says which tokens its rows are.
    token_index: Mapping[str, str] = field(default_factory=dict)
    #: The input whose image the host makes smaller than the dense model's, if there is one.
    host: HostImage | None = None

    @property
    def whole(self) -> Signature:
        """The same with the image as large as in the dense model, for samples of both."""
        if self.host is None:
            return self
        inputs = tuple(
            replace(t, shape=self._large(t)) if t.name == self.host.input else t
            for t in self.inputs
        )
        size = {"size": list(self.host.whole)} if "size" in self.preprocessing else {}
        return replace(self, inputs=inputs, preprocessing={**self.preprocessing, **size}, host=None)

    def _large(self, tensor: TensorInfo) -> tuple[int | str, ...]:
        assert self.host is not None
        sizes = dict(zip(self.host.dims, self.host.whole, strict=True))
        return tuple(sizes.get(i, dim) for i, dim in enumerate(tensor.shape))

    @property
    def packed(self) -> bool:
        """Return whether the rows of the first input are the patches of one sample, not samples."""
        return bool(self.inputs) and is_packed(self.inputs[0])

    def own_batch(self, tensor: TensorInfo) -> bool:
        """Return whether its first dim is not that of the images but, say, that of texts."""
        first = leading_input(self.inputs)
        return not self.packed and bool(tensor.shape) and tensor.shape[0] != first.shape[0]

    def rows(self, tensor: TensorInfo) -> tuple[int | str, ...]:
        """The shape of one sample of an input; all of it where it has a fixed batch of its own."""
        whole = self.packed or (self.own_batch(tensor) and isinstance(tensor.shape[0], int))
        return tuple(tensor.shape if whole else tensor.shape[1:])

    @property
    def batch(self) -> int | None:
        """The fixed batch size, or None when any will do."""
        if self.packed:
            return 1
        shape = leading_input(self.inputs).shape if self.inputs else ()
        first = shape[0] if shape else 1
        return first if isinstance(first, int) else None

    @property
    def image_input(self) -> TensorInfo | None:
        """The first floating-point input of four axes, or of packed patches, if there is one; or
        that which a record of how images are prepared names."""
        if self.packed:
            return self.inputs[0]
        named = self.preprocessing.get("input")
        images = (t for t in self.inputs if len(t.shape) == 4 and t.dtype.startswith("float"))
        frames = (t for t in self.inputs if t.name == named and len(t.shape) == 4)
        return next(images, None) or next(frames, None)

    def prepared(self, preprocess: str | None) -> Signature:
        """The same with images prepared as `--preprocess` says; as it is where that says nothing.

        Raises:
            UsageError: it does not fit the model.
        """
        if preprocess is None:
            return self
        found = resolved(preprocess, self.inputs, self.preprocessing)
        note = overrides(found, self.preprocessing)
        return replace(self, preprocessing=found, notes=(note,) if note else ())


def leading_input(inputs: Sequence[TensorInfo]) -> TensorInfo:
    """The input whose rows are the samples: the largest of floats with three axes, or the first."""
    images = [t for t in inputs if len(t.shape) >= 3 and str(t.dtype).startswith("float")]
    return max(images or inputs[:1], key=lambda t: math.prod(map(fixed_dim, t.shape)))


def is_packed(tensor: TensorInfo) -> bool:
    """A static [N, C] of floats with several rows: patches, as the Qwen processors pack them."""
    shape = tensor.shape
    static = len(shape) == 2 and all(isinstance(d, int) for d in shape)
    return static and shape[0] != 1 and str(tensor.dtype).startswith("float")


def signature(path: str | Path) -> Signature:
    """Read a model's inputs, outputs and preprocessing. Raises `UsageError` or `ModelError`."""
    path = Path(path)
    if not path.is_file():
        return _signature(path, 0, 0)  # which says what is wrong
    state = path.stat()
    return _signature(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=16)
def _signature(path: Path, changed: int, size: int) -> Signature:
    """Read once for each state of the file: weights may be large, and a build asks often."""
    from tcompile.core.load import load
    from tcompile.models.preprocess import read_preprocessing

    model = load(path, weights=False)
    inputs, outputs = describe_tensors(model)
    found = pixel_inputs(model)
    metadata = {p.key: p.value for p in model.metadata_props}
    return Signature(
        path,
        inputs,
        outputs,
        read_preprocessing(metadata) or {},
        found,
        token_index=read_record(metadata),
        host=read_host_image(metadata),
    )


def fixed_dim(dim: int | str) -> int:
    return dim if isinstance(dim, int) else 1


#: Values that pass on as they are.
_MOVES = MOVES | {"Cast", "Resize", "Pad"}
#: An offset or divisor from here on is one of pixels to 255; no mean or deviation of 0 to 1 is.
_LARGE = 8.0
#: Values of a constant at most: a number for each colour.
_FEW = 16


def pixel_inputs(model: onnx.ModelProto) -> frozenset[str]:
    """Return the float inputs that hold pixels from 0 to 255: their first arithmetic is scaling by
    a number of that size.

    `(x - 127.5) / 127.5` or `x / 255` at the front of a file says that noise around 0 is no image
    to it: all patches would be the same, and what differs between them lost in the rounding of
    fp16.
    """
    constants = {t.name: t for t in model.graph.initializer if np.prod(t.dims) <= _FEW}
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            value = node.attribute[0].t
            if np.prod(value.dims) <= _FEW:
                constants[node.output[0]] = value
    found = set()
    for tensor in model.graph.input:
        if tensor.type.tensor_type.elem_type in floats and tensor.name not in constants:
            pending, seen = [tensor.name], {tensor.name}
            while pending:
                for node in users.get(name := pending.pop(), []):
                    if node.op_type in _MOVES and node.input[0] == name:
                        new = [o for o in node.output if o not in seen]
                        pending += new
                        seen |= set(new)
                    elif _scales(node, name, constants):
                        found.add(tensor.name)
    return frozenset(found)


def _scales(node: onnx.NodeProto, name: str, constants: dict[str, onnx.TensorProto]) -> bool:
    others = [n for n in node.input if n != name]
    if len(others) != 1 or others[0] not in constants:
        return False
    if constants[others[0]].data_location == onnx.TensorProto.EXTERNAL:
        return False
    size = np.abs(onnx.numpy_helper.to_array(constants[others[0]]).astype(np.float64))
    if node.op_type in ("Sub", "Add"):
        return float(size.max(initial=0)) >= _LARGE
    if node.op_type == "Div" and node.input[0] == name:
        return float(size.min(initial=np.inf)) >= _LARGE
    return node.op_type == "Mul" and 0 < float(size.max(initial=0)) <= 1 / _LARGE
