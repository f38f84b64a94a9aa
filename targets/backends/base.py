"""The results of a backend, its errors, and the batch sizes that an engine is built for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from tcompile.core.decode import Count
from tcompile.core.errors import ModelError, TcompileError, UsageError
from tcompile.core.graph import batch_dim, free_names, settled
from tcompile.core.model_files import TensorInfo
from tcompile.targets.compatibility import Compatibility

Array = npt.NDArray[Any]


class Opened(Protocol):
    """A model that is open in a runtime.

    Attributes:
        path: its file.
        inputs, outputs: as the file has them.
        metadata: of the file.
    """

    path: Path
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    metadata: Mapping[str, str]

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Every output by name, of one run."""
        ...


class Runner(Opened, Protocol):
    """One whose runs can be timed."""

    def prepared(self, feed: Mapping[str, Array]) -> Callable[[], object]:
        """What runs it on these inputs, to be timed."""
        ...


def fitted(feed: Mapping[str, Array], inputs: Sequence[TensorInfo], path: Path) -> dict[str, Array]:
    """The arrays as a model takes them: in its dtypes, contiguous.

    Raises:
        UsageError: an input is missing, unknown, or has the wrong shape.
    """
    names = {info.name for info in inputs}
    if set(feed) != names:
        raise UsageError(
            f"inputs given: {', '.join(sorted(feed)) or 'none'}; "
            f"the model has: {', '.join(sorted(names))}",
            where=str(path),
        )
    return {info.name: _fit(feed[info.name], info, path) for info in inputs}


def _fit(array: Array, info: TensorInfo, path: Path) -> Array:
    matches = len(array.shape) == len(info.shape) and all(
        isinstance(want, str) or want == got
        for got, want in zip(array.shape, info.shape, strict=True)
    )
    if not matches:
        raise UsageError(
            f"input '{info.name}' has shape {list(array.shape)}, the model wants "
            f"{list(info.shape)}",
            where=str(path),
        )
    # `ascontiguousarray` would give a scalar an axis.
    return np.asarray(array, dtype=np.dtype(info.dtype), order="C")


class RefusedError(TcompileError):
    """A runtime does not accept a model, or accepts it and cannot build it.

    Args:
        runtime: its name and version.
        node, op: the node it is about; empty where the runtime does not say.
        reason: in the runtime's words.
        inside: names of the functions, outermost first, in whose body the node is.
    """

    def __init__(
        self,
        runtime: str,
        reason: str,
        *,
        node: str = "",
        op: str = "",
        inside: tuple[str, ...] = (),
        where: str = "",
    ) -> None:
        self.runtime, self.reason, self.inside = runtime, _plain(reason), inside
        self.node, self.op = node, op
        named = f"node '{node}' ({op})" if node or op else "the model"
        super().__init__(self.sentence(named), where=where)

    def sentence(self, node: str) -> str:
        """Return what is wrong, with a node's name put in."""
        return f"{self.runtime} does not accept {node}: {self.reason}"


def _plain(reason: str) -> str:
    """A reason without places in the runtime's source, and of a length that can be read."""
    text = " ".join(reason.split())
    text = re.sub(r"^Invalid Node - \S+ ", "", text)
    text = re.sub(r"\bI\w+::\w+: |Error Code \d+: |Assertion failed: ", "", text)
    text = re.sub(r"[.,]? ?\(?\bIn \w+ at /\S+\)?", "", text)
    if text.rstrip(".") in ("", "false"):
        return "it gives no reason"  # an assertion of a bare `false`
    return text if len(text) <= 400 else f"{text[:400]} …"


class ParseError(RefusedError, ModelError):
    """The parser does not accept a node."""

    exit_code = 2


class EngineError(RefusedError):
    """The parser accepts the model, and no engine can be built."""

    def sentence(self, node: str) -> str:
        """Return what is wrong; the reason names nodes itself."""
        return f"{self.runtime} cannot build an engine: {self.reason}"


@dataclass(frozen=True)
class FusedAttention:
    """The attention layers that a compiled engine runs as one fused kernel.

    Attributes:
        expected: attention layers in the model that ought to be fused.
        found: fused attention kernels in the engine.
        missing: names of the attention layers (their Softmax or Attention node) without one.
    """

    expected: Count
    found: Count
    missing: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Return whether every expected attention is fused."""
        return not self.missing and self.found >= self.expected


@dataclass(frozen=True)
class EmittedFiles:
    """The files that a backend wrote for a target.

    Attributes:
        files: paths relative to the artifact directory.
        fused: fused attention, where an engine was built and could be looked into.
        versions: version of each backend that took part, by package name.
        notes: sentences for the manifest and for people.
        compatibility: what an engine was made compatible with; None: nothing was asked.
    """

    files: tuple[str, ...] = ()
    fused: FusedAttention | None = None
    versions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    notes: tuple[str, ...] = ()
    compatibility: Compatibility | None = None


@dataclass(frozen=True)
class Batch:
    """The batch sizes an engine with a symbolic batch is built for.

    Attributes:
        smallest, largest: what it takes at run time.
        typical: what it is tuned for.
    """

    smallest: int = 1
    typical: int = 1
    largest: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.smallest <= self.typical <= self.largest:
            raise UsageError(
                f"batch sizes {self.smallest}, {self.typical}, {self.largest} are not 1 <= "
                "smallest <= typical <= largest",
                where="--min-batch, --opt-batch, --max-batch",
            )

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Smallest, typical, largest."""
        return self.smallest, self.typical, self.largest


def first_dims(dim: int | str, batch: Batch) -> tuple[int, int, int]:
    """A first dim at the three sizes: `batch`, any other name, or `batch*3` where the batch is
    merged with another axis. A number stays itself."""
    low, middle, high = (dim if isinstance(dim, int) else settled(dim, n) for n in batch.sizes)
    return low, middle, high


def checked_workspace(target: Target, mebibytes: int | None) -> int | None:
    """Return `--workspace`, in MiB. Raises UsageError for a target without engines, or below 1."""
    if mebibytes is None:
        return None
    if target.on_cpu:
        raise UsageError(
            f"{target.name} has no engine whose workspace could be bounded", where="--workspace"
        )
    if mebibytes < 1:
        raise UsageError(f"{mebibytes} is not a number of MiB", where="--workspace")
    return mebibytes


if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from tcompile.targets.devices import Target

#: What is said of sizes on a target that takes any.
UNBOUND = "batch sizes bound nothing on this target, which runs any batch; they are recorded"


@dataclass(frozen=True)
class BatchSizes:
    """`--min-batch`, `--opt-batch`, `--max-batch` and `--batch`.

    Attributes:
        smallest, typical, largest: None where not asked for.
        batch: images in a run, which is planned and measured with.
    """

    smallest: int | None = None
    typical: int | None = None
    largest: int | None = None
    batch: int = 1

    def __post_init__(self) -> None:
        _ = self.settled  # Raises before anything is read.

    @property
    def asked(self) -> dict[str, int]:
        """Option → size, those asked for."""
        every = {
            "--min-batch": self.smallest,
            "--opt-batch": self.typical,
            "--max-batch": self.largest,
        }
        return {option: size for option, size in every.items() if size is not None}

    @property
    def settled(self) -> Batch:
        """All three, those that were not asked for filled in: 1, `batch`, the larger of 8 and that.

        Raises:
            UsageError: sizes that are not in order, or a batch above the largest.
        """
        low = 1 if self.smallest is None else self.smallest
        middle = max(self.batch, low) if self.typical is None else self.typical
        if self.largest is None:
            return Batch(low, middle, max(8, middle, self.batch))
        if self.batch > self.largest:
            raise UsageError(
                f"plans for {self.batch} images in a run, which is more than --max-batch "
                f"{self.largest}",
                where="--batch",
            )
        return Batch(low, middle, self.largest)

    def check(self, graph: gs.Graph, where: str | Path) -> None:
        """Raise `UsageError` for sizes that a model of a fixed batch does not have."""
        if free_names(graph):
            return
        fixed = batch_dim(graph)
        for option, size in self.asked.items():
            if size != fixed:
                shapes = ", ".join(f"'{t.name}' {list(t.shape)}" for t in graph.inputs)
                raise UsageError(
                    f"{option} {size} needs a model with a free batch; this one runs {fixed} at a "
                    f"time, inputs {shapes}",
                    where=str(where),
                    hint="export it with a free batch: tcompile export --batch dynamic",
                )
