"""Versions of TensorRT and JetPack: what each one has, takes and needs to be told, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import msgspec

from tcompile.core.errors import UsageError
from tcompile.targets.devices import DEVICES, Target

Version = tuple[int, int]


def parse_version(text: str) -> Version:
    """Return the (major, minor) of a version such as `10.3.0`."""
    major, minor, *_ = text.split(".")
    return int(major), int(minor)


@dataclass(frozen=True)
class ParserRule:
    """The way in which the ONNX parser of some versions of TensorRT looks up an operator.

    Attributes:
        since, before: the first version, and the first one that differs again; None: none yet.
        order: what it tries, in this order. `marked plugin` is a registered plugin whose namespace
            the node names; `plugin` any registered one.
        aot: whether `tensorrt.plugin` takes kernels compiled ahead of time.
    """

    since: str
    before: str | None
    order: tuple[str, ...]
    aot: bool

    @property
    def takes_body_first(self) -> bool:
        """Tell if a plugin is found only where the file has no body."""
        first = next((w for w in self.order if w in ("function", "plugin", "marked plugin")), "")
        return first == "function"

    @property
    def versions(self) -> str:
        """The versions in words."""
        if self.before is None:
            return f"{self.since} and newer"
        return f"{self.since} to before {self.before}"


@dataclass(frozen=True)
class StronglyTyped:
    """Versions whose networks keep to the types of the graph.

    Attributes:
        since: the first that can; it has to be told.
        only_since: the first that knows no other way; what tells it is not looked at any more.
    """

    since: str
    only_since: str


@dataclass(frozen=True)
class DlaSupport:
    """Versions of TensorRT that reach a Jetson's DLA.

    Attributes:
        since, before: the first version, and the first that does not any more; None: none yet.
        devices: on which, in words.
        source: where that was read.
    """

    since: str
    before: str | None
    devices: str
    source: str


@dataclass(frozen=True)
class AttentionKernel:
    """Which attentions are computed in 8 bits, in one kernel.

    Attributes:
        source: where that was read and seen.
        runtimes: that are built so.
        since: the oldest compute capability.
        sizes: of a head.
        least, most: keys.
    """

    source: str
    runtimes: tuple[str, ...]
    since: str
    sizes: tuple[int, ...]
    least: int
    most: int

    def built_for(self, target: Target) -> bool:
        """Tell whether a target's engines have it."""
        capability = parse_version(target.compute_capability or "0.0")
        return target.runtime in self.runtimes and capability >= parse_version(self.since)

    def takes(self, size: int | None, keys: int | None) -> bool:
        """Tell whether the kernel is for heads of that size and so many keys."""
        return size in self.sizes and keys is not None and self.least <= keys <= self.most


@dataclass(frozen=True)
class VersionRule:
    """Which versions of TensorRT run a version-compatible engine of another one.

    Attributes:
        source: where that was read.
        across: pairs of major versions, of the engine and of what runs it. Within a major version
            newer ones run what older ones built.
    """

    source: str
    across: tuple[Version, ...]


@dataclass(frozen=True)
class LevelRule:
    """A level of hardware compatibility.

    Attributes:
        member: of TensorRT's `HardwareCompatibilityLevel`.
        since: the first version that has it.
        oldest: compute capability that it can be built on.
    """

    member: str
    since: str
    oldest: str


@dataclass(frozen=True)
class HardwareRule:
    """Levels of hardware compatibility, and where that was read."""

    source: str
    levels: Mapping[str, LevelRule]


@dataclass(frozen=True)
class RtxRule:
    """What TensorRT-RTX has in place of both: where that was read."""

    source: str


@dataclass(frozen=True)
class CompatibilityRules:
    """What engines can be made compatible with; see `compatibility.py`."""

    version: VersionRule
    hardware: HardwareRule
    rtx: RtxRule


@dataclass(frozen=True)
class TensorRTVersions:
    """The file `devices/_tensorrt.json`; `source` says where its facts were read, `attention` is by
    precision."""

    source: str
    strongly_typed: StronglyTyped
    parsers: tuple[ParserRule, ...]
    dla: tuple[DlaSupport, ...]
    compatibility: CompatibilityRules
    attention: Mapping[str, AttentionKernel]


TENSORRT = msgspec.json.decode((DEVICES / "_tensorrt.json").read_bytes(), type=TensorRTVersions)


def parser_rule(version: Version) -> ParserRule:
    """Return the rule of a version of TensorRT.

    Raises:
        UsageError: it is older than any that is known.
    """
    for rule in reversed(TENSORRT.parsers):
        if parse_version(rule.since) <= version:
            return rule
    raise UsageError(
        f"TensorRT {version[0]}.{version[1]} is too old for token ops",
        hint=f"{TENSORRT.parsers[0].since} or newer",
    )


def first_with_aot() -> str:
    """Return the first version that takes kernels compiled ahead of time."""
    return next(rule.since for rule in TENSORRT.parsers if rule.aot)


def first_with_plugins_first() -> str:
    """Return the first version that takes a plugin although the file has a body."""
    return next(rule.since for rule in TENSORRT.parsers if not rule.takes_body_first)


@dataclass(frozen=True)
class JetPack:
    """One row of the JetPack matrix.

    Attributes:
        jetpack, l4t, cuda, tensorrt: version strings; empty where not known.
        families: the Jetsons that it runs on: `orin`, `thor`.
        supported: whether reduced models can be built there; `note` says why not.
        confidence: `read` in `source`, or `recalled` (general knowledge, not checked again).
    """

    jetpack: str
    l4t: str
    cuda: str
    tensorrt: str
    families: tuple[str, ...]
    supported: bool
    confidence: str
    source: str
    note: str

    @property
    def trt_version(self) -> Version:
        """TensorRT's (major, minor)."""
        return parse_version(self.tensorrt)


@lru_cache(maxsize=1)
def all_jetpacks() -> tuple[JetPack, ...]:
    """Return the whole matrix, oldest first."""
    document = (DEVICES / "_jetpack.json").read_bytes()
    return msgspec.json.decode(document, type=dict[str, tuple[JetPack, ...]])["matrix"]


#: Compute capability → the family of Jetsons that has it.
_FAMILIES = {"8.7": "orin", "11.0": "thor"}


@dataclass(frozen=True)
class Container:
    """A container image in which engines can be built and run.

    Attributes:
        image: with its tag.
        tensorrt: in it; empty where none is.
        families: the Jetsons that it was seen on; none: desktop GPUs.
        jetpacks: of the host.
        options: of `docker run`, beside those for the folder.
        confidence: `reported` by others; none of them was run by us.
        source: where that was read.
        note: what to know before taking it.
    """

    image: str
    tensorrt: str
    families: tuple[str, ...]
    jetpacks: tuple[str, ...]
    options: tuple[str, ...]
    confidence: str
    source: str
    note: str

    def line(self, command: str) -> str:
        """The command that runs another one in the current folder."""
        run = ("docker", "run", "--rm", *self.options, '-v "$PWD":/work -w /work', self.image)
        return " ".join([*run, command])


@lru_cache(maxsize=1)
def all_containers() -> tuple[Container, ...]:
    """Return every image that is known, Jetsons' first."""
    document = (DEVICES / "_containers.json").read_bytes()
    return msgspec.json.decode(document, type=dict[str, tuple[Container, ...]])["images"]


def containers_for(target: Target) -> tuple[Container, ...]:
    """Return the images for a Jetson, or those for a desktop GPU."""
    family = _FAMILIES.get(target.compute_capability or "") if target.runtime == "jetson" else None
    return tuple(c for c in all_containers() if family in (c.families or (None,)))


def jetpacks_for(target: Target) -> tuple[JetPack, ...]:
    """Return the supported JetPacks of a Jetson, oldest first; none for another target."""
    return tuple(row for row in all_jetpacks() if row.supported and row.jetpack in target.jetpacks)
