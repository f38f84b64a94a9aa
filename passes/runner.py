"""Named passes, run in order; `--dump` writes the graph as ONNX text after each."""

from __future__ import annotations

import hashlib
import math
import os
import re
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter, dtype_to_onnx

from tcompile.core.errors import UsageError
from tcompile.core.graph import is_const
from tcompile.core.save import without_weights

#: Values of a tensor that are printed; of larger ones type, dims and digest are.
_PRINTED = 16
_FILE = re.compile(r"\d{3,}-(normalize|reduce|lower)-[\w.-]+\.txt")
#: Lies between two typed names in a text.
_ENTRY = re.compile(r", (?=[a-z]\w*(\[[^\]]*\])? [\"\w])")


class State(Protocol):
    """The graph that the passes of one stage work on, and what else they share."""

    graph: gs.Graph


S = TypeVar("S", bound=State)


@dataclass(frozen=True)
class Pass(Generic[S]):
    """One rewriting of a graph.

    Attributes:
        name: in the list of its stage, and in names of dumped files.
        run: rewrites the graph of a state; may return how many changes it made.
        when: tells whether the pass applies.
    """

    name: str
    run: Callable[[S], int | None]
    when: Callable[[S], bool] = lambda _: True


def run(state: S, passes: Sequence[Pass[S]], stage: str, dump: Dump | None = None) -> int:
    """Run the passes that apply, in order; returns how many changes they made.

    Args:
        stage: normalize, reduce or lower.
        dump: takes the graph after each pass.
    """
    changes = 0
    for step in passes:
        if step.when(state):
            changes += step.run(state) or 0
            if dump is not None:
                dump.write(stage, step.name, state.graph)
    return changes


class Dump:
    """A folder of graphs as ONNX text, `NNN-STAGE-PASS.txt` in the order in which passes ran.

    Args:
        folder: new, empty, or of an earlier dump, which goes when this one begins.

    Raises:
        UsageError: it holds anything else.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder, self._count = Path(folder), 0
        self._digests: dict[int, tuple[weakref.ref[Any], str]] = {}
        if self.folder.exists() and not self.folder.is_dir():
            raise self._refusal("exists and is not a directory")
        for path in self._entries():
            if not _FILE.fullmatch(path.name) or not path.is_file():
                raise self._refusal(f"holds '{path.name}', which no dump wrote; it is left alone")

    def restart(self) -> None:
        """Begin again with no files: another model is compiled, or the same one anew."""
        self._count = 0
        try:
            for path in self._entries():
                path.unlink()
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def write(self, stage: str, name: str, graph: gs.Graph) -> None:
        """Write the graph as it is after a pass."""
        self._count += 1
        plain = re.sub(r"[^\w.-]", "_", name)
        path = self.folder / f"{self._count:03d}-{stage}-{plain}.txt"
        try:
            path.write_text(to_text(graph, self._digest), encoding="utf-8")
        except OSError as error:
            raise self._unwritable(error) from error

    def _entries(self) -> list[Path]:
        return sorted(self.folder.iterdir()) if self.folder.is_dir() else []

    def _digest(self, tensor: gs.Constant) -> str:
        """A short digest of stored values; graphs share them, so each is read once."""
        values = tensor._values
        known = self._digests.get(id(values))
        if known is None or known[0]() is not values:
            known = weakref.ref(values), digest_of(OnnxExporter.export_tensor_proto(tensor))
            self._digests[id(values)] = known
        return known[1]

    def _refusal(self, what: str) -> UsageError:
        hint = "give a new or an empty folder, or that of an earlier dump"
        return UsageError(f"--dump: {what}", where=str(self.folder), hint=hint)

    def _unwritable(self, error: OSError) -> UsageError:
        reason = os.strerror(error.errno) if error.errno else str(error)
        return UsageError(f"cannot write the dump: {reason}", where=str(self.folder))


def digest_of(tensor: onnx.TensorProto) -> str:
    """The first digits of a digest of a tensor's values."""
    data = tensor.raw_data or tensor.SerializeToString()
    return hashlib.blake2b(data, digest_size=6).hexdigest()


def to_text(
    graph: gs.Graph,
    digest: Callable[[gs.Constant], str] = lambda t: digest_of(OnnxExporter.export_tensor_proto(t)),
) -> str:
    """The graph as ONNX text, in which large weights have no values, `float[768,768] w = {}`;
    comments at the end, `# w: 8f3a…`, have their digests.

    Args:
        digest: gives that of one of them.
    """
    model = without_weights(graph)
    digests: list[str] = []
    for tensor in graph.tensors().values():
        if not is_const(tensor):
            continue
        dims = tuple(tensor.shape)
        if math.prod(dims) <= _PRINTED:
            model.graph.initializer.append(OnnxExporter.export_tensor_proto(tensor))
        else:
            kind = dtype_to_onnx(tensor.export_dtype)
            model.graph.initializer.add(name=tensor.name, data_type=kind, dims=dims)
            digests.append(f"# {tensor.name}: {digest(tensor)}")
    _elide(model.graph)
    lines = onnx.printer.to_text(model).split("\n")
    # The printer has all weights and shapes on one line; two dumps are compared line by line.
    lines = [_ENTRY.sub(",\n    ", line) if line.startswith("   <") else line for line in lines]
    return "\n".join([*lines, *digests, ""])


def _elide(graph: onnx.GraphProto) -> None:
    """Remove large values from attributes, and from graphs inside."""
    for attribute in (a for node in graph.node for a in node.attribute):
        inside = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
        for tensor in (attribute.t, *(t for g in inside for t in g.initializer)):
            if math.prod(tensor.dims) > _PRINTED:
                kept = onnx.TensorProto(
                    name=tensor.name, data_type=tensor.data_type, dims=tensor.dims
                )
                tensor.CopyFrom(kept)
        for each in inside:
            _elide(each)
