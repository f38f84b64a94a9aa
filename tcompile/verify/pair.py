"""A reduced fp32 graph and its lowered form, as two files that can be compared tensor by tensor.

Rounding flips a token at the edge of the budget now and then, and from there on the two hold other
tokens: that is not a fault, and hides those that are. So the lowered model is given the choices of
the reference: whatever is chosen from floats (indices, comparisons) is an input of it, and what it
would have chosen itself is an output.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from tcompile.core.domain import DOMAIN
from tcompile.core.graph import is_const, value
from tcompile.core.rounding import FLOAT32, as_dtype, half_of, spell_rounding
from tcompile.core.save import save
from tcompile.passes.lower.fp32_policy import clamps
from tcompile.verify.owners import Owners

Array = npt.NDArray[Any]

#: Give integers or truth values of floats and are left alone: sizes, guards against NaN, and
#: quantised values, which carry what is to be compared.
_NO_CHOICE = {"Shape", "Size", "IsNaN", "IsInf", "QuantizeLinear", "DynamicQuantizeLinear"}
_CHOOSE = {"TopK", "ArgMax", "ArgMin"}
#: What a free dim is taken for when bytes are counted.
_FREE = 1
#: Below this nothing is left of a score behind a softmax, and fp16 may end.
_NO_MATTER = -6e4


@dataclass(frozen=True)
class Shared:
    """A float tensor that both graphs compute.

    Attributes:
        name: the tensor.
        node, op: what gives it in the lowered graph.
        owner: the user's name of that node, or of the nearest of the user's before it.
        own: whether tcompile wrote the node.
        bytes: of the tensor for one sample, in fp32.
        bound: only read by a softmax or a bound, where large negative values are "minus infinity".
    """

    name: str
    node: str
    op: str
    owner: str | None
    own: bool
    bytes: int
    bound: bool

    def compared(self, want: Array) -> Array:
        """Its fp32 value, without what stands for minus infinity."""
        return np.where(want < _NO_MATTER, np.nan, want) if self.bound else want


@dataclass(frozen=True)
class Pair:
    """The two files, and what is common to them.

    Attributes:
        reference: the reduced fp32 graph; gives `pins` and `scores` too.
        judged: the lowered graph with its rounding spelled out; takes `pins`, gives `scores`.
        pins: chosen tensor → the output in which the lowered graph tells its own choice.
        scores: floats that tokens are chosen by.
        shared: float tensors of both, in the order in which they are computed.
        outputs: the float outputs.
    """

    reference: Path
    judged: Path
    pins: Mapping[str, str]
    scores: tuple[str, ...]
    shared: tuple[Shared, ...]
    outputs: tuple[str, ...]


def write_pair(reduced: gs.Graph, lowered: gs.Graph, folder: Path, owners: Owners) -> Pair:
    """Write both into a folder.

    Args:
        reduced: the fp32 graph that was lowered; it is left as it is.
        lowered: what became of it. It is changed, and of no use afterwards.
        owners: whose the nodes are.
    """
    known = {name: t for name, t in reduced.tensors().items() if not is_const(t)}
    shared = tuple(_shared(lowered, known, owners))
    outputs = tuple(t.name for t in lowered.outputs if _is_float(t))
    pins, scores = _pin(lowered, known)
    spell_rounding(lowered)
    reference, judged = folder / "reference.onnx", folder / "judged.onnx"
    save(reduced, reference)
    given = {t.name for t in reduced.outputs}
    types = {name: int(onnx.TensorProto.FLOAT) for name in scores}
    types |= {name: _element(dtype) for name, (_, dtype) in pins.items()}
    _append(reference, {name: kind for name, kind in types.items() if name not in given})
    save(lowered, judged)
    given = {t.name for t in lowered.outputs}
    _append(judged, {name: int(onnx.TensorProto.FLOAT) for name in scores if name not in given})
    own = {name: own for name, (own, _) in pins.items()}
    return Pair(reference, judged, own, scores, shared, outputs)


def _shared(lowered: gs.Graph, known: Mapping[str, gs.Tensor], owners: Owners) -> Iterator[Shared]:
    for node in lowered.nodes:
        for tensor in node.outputs:
            bound = bool(tensor.outputs) and all(clamps(user) for user in tensor.outputs)
            other = known.get(tensor.name)
            if other is None or not _is_float(tensor):
                continue
            if other.dtype not in (None, FLOAT32) or not other.inputs:
                continue
            label = owners.label(node.name, [tensor.name])
            owner = owners.nearest(node) if label is None else label
            sizes = [d if isinstance(d, int) else _FREE for d in tensor.shape or ()]
            bytes_ = 4 * int(np.prod(sizes, dtype=np.int64))
            yield Shared(tensor.name, node.name, node.op, owner, label is None, bytes_, bound)


def _pin(
    lowered: gs.Graph, known: Mapping[str, gs.Tensor]
) -> tuple[dict[str, tuple[str, np.dtype[np.generic]]], tuple[str, ...]]:
    """Make inputs of what is chosen from floats; returns {chosen: (own choice, type)}, scores."""
    pins: dict[str, tuple[str, np.dtype[np.generic]]] = {}
    scores: list[str] = []
    added: list[gs.Node] = []
    there = {t.name for node in lowered.nodes for t in node.outputs}
    for node in lowered.nodes:
        choosing = _chooses(node)
        before = len(pins)
        for i, tensor in enumerate(node.outputs):
            maker = known[tensor.name].inputs[:1] if tensor.name in known else []
            # What a call chooses may come out of integers where its body lies in the graph.
            inlined = [call for call in maker if call.domain == DOMAIN and node.domain != DOMAIN]
            if not choosing and not any(_chooses(call) for call in inlined):
                continue
            chosen = _kind(tensor) in "iub" and as_dtype(tensor.dtype) not in (np.int8, np.uint8)
            select = node.op == "TcSelectTokens" and node.domain == DOMAIN
            # Rows of a selection follow from its index, which itself may have no reader.
            read = bool(tensor.outputs) or (select and i == 0)
            if not chosen or not read or not tensor.inputs:
                continue
            rows = select and i == 1
            if not rows and not maker:
                continue
            own = gs.Variable(f"{tensor.name}/own", tensor.dtype, tensor.shape)
            node.outputs[i] = own
            if rows:
                # The reference has no rows: they follow from the index that it has.
                added += _rows(node, lowered, tensor)
                continue
            pins[tensor.name] = (own.name, np.dtype(tensor.dtype))
            lowered.outputs = [t for t in lowered.outputs if t is not tensor]
            lowered.outputs.append(own)
            lowered.inputs.append(tensor)
            scores += [t.name for call in inlined for t in _floats(call) if t.name in there]
        if len(pins) > before and (node.domain == DOMAIN or node.op in _CHOOSE):
            names = [_root(t).name for t in _floats(node)]
            scores += [name for name in names if name in known and known[name].inputs]
    lowered.nodes[:0] = added
    return pins, tuple(dict.fromkeys(scores))


def _floats(node: gs.Node) -> list[gs.Tensor]:
    return [t for t in node.inputs if not is_const(t) and _kind(t) == "f"]


def _chooses(node: gs.Node) -> bool:
    """Tell whether what it gives of integers or truth values is chosen from floats."""
    return bool(_floats(node)) and node.op not in _NO_CHOICE


def _rows(node: gs.Node, graph: gs.Graph, rows: gs.Tensor) -> list[gs.Node]:
    """The prefix and the pinned index of a TcSelectTokens, as it joins them itself."""
    index = next(t for t in graph.inputs if f"{t.name}/own" == node.outputs[0].name)
    prefix = value(node.attrs["prefix"]).reshape(-1)
    name = rows.name

    def constant(what: str, numbers: Iterable[int]) -> gs.Constant:
        return gs.Constant(f"{name}/{what}", np.array(list(numbers), np.int64))

    def emit(op: str, inputs: list[gs.Tensor], out: str = "", **attrs: int) -> gs.Node:
        made = gs.Variable(f"{name}/{out or op}", np.int64)
        return gs.Node(op, f"{name}/{out or op}", attrs, inputs, [made])

    one = constant("one", [1])
    first = emit("Slice", [index, constant("zero", [0]), one, one])
    nothing = emit("Sub", [first.outputs[0], first.outputs[0]])
    head = emit("Add", [nothing.outputs[0], constant("fixed", range(int(prefix[0])))], "head")
    moved = emit("Add", [index, constant("prefix", prefix.tolist())], "moved")
    join = gs.Node("Concat", f"{name}/join", {"axis": 1}, [*head.outputs, *moved.outputs], [rows])
    return [first, nothing, head, moved, join]


def _root(tensor: gs.Tensor) -> gs.Tensor:
    """The float that a tensor is a cast of."""
    while tensor.inputs and tensor.inputs[0].op == "Cast":
        source = tensor.inputs[0].inputs[0]
        if _kind(source) != "f":
            break
        tensor = source
    return tensor


def _kind(tensor: gs.Tensor) -> str:
    if tensor.is_empty() or tensor.dtype is None:
        return "?"
    return "f" if half_of(tensor) else str(as_dtype(tensor.dtype).kind)


def _is_float(tensor: gs.Tensor) -> bool:
    return half_of(tensor) is not None or tensor.dtype == FLOAT32


def _element(dtype: np.dtype[np.generic]) -> int:
    return int(onnx.helper.np_dtype_to_tensor_dtype(dtype))


@contextmanager
def with_outputs(path: Path, names: Iterable[str]) -> Iterator[Path]:
    """The file with more fp32 tensors among its outputs, inside the `with` block."""
    size = path.stat().st_size
    try:
        _append(path, dict.fromkeys(names, int(onnx.TensorProto.FLOAT)))
        yield path
    finally:
        with path.open("r+b") as stream:
            stream.truncate(size)


def _append(path: Path, outputs: Mapping[str, int]) -> None:
    """Add graph outputs at the end of a file: parts of a protobuf message add up, so that weights
    need not be read."""
    graph = onnx.GraphProto()
    for name, kind in outputs.items():
        info = graph.output.add(name=name)
        info.type.tensor_type.elem_type = kind
    if outputs:
        with path.open("ab") as stream:
            stream.write(onnx.ModelProto(graph=graph).SerializeToString())
