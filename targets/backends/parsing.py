"""Is a model for another TensorRT one that TensorRT can parse at all? Asked of TensorRT-RTX.

Both have the same ONNX parser, and TensorRT-RTX runs anywhere. What it refuses TensorRT refuses
too, but for a few operators (`ONLY_TENSORRT`): those are cut out, and the rest is parsed again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import onnx

from tcompile.core.domain import DOMAIN
from tcompile.core.errors import MissingExtraError
from tcompile.core.load import read_structure
from tcompile.core.packages import require
from tcompile.targets.backends.base import ParseError
from tcompile.targets.backends.trt_common import beside, parse, title

#: Operators that are cut out at most, one after another.
_MOST = 64


@dataclass(frozen=True)
class OnlyTensorRT:
    """An operator that TensorRT takes and TensorRT-RTX does not.

    Attributes:
        op: its name.
        why: what TensorRT has for it.
        applies: to which nodes.
    """

    op: str
    why: str
    applies: Callable[[onnx.NodeProto], bool] = lambda node: not node.domain


def _reduces(node: onnx.NodeProto) -> bool:
    return any(a.name == "reduction" and a.s != b"none" for a in node.attribute)


ONLY_TENSORRT = (
    OnlyTensorRT("NonZero", "a layer of its own; TensorRT-RTX looks for a plugin"),
    OnlyTensorRT("ScatterElements", "with a reduction, a plugin that comes with it", _reduces),
    OnlyTensorRT("RoiAlign", "a plugin; that of TensorRT-RTX wants a GPU to be parsed"),
    OnlyTensorRT("DeformConv", "a plugin that comes with it"),
    OnlyTensorRT(
        "",
        "a plugin of that name, where the device has it",
        lambda node: bool(node.domain) and node.domain != DOMAIN,
    ),
)


def parse_elsewhere(model_path: Path) -> tuple[str, ...]:
    """Let TensorRT-RTX parse a model that is for another TensorRT; returns notes.

    Raises:
        ParseError: it does not accept a node, nor would TensorRT.
    """
    try:
        rtx = require("tensorrt_rtx", "rtx", "parsing")
    except MissingExtraError as error:
        return (f"not parsed by any TensorRT here: {error.one_line()}",)
    notes: list[str] = []
    cut: set[str] = set()
    for _ in range(_MOST):
        try:
            _parse_without(rtx, model_path, cut)
        except ParseError as error:
            found = _excused(model_path, error)
            if found is None or error.node in cut:
                raise
            cut.add(error.node)
            notes.append(
                f"node '{error.node}' ({error.op}) is not parsed by {title(rtx)}, which "
                f"stands in for TensorRT here; TensorRT has {found.why}"
            )
            continue
        return tuple(notes)
    return (*notes, "the rest of the model was not parsed")


def _excused(model_path: Path, error: ParseError) -> OnlyTensorRT | None:
    model = read_structure(model_path)
    node = next((n for n in model.graph.node if n.name == error.node), None)
    if node is None or error.inside:
        return None
    return next((o for o in ONLY_TENSORRT if o.op in ("", node.op_type) and o.applies(node)), None)


def _parse_without(rtx: ModuleType, model_path: Path, cut: set[str]) -> None:
    """Parse the model, the outputs of some nodes being inputs of it."""
    if not cut:
        parse(rtx, model_path)
        return
    model = onnx.load(str(model_path), load_external_data=False)
    known = {v.name: v for v in (*model.graph.value_info, *model.graph.output)}
    gone = [node for node in model.graph.node if node.name in cut]
    for node in gone:
        model.graph.node.remove(node)
        model.graph.input.extend(known[name] for name in node.output if name in known)
    ends = {name for node in gone for name in node.output}
    kept = [output for output in model.graph.output if output.name not in ends]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    with beside(model_path, model.SerializeToString()) as path:
        parse(rtx, path)
