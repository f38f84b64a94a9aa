"""Owners of nodes: the user, who knows a node by its name in the file, or tcompile."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from pathlib import Path

import onnx_graphsurgeon as gs

from tcompile.core.errors import InternalError, ModelError, TcompileError
from tcompile.core.load import names_in
from tcompile.passes.lower.names import printable
from tcompile.targets.backends.base import EngineError, RefusedError

#: Words of a reason, and what helps.
_REMEDIES = (
    ("zeroPoint", "quantise symmetrically: TensorRT takes zero points of 0 only"),
    ("zero point", "quantise symmetrically: TensorRT takes zero points of 0 only"),
    ("UInt8", "cast the image to float before anything else reads it"),
    ("UINT8", "cast the image to float before anything else reads it"),
    ("reduction", "TensorRT scatters without a reduction only"),
    ("Plugin not found", "TensorRT has no such operator; write it with standard ONNX operators"),
)
_KEEP = "--keep-failed writes the artifact all the same, to look into"


class Owners:
    """Names of the nodes of a dense graph, as the user knows them.

    Args:
        source: the user's file.
        dense: its normal form.
        written: names of the nodes and tensors that tcompile wrote into what became of it.
    """

    def __init__(self, source: Path, dense: gs.Graph, written: Container[str] = ()) -> None:
        self.written = written
        known = set(names_in(source))
        self._labels: dict[str, str] = {}
        for node in dense.nodes:
            outputs = [t.name for t in node.outputs]
            label = next((n for n in (node.name, *outputs) if n in known), node.name)
            for name in (printable(node.name), *outputs):
                if name:
                    self._labels.setdefault(name, label)

    def label(self, name: str, outputs: Iterable[str] = ()) -> str | None:
        """The user's name of a node of any later graph; None: tcompile wrote the node.

        Args:
            name: of the node.
            outputs: of what it gives.
        """
        return next((self._labels[n] for n in (name, *outputs) if n in self._labels), None)

    def nearest(self, node: gs.Node) -> str | None:
        """The user's name of the node, or of the nearest of the user's before it."""
        seen, front = {id(node)}, [node]
        while front:
            for each in front:
                found = self.label(each.name, [t.name for t in each.outputs])
                if found is not None:
                    return found
            before = [maker for each in front for t in each.inputs for maker in t.inputs]
            front = [maker for maker in before if id(maker) not in seen]
            seen |= {id(maker) for maker in front}
        return None


def blamed(error: RefusedError, owners: Owners, source: str) -> TcompileError:
    """Say what a runtime refuses, in terms of the user's file.

    Returns:
        A ModelError where the node is the user's, an InternalError where tcompile wrote it, or
        where the runtime does not say which it is.
    """
    if error.inside:
        label, node = None, f"'{error.node}' inside {error.inside[0]}"
    elif error.node:
        label, node = owners.label(error.node), f"'{error.node}'"
    else:
        label, node = _named_in(error.reason, owners), ""
    if label is None:
        written = f"a node that tcompile wrote, {node} ({error.op})" if node else "the model"
        what = error.sentence(written)
        return InternalError(what, where=source, hint=f"please report it; {_KEEP}")
    remedy = next((text for word, text in _REMEDIES if word in error.reason), "")
    hint = f"{remedy}; {_KEEP}" if remedy else _KEEP
    what = error.sentence(f"node '{label}'" + (f" ({error.op})" if error.op else ""))
    if isinstance(error, EngineError):
        what = f"{what}; it is about node '{label}'"
    return ModelError(what, where=source, hint=hint)


def _named_in(reason: str, owners: Owners) -> str | None:
    """The user's node that a sentence is about; None where it names none, or one of tcompile's."""
    words = [w.strip(".:") for w in re.split(r"[\s'\"\[\](){},;|]+|\.\.\.", reason)]
    if any(word in owners.written for word in words):
        return None
    return next((label for word in words if (label := owners.label(word))), None)
