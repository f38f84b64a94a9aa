"""The facts that a build records of its result: the contents of an artifact's manifest.json.

`manifest.schema.json`, on which people may rely, is made from these classes by
`python -m tools.manifest_schema`. `Manifest.from_json(m.to_json()) == m`.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from msgspec import Meta

from tcompile._version import __version__
from tcompile.core.decode import Count, NonNegative, Positive, UnitInterval, decode, encode
from tcompile.core.errors import bounded
from tcompile.core.model_files import Dims, FileEntry, Sha256, SourceFile, TensorInfo
from tcompile.core.schedule import RESTORES, BlockTokens
from tcompile.passes.lower.token_ops import TokenOpsChoice
from tcompile.planning.memory import Memory
from tcompile.planning.options.outcome import Emitted, Outcome, Reason, Share
from tcompile.targets.backends.base import FusedAttention
from tcompile.targets.compatibility import Compatibility

SCHEMA: Final = "tcompile.manifest/1"
FigureKind = Literal["measured", "modelled"]
Cosine = Annotated[float, Meta(ge=-1, le=1)]

_REDUCTION = {
    "type": "object",
    "required": ["site", "keep"],
    "properties": {
        "site": {
            "description": "attn:BLOCK, block:BLOCK, around:BLOCK, inside:BLOCK or output",
            "type": "string",
        },
        "keep": {
            "description": "patch tokens that leave this site; prefix tokens always stay",
            "type": "integer",
            "minimum": 0,
        },
    },
}
_TOWER = {
    "type": "object",
    "required": ["tower", "reductions", "dense", "outputs"],
    "properties": {
        "tower": {"type": "string"},
        "reductions": {"type": "array"},
        "dense": {"type": "string"},
        "outputs": {"type": "array", "items": {"type": "string"}},
    },
}
#: A manifest keeps the schedule as it was written: what a reader may rely on is in the schema.
ScheduleDocument = Annotated[
    dict[str, Any],
    Meta(
        extra_json_schema={
            "required": ["schema", "method", "reductions"],
            "properties": {
                "schema": {"const": 1},
                "method": {"type": "string"},
                "reductions": {"type": "array", "items": _REDUCTION},
                "tower": {
                    "description": "the tower that `reductions` are for, of a model that has "
                    "several",
                    "type": "string",
                },
                "towers": {
                    "description": "what leaves the other towers, or why nothing does, and which "
                    "outputs hold their tokens: those have token_index_TOWER",
                    "type": "array",
                    "items": _TOWER,
                },
                "resized": {
                    "description": "the smaller image that the model takes in place of "
                    "reductions, and by which rules positions are had for it",
                    "type": "object",
                    "required": ["grid", "patches", "size", "image"],
                    "properties": {
                        "grid": {"description": "rows and columns of patches", "type": "array"},
                        "size": {"description": "rows and columns of pixels", "type": "array"},
                        "image": {
                            "description": "graph: the input keeps its size and is resized in the "
                            "graph; host: the input has this size",
                            "enum": ["graph", "host"],
                        },
                    },
                },
                "restore": {
                    "description": "what restored outputs give dropped tokens, by rule",
                    "enum": list(RESTORES),
                },
            },
        }
    ),
]


@dataclass(frozen=True)
class TargetEntry:
    """The device compiled for.

    Attributes:
        runtime: onnxruntime, openvino, tensorrt-rtx or jetson.
        compute_capability: of an NVIDIA device, e.g. 8.9.
    """

    name: str
    runtime: str
    compute_capability: str | None = None


@dataclass(frozen=True)
class Flops:
    """Floating-point operations for one image; a multiply-add counts as two."""

    dense: Count
    reduced: Count


@dataclass(frozen=True)
class Latency:
    """One latency, and where it comes from.

    Attributes:
        model: source: a model that computes in fp16, as it came; dense is then its fp32 normal
            form. dense int8, dense bf16: the dense model in the precision of such an artifact.
        kind: measured on the device named, or modelled from its data sheet.
        milliseconds: median for one batch.
        spread: lower and upper quartile; null for modelled figures.
        rounds: milliseconds of each round, in their order. All models of a build run once in each,
            so that the median, the quartiles and the interval of the speed-up follow from them;
            empty for modelled figures, and in manifests of older versions.
    """

    model: Literal["dense", "reduced", "source", "dense int8", "dense bf16"]
    kind: FigureKind
    milliseconds: NonNegative
    device: str
    runtime: str
    batch: Positive = 1
    spread: tuple[NonNegative, NonNegative] | None = None
    note: str = ""
    rounds: tuple[NonNegative, ...] = ()

    @property
    def rival(self) -> bool:
        """Tell whether it is of the dense model in the precision of the artifact."""
        return self.model in ("dense int8", "dense bf16")


def dense_and_reduced(figures: Iterable[Latency]) -> tuple[float | None, float | None]:
    """Measured milliseconds of the dense model in the precision of the reduced one, and of that;
    None where they were not measured."""
    times = {
        "rival" if f.rival else f.model: f.milliseconds for f in figures if f.kind == "measured"
    }
    return times.get("rival", times.get("dense")), times.get("reduced")


@dataclass(frozen=True)
class SpeedUp:
    """Median of dense over median of reduced latency, both measured in the same rounds, with the
    95 % interval of 2000 resamples of those rounds (bootstrap, percentiles).

    Attributes:
        over: the dense model in question: the file as it came, or its fp32 normal form.
    """

    ratio: NonNegative
    lower: NonNegative
    upper: NonNegative
    over: str


@dataclass(frozen=True)
class OutputFidelity:
    """The distance of one output from the dense model's.

    Attributes:
        compared: `all` (same shape), `kept tokens` (rows that are tokens of the dense model) or
            `restored tokens` (every original token against the one that now stands for it).
        top1_agreement: share of samples with the same best class; null where the output holds no
            classes.
        correlation_mean: Pearson correlation of a sample's values, of outputs that are neither
            classes nor one vector a sample (maps, boxes, features of patches): other than the
            cosine it sees holes; null for others, and where there is none.
        correlation_min: of the worst sample.
        error_mean: L2 norm of the difference over that of the dense output; null where it is not
            finite, and in manifests of older versions.
        error_max: of the worst sample.
        token_cosine_p05: the cosine that 5 % of the tokens lie below, of outputs whose rows are
            tokens; null for others.
        worst: the sample that is farthest away, by its file's name or its number from 1 on.
        remark: what there is no figure for, and why.
    """

    output: str
    compared: Literal["all", "kept tokens", "restored tokens"]
    cosine_mean: Cosine
    cosine_min: Cosine
    top1_agreement: UnitInterval | None = None
    correlation_mean: Cosine | None = None
    correlation_min: Cosine | None = None
    error_mean: NonNegative | None = None
    error_max: NonNegative | None = None
    token_cosine_p05: Cosine | None = None
    worst: str = ""
    remark: str = ""

    @property
    def likeness(self) -> tuple[float, str]:
        """The figure that says most of it, and its name: correlation where there is one."""
        if self.correlation_mean is not None:
            return self.correlation_mean, "correlation"
        return self.cosine_mean, "cosine"


@dataclass(frozen=True)
class Fidelity:
    """The reduced model against the dense one.

    Attributes:
        data: what the models were run on.
        kind: whether that was data that a person gave, procedural scenes, or white noise; null in
            manifests of older versions.
        digest: SHA-256 of the samples, names and shapes included; null in manifests of older
            versions.
    """

    data: str
    samples: Positive
    outputs: tuple[OutputFidelity, ...]
    kind: Literal["data", "scenes", "noise"] | None = None
    digest: Sha256 | None = None

    @property
    def known_by(self) -> str:
        """What tells these samples from others: scenes and noise are what they are said to be, data
        is known by its digest; empty where that is missing."""
        return self.data if self.kind in ("scenes", "noise") else self.digest or ""

    @property
    def reminder(self) -> str:
        """What a reader must know of such data, in a sentence; empty where a person gave it."""
        return _REMINDERS.get(self.kind or "", "")


_OWN = "tcompile verify --data, tcompile build --calibration"
_REMINDERS = {
    "scenes": f"procedural scenes stand in for images; your own say more ({_OWN})",
    "noise": f"white noise says little of what a model loses; give data of your own ({_OWN})",
}


#: How a dense or reduced model is rounded: its kind of int8, or its precision.
RivalKind = Literal["dynamic", "static", "bf16", "fp32"]


@dataclass(frozen=True)
class Quantization:
    """The way in which the model was put into int8 or fp8: for a CPU by ONNX Runtime's quantizer,
    for TensorRT by Q/DQ pairs.

    Attributes:
        kind: whether ranges of activations are looked up while it runs, or were taken from samples.
        reason: why it is this kind: what both were measured to take and to lose.
        products: products of activations and weights that are in 8 bits; all else is fp32, for
            TensorRT fp16.
        data: the samples that static ranges are from.
        smoothed: how many norms had their outliers put into the weights that read them
            (SmoothQuant), and on which samples these were found; empty: none.
        same_tokens: share of the tokens that are chosen as in fp32, on the samples that fidelity is
            shown on; null: nothing is chosen by what is in the image.
    """

    kind: Literal["dynamic", "static"]
    reason: str
    products: Count
    data: str = ""
    smoothed: str = ""
    same_tokens: UnitInterval | None = None


@dataclass(frozen=True)
class Rival:
    """The dense model in the precision of the artifact, which could be had without tcompile.

    Attributes:
        kind: of int8, chosen as in `quantization`; else the precision.
        fidelity: of it to the dense model as it came, on the same samples.
        speedup: of the artifact over it, measured in the same rounds.
    """

    kind: RivalKind
    fidelity: Fidelity
    speedup: SpeedUp | None = None


@dataclass(frozen=True)
class BatchEntry:
    """The batch sizes that an engine takes, and the one that it is tuned for."""

    smallest: Positive
    typical: Positive
    largest: Positive

    @property
    def words(self) -> str:
        """`1 to 8, tuned for 1`."""
        return f"{self.smallest} to {self.largest}, tuned for {self.typical}"


@dataclass(frozen=True)
class Manifest:
    """The contents of an artifact directory written by `tcompile build`, and how it came about.

    Attributes:
        source: the model that was compiled.
        target: the device compiled for.
        outputs_mode: whether an output with a token axis holds the tokens that were kept, or all
            of them through the owner map.
        token_index: output with fewer tokens → the output that says which tokens its rows are, by
            their positions in the dense model's output; -1: a token that stands for several.
        schedule: which tokens leave where, as `tcompile plan --json` prints it and `--schedule`
            reads it.
        tokens_per_block: prefix tokens included.
        flops: for one image; a multiply-add counts as two.
        versions: of Python, the compiler, its libraries and backends.
        memory: that the model and the dense one need at least, predicted, and the bytes of what was
            written; null in manifests of older versions.
        fidelity: what the reduction changed; null if it was not looked at.
        fused_attention: attention layers in the graph, fused kernels found in the engine, layers
            that are not fused; null without an engine.
        token_ops: form of the token ops in the model, and why it was taken; null in manifests of
            older versions.
        batch_sizes: batch sizes that an engine of a free batch takes, and the one it is tuned for;
            null: the batch is fixed, any is taken, or the manifest is older.
        notes: what a reader should know, a sentence each.
        plan: how the schedule was solved: profile, budget, predicted latency and loss, the plateau
            of each count; of a method's own schedule or a given one the budget and, on a GPU, the
            modelled latency; where dense is emitted because of a measurement, `tried_schedule`
            with what it took; null in manifests of older versions.
        faster: whether the reduced model was measured to be faster than the dense one in the same
            precision, its whole 95 % interval above 1; null: nothing was measured, or it is the
            dense model.
        speedup: of the reduced model over the dense one in fp32, as it was measured for this build;
            null: nothing was measured, it is the dense model, or the manifest is older.
        quantization: how the model was put into int8 or fp8; null: it was not.
        rival: the dense model in int8 or bf16, of a reduced model in the same; null of any other.
        emitted: the model with fewer tokens, or the dense one; null in manifests of older versions.
        reason: why so many tokens are kept. asked: so many were asked for; exact: the same, by
            --exact; plateau: more than asked, free on the target; groups: patches leave in groups;
            method: the method's own counts; schedule: the one given; budget: the latency asked for
            allows as many; drop: --max-drop allows no fewer; utility: pomt's choice; measured: the
            reduced model was measured to be no faster on the target, so dense is emitted.
        asked: by --keep; null: by something else.
        kept: what leaves the encoder of the model that is emitted.
        summary: asked, kept and why, in words: the first lines of the report.
        shapes: inputs whose size was settled by hand (--shape), with their dims; a string is a
            dimension that stays free.
        prefix: tokens before the patches, where a person stated them (--prefix); null: the
            analysis found them.
        preprocess: how images are prepared for the model, as a person stated it (--preprocess) or
            its file says (metadata `tcompile.preprocess`), labels aside; null: neither says, or the
            manifest is older and the metadata of model.onnx may say.
        labels: the name of each class, in the order of the model's output, from the same metadata;
            empty where the model's file has none, and in manifests of older versions.
        fault: the check that this build failed; it was kept for debugging (--keep-failed); null:
            none.
        compatibility: what the engine was made compatible with, or, of a bundle for a Jetson, is
            made compatible with there (--version-compatible, --hardware-compatibility-level);
            null: nothing was asked, there is no engine, or the manifest is older.
        files: every file of the artifact except manifest.json.
        tool: name and version of the compiler.
    """

    source: SourceFile
    target: TargetEntry
    precision: Literal["fp32", "bf16", "fp16", "mixed", "int8", "fp8"]
    outputs_mode: Literal["reduced", "restored"]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    schedule: ScheduleDocument
    tokens_per_block: tuple[BlockTokens, ...]
    flops: Flops
    versions: dict[str, str]
    memory: Memory | None = None
    latency: tuple[Latency, ...] = ()
    fidelity: Fidelity | None = None
    fused_attention: FusedAttention | None = None
    token_ops: TokenOpsChoice | None = None
    batch_sizes: BatchEntry | None = None
    notes: tuple[str, ...] = ()
    plan: dict[str, Any] | None = None
    faster: bool | None = None
    speedup: SpeedUp | None = None
    quantization: Quantization | None = None
    rival: Rival | None = None
    emitted: Emitted | None = None
    reason: Reason | None = None
    asked: Share | None = None
    kept: Share | None = None
    summary: tuple[str, ...] = ()
    token_index: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, Dims] = field(default_factory=dict)
    prefix: Count | None = None
    preprocess: dict[str, Any] | None = None
    labels: tuple[str, ...] = ()
    fault: str | None = None
    compatibility: Compatibility | None = None
    files: tuple[FileEntry, ...] = ()
    tool: Annotated[str, Meta(pattern="^tcompile .+$")] = f"tcompile {__version__}"
    schema: Literal["tcompile.manifest/1"] = SCHEMA

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", tuple(map(bounded, self.notes)))

    @property
    def reduced(self) -> bool:
        """Return whether it is another model than the dense one."""
        return bool(self.schedule["reductions"] or self.schedule.get("resized"))

    @property
    def most_lost(self) -> OutputFidelity | None:
        """Return the output that is least like the dense model's; None: none was looked at."""
        outputs = () if self.fidelity is None else self.fidelity.outputs
        return min(outputs, key=lambda out: out.likeness[0], default=None)

    def to_json(self) -> dict[str, Any]:
        """The document, as JSON values; `schema` and `tool` come first."""
        document = encode(self)
        first = {"schema": document.pop("schema"), "tool": document.pop("tool")}
        return {**first, **document}

    @classmethod
    def from_json(cls, document: Any) -> Manifest:
        """Read a document. Raises `ValueError` naming the first field that is wrong."""
        manifest = decode(cls, document)
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
