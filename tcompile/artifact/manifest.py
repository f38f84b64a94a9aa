"""What a build knows about its result: the contents of an artifact's manifest.json.

The JSON schema people may rely on is published beside this file, `manifest.schema.json`; the
dataclasses here are the same thing for Python. `Manifest.from_json(m.to_json()) == m`.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from tcompile._version import __version__
from tcompile.core.decode import decode, encode
from tcompile.core.model_files import FileEntry, Source, TensorInfo
from tcompile.core.schedule import BlockTokens
from tcompile.passes.lower.token_ops import TokenOpsChoice
from tcompile.planning.solve.outcome import Emitted, Outcome, Reason, Share
from tcompile.targets.backends.base import FusedAttention

SCHEMA = "tcompile.artifact.manifest/1"
FigureKind = Literal["measured", "modelled"]


@dataclass(frozen=True)
class TargetEntry:
    """The device compiled for."""

    name: str
    runtime: str
    compute_capability: str | None = None


@dataclass(frozen=True)
class Flops:
    """Floating-point operations for one image; a multiply-add counts as two."""

    dense: int
    reduced: int


@dataclass(frozen=True)
class Latency:
    """One latency figure, and where it comes from. `spread` is the quartiles, measured only.

    `source` is a model that computes in fp16, as it came; `dense` is then its fp32 normal form.
    """

    model: Literal["dense", "reduced", "source"]
    kind: FigureKind
    milliseconds: float
    device: str
    runtime: str
    batch: int = 1
    spread: tuple[float, float] | None = None
    note: str = ""


@dataclass(frozen=True)
class OutputFidelity:
    """How far one output moved from the dense model's.

    `compared` says on what: `all` (same shape), `kept tokens` (rows that are tokens of the dense
    model) or `restored tokens` (every original token against the one that now stands for it).
    """

    output: str
    compared: Literal["all", "kept tokens", "restored tokens"]
    cosine_mean: float
    cosine_min: float
    top1_agreement: float | None = None


@dataclass(frozen=True)
class Fidelity:
    """Reduced model against dense model, on `samples` inputs described by `data`."""

    data: str
    samples: int
    outputs: tuple[OutputFidelity, ...]


@dataclass(frozen=True)
class BatchEntry:
    """The batch sizes that an engine takes, and the one that it is tuned for."""

    smallest: int
    typical: int
    largest: int

    @property
    def words(self) -> str:
        """`1 to 8, tuned for 1`."""
        return f"{self.smallest} to {self.largest}, tuned for {self.typical}"


@dataclass(frozen=True)
class Manifest:
    """See `manifest.schema.json` for what each field means to a reader."""

    source: Source
    target: TargetEntry
    precision: Literal["fp32", "fp16"]
    outputs_mode: Literal["reduced", "restored"]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    schedule: dict[str, Any]
    tokens_per_block: tuple[BlockTokens, ...]
    flops: Flops
    versions: dict[str, str]
    latency: tuple[Latency, ...] = ()
    fidelity: Fidelity | None = None
    fused_attention: FusedAttention | None = None
    token_ops: TokenOpsChoice | None = None
    batch_sizes: BatchEntry | None = None
    notes: tuple[str, ...] = ()
    plan: dict[str, Any] | None = None
    faster: bool | None = None
    emitted: Emitted | None = None
    reason: Reason | None = None
    asked: Share | None = None
    kept: Share | None = None
    summary: tuple[str, ...] = ()
    shapes: dict[str, tuple[int | str, ...]] = field(default_factory=dict)
    prefix: int | None = None
    fault: str | None = None
    files: tuple[FileEntry, ...] = ()
    tool: str = f"tcompile {__version__}"
    schema: str = SCHEMA

    def to_json(self) -> dict[str, Any]:
        """The document, as JSON values; `schema` and `tool` come first."""
        document = encode(self)
        first = {"schema": document.pop("schema"), "tool": document.pop("tool")}
        return {**first, **document}

    @classmethod
    def from_json(cls, document: Any) -> Manifest:
        """Read a document. Raises `ValueError` naming the first field that is wrong."""
        manifest = decode(cls, document)
        if manifest.schema != SCHEMA:
            raise ValueError(f"schema: {manifest.schema!r}, this tcompile reads {SCHEMA!r}")
        for entry in manifest.files:
            path = Path(entry.path)
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"files: path {entry.path!r} leaves the artifact")
        return manifest

    def with_outcome(self, outcome: Outcome) -> Manifest:
        """A copy that says what was asked, what is given, and why."""
        return replace(
            self,
            emitted=outcome.emitted,
            reason=outcome.reason,
            asked=outcome.asked,
            kept=outcome.kept,
            summary=outcome.summary(),
        )

    def with_files(self, files: Iterable[FileEntry]) -> Manifest:
        """A copy that lists these files."""
        return replace(self, files=tuple(files))


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that had a hand in a build, where installed."""
    versions = {"python": platform.python_version(), "tcompile": __version__}
    for package in (
        "onnx",
        "onnx-graphsurgeon",
        "polygraphy",
        "numpy",
        "onnxruntime",
        "onnxruntime-gpu",
        "tensorrt",
        "tensorrt-rtx",
    ):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
