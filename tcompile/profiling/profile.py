"""A profile: what each part of a model takes on a target, by token count, and how that is known.

`MeasuredProfile` and `ModelledProfile` are two types that nothing mixes: what was modelled never
passes for a measurement.

A half is known by its structure (`signature`), so that blocks that are alike share a curve.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from tcompile.core.decode import Count, Positive, decode, read_json
from tcompile.core.errors import UsageError
from tcompile.profiling.curve import Curve, Figure, StepCost, combined
from tcompile.profiling.plateaus import StepEvidence, step_evidence
from tcompile.targets.devices import ROUNDED, list_targets

FORMAT, VERSION = "tcompile-profile", 1
Kind = Literal["measured", "modelled"]


@dataclass(frozen=True)
class Conditions:
    """On what, and how, the figures hold.

    Attributes:
        target: its name.
        device: what it calls itself.
        runtime: that ran the parts, or was modelled.
        software: versions by package.
        precision: of the parts.
        batch: images in a run.
        threads: of a CPU; 0 elsewhere.
        clocks, power_mode: as the device tells them; empty where it does not.
        date: UTC, of the measurement.
        note: what else is to be known.
    """

    target: str
    device: str
    runtime: str
    software: Mapping[str, str]
    precision: str
    batch: Positive
    threads: Count = 0
    clocks: str = ""
    power_mode: str = ""
    date: str = ""
    note: str = ""

    def same(self, other: Conditions) -> list[str]:
        """The fields in which two differ and figures must not be put together."""
        mine, theirs = asdict(self), asdict(other)
        return [k for k in mine if k not in ("date", "note") and mine[k] != theirs[k]]


@dataclass(frozen=True)
class Subject:
    """The model whose parts were looked at.

    Attributes:
        source: file name.
        tokens, prefix, blocks: of the dense model.
    """

    source: str
    tokens: Positive
    prefix: Count
    blocks: Positive


@dataclass(frozen=True)
class Profile:
    """Latencies of the parts of a model; use `MeasuredProfile` or `ModelledProfile`.

    Attributes:
        conditions, subject: on what, of what.
        stem: signature → all before the blocks.
        halves: signature → a half of a block.
        heads: signature → all behind the blocks.
        reducers: method → score and reducer of one step.
        dense: the whole dense model, run beside its parts (or modelled); None where unknown.
    """

    kind: ClassVar[Kind]
    conditions: Conditions
    subject: Subject
    stem: Mapping[str, Figure] = field(default_factory=dict)
    halves: Mapping[str, Curve] = field(default_factory=dict)
    heads: Mapping[str, Curve] = field(default_factory=dict)
    reducers: Mapping[str, StepCost] = field(default_factory=dict)
    dense: Figure | None = None

    @cached_property
    def why_no_plateaus(self) -> str:
        """Return why flat pieces of the curves are no plateaus; empty where they are.

        Derived, not stored: profiles written before have it too.
        """
        if self.kind == "modelled":
            return ""  # A model has no noise: its steps are those of tiles.
        return self._evidence.why_none

    @property
    def busy(self) -> bool:
        """Tell whether it was measured, likely on a machine that did something else as well."""
        return self.kind == "measured" and self._evidence.busy

    @cached_property
    def _evidence(self) -> StepEvidence:
        return step_evidence([*self.halves.values(), *self.heads.values()])

    @property
    def claims_plateaus(self) -> bool:
        """Tell whether counts may be moved to the right edge of a plateau."""
        return not self.why_no_plateaus

    @property
    def rounded(self) -> bool:
        """Tell whether the parts ran on a CPU, in int8 or bf16."""
        on_cpu = self.conditions.target in (t.name for t in list_targets() if t.on_cpu)
        return on_cpu and self.conditions.precision in ROUNDED

    @property
    def words(self) -> str:
        """The origin of the figures, as part of a sentence."""
        c = self.conditions
        when = f" on {c.date[:10]}" if c.date else ""
        how = f"batch {c.batch}, {c.precision}" + (f", {c.threads} threads" if c.threads else "")
        return f"{self.kind}, {c.device}, {c.runtime}, {how}{when}"

    def to_json(self) -> dict[str, Any]:
        """The document that `from_json` reads."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "kind": self.kind,
            "conditions": {**asdict(self.conditions), "software": dict(self.conditions.software)},
            "subject": asdict(self.subject),
            "dense": None if self.dense is None else self.dense.to_json(),
            **{
                name: {k: v.to_json() for k, v in getattr(self, name).items()}
                for name in ("stem", "halves", "heads", "reducers")
            },
        }


@dataclass(frozen=True)
class MeasuredProfile(Profile):
    """Every figure was timed on the device."""

    kind = "measured"


@dataclass(frozen=True)
class ModelledProfile(Profile):
    """Every figure follows from the device's data sheet (docs/roofline.md)."""

    kind = "modelled"


P = TypeVar("P", bound=Profile)


@dataclass(frozen=True)
class _Document:
    """A profile as JSON holds it: figures and curves are lists of numbers."""

    kind: Kind
    conditions: Conditions
    subject: Subject
    stem: dict[str, list[float]]
    halves: dict[str, list[list[float]]]
    heads: dict[str, list[list[float]]]
    reducers: dict[str, list[list[float]]]
    dense: list[float] | None


def from_json(document: Mapping[str, Any], where: str = "profile") -> Profile:
    """Read a profile; fields beside those of a profile are what `tcompile profile` adds.

    Raises:
        UsageError: another format or version, or fields that are missing or make no sense.
    """
    if not isinstance(document, Mapping) or document.get("format") != FORMAT:
        raise UsageError("is not a profile", where=where, hint="`tcompile profile` writes them")
    if document.get("version") != VERSION:
        raise UsageError(f"is of version {document.get('version')}, this is {VERSION}", where=where)
    names = {f.name for f in fields(_Document)}
    try:
        found = decode(_Document, {k: v for k, v in document.items() if k in names})
        if found.subject.tokens <= found.subject.prefix:
            raise ValueError(f"subject.tokens: {found.subject.tokens} are no more than the prefix")
        return (MeasuredProfile if found.kind == "measured" else ModelledProfile)(
            found.conditions,
            found.subject,
            {k: Figure.from_json(v) for k, v in found.stem.items()},
            {k: Curve.from_json(v) for k, v in found.halves.items()},
            {k: Curve.from_json(v) for k, v in found.heads.items()},
            {k: StepCost.from_json(v) for k, v in found.reducers.items()},
            None if found.dense is None else Figure.from_json(found.dense),
        )
    except (ValueError, OverflowError) as error:
        raise UsageError(f"is not a profile: {error}", where=where) from error


def read_profile(path: str | Path) -> Profile:
    """Read a profile file.

    Raises:
        UsageError: it cannot be read, or is not a profile.
    """
    return from_json(read_json(path, "a profile"), str(path))


def combine(first: P, second: Profile) -> P:
    """The figures of both; where both have one, the two together, weighted by their runs.

    Raises:
        UsageError: one measured and one modelled, or measured under other conditions.
    """
    if type(first) is not type(second):
        raise UsageError(
            f"a {first.kind} and a {second.kind} profile are not put together", where="profile"
        )
    apart = first.conditions.same(second.conditions)
    if apart:
        raise UsageError(
            f"profiles differ in {', '.join(apart)}",
            where="profile",
            hint="measure both under the same conditions",
        )
    dense = first.dense if first.subject == second.subject else None
    if dense is not None and second.dense is not None:
        dense = dense.with_(second.dense)
    both: dict[str, Any] = {
        name: combined([*getattr(first, name).items(), *getattr(second, name).items()])
        for name in ("stem", "halves", "heads", "reducers")
    }
    return replace(first, dense=dense, **both)
