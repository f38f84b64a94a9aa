"""A target: a device and how one compiles for it, read from `devices/NAME.json`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import msgspec

from tcompile.core.decode import decode
from tcompile.core.errors import InternalError, UsageError

Runtime = Literal["onnxruntime", "openvino", "tensorrt-rtx", "jetson"]
Precision = Literal["fp32", "bf16", "fp16", "mixed", "int8", "fp8"]
#: Those of which most is computed in fp16.
HALF = ("fp16", "mixed")
#: Those that are made with images, whatever the plan is made with.
ON_IMAGES = ("int8", "fp8", "mixed")
#: Those of so few bits that an artifact is judged by what it keeps on images. On a CPU the graph
#: stays fp32 in them: its file is quantised, or its runtime rounds.
ROUNDED = ("int8", "fp8", "bf16")
#: On a GPU, those that are planned as another: its kernels are as fast, its tensors as large.
_PLANNED_AS = {"mixed": "fp16", "bf16": "fp16", "fp8": "int8"}
#: Runtimes that run plain ONNX on the CPU of this machine.
ON_CPU = ("onnxruntime", "openvino")
Confidence = Literal["measured", "reported", "computed", "recalled"]

DEVICES = Path(__file__).resolve().parent


class DeviceFigure(msgspec.Struct, frozen=True, omit_defaults=True):
    """One number about a device, and how far it can be trusted.

    Attributes:
        value: the number, in `unit`.
        unit: SMs, GHz, TFLOPS, TOPS, GB/s, MiB, GB, KiB, threads or W.
        source: where it was read, or the formula that gives it.
        confidence: `measured` on the device, `reported` by someone named in `source`, `computed`
            from other figures, or `recalled`: general knowledge that was not checked again.
        note: what to keep in mind; may be empty.
    """

    value: int | float
    unit: str
    source: str
    confidence: Confidence
    note: str = ""


class Variant(msgspec.Struct, frozen=True, omit_defaults=True):
    """A sibling of a device: what differs from it; empty where nothing does."""

    title: str = ""
    figures: dict[str, DeviceFigure] = {}
    power_modes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Target:
    """A device and how one compiles for it: the fields of its data file.

    Attributes:
        name: the name of its data file; with a variant, `name:variant`.
        title: what the device is called.
        aliases: other names by which `load_target` finds it.
        runtime: what runs the model there. `jetson` means that a build elsewhere writes a bundle.
        compute_capability: "8.6"; None where there is no GPU.
        default_precision: what a build uses unless another one is asked for.
        precisions: what may be asked for.
        jetpacks: the JetPack versions that are known for it; empty off Jetson.
        figures: sm_count, boost_clock, fp16_dense, int8_dense, memory_bandwidth, l2_cache, memory,
            shared_memory_per_sm, threads_per_sm, power. Peaks are of dense tensor work.
        power_modes: names of its power modes.
        variants: the siblings of the device, by variant name.
        notes: sentences for people.
    """

    name: str
    title: str
    aliases: tuple[str, ...] = ()
    runtime: Runtime
    compute_capability: str | None = None
    default_precision: Precision
    precisions: tuple[Precision, ...]
    jetpacks: tuple[str, ...] = ()
    figures: Mapping[str, DeviceFigure] = field(default_factory=dict)
    power_modes: tuple[str, ...] = ()
    variants: Mapping[str, Variant] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def device_name(self) -> str:
        """The device: targets that differ by their runtime alone share it."""
        return self.name.removesuffix(f"-{self.runtime}")

    @property
    def on_cpu(self) -> bool:
        """Tell whether its models are plain ONNX, and run on the CPU of this machine."""
        return self.runtime in ON_CPU

    def planned_as(self, precision: str) -> str:
        """Return the precision whose latency a plan in another one goes by."""
        return precision if self.on_cpu else _PLANNED_AS.get(precision, precision)

    def value(self, figure: str) -> float | None:
        """Return the number of a figure, or None where the device's file does not have it."""
        found = self.figures.get(figure)
        return None if found is None else found.value

    def check_precision(self, precision: str) -> None:
        """Raise UsageError unless it may be built for in that precision."""
        if precision not in self.precisions:
            having = [t for t in list_targets() if precision in t.precisions]
            same = [t for t in having if t.device_name == self.device_name]
            others = ", ".join(t.name for t in same or having)
            raise UsageError(
                f"target {self.name} has no precision '{precision}'",
                where="--precision",
                hint=f"one of {', '.join(self.precisions)}"
                + (f"; {precision} is for {others}" if others else ""),
            )

    def to_json(self) -> dict[str, Any]:
        """Return the document of its data file."""
        document: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return document

    def variant(self, name: str) -> Target:
        """Return the target with the figures of one of its variants.

        Raises:
            UsageError: it has no variant of that name.
        """
        if name not in self.variants:
            known = ", ".join(f"{self.name}:{each}" for each in self.variants) or "it has none"
            raise UsageError(
                f"{self.name} has no variant '{name}'", where="--target", hint=f"variants: {known}"
            )
        change = self.variants[name]
        return replace(
            self,
            name=f"{self.name}:{name}",
            title=change.title or self.title,
            aliases=(),
            figures={**self.figures, **change.figures},
            power_modes=change.power_modes or self.power_modes,
            variants={},
        )


def load_target(name: str) -> Target:
    """Return the target called `name`: a device, an alias, or `device:variant`.

    Raises:
        UsageError: nothing is called that; the message has the nearest names.
    """
    base, _, variant = name.strip().lower().partition(":")
    for target in list_targets():
        if base == target.name or base in target.aliases:
            return target.variant(variant) if variant else target
    names = [each for target in list_targets() for each in (target.name, *target.aliases)]
    near = difflib.get_close_matches(base, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(names))}"
    raise UsageError(f"unknown target '{name}'", where="--target", hint=hint)


def in_runtime(name: str, runtime: str | None) -> str:
    """The name of the target that is the same device in another runtime.

    Raises:
        UsageError: there is no such target; it does not run there.
    """
    if runtime is None:
        return name
    asked = load_target(name)
    same = [t for t in list_targets() if t.device_name == asked.device_name]
    for target in same:
        if target.runtime == runtime:
            return target.name
    raise UsageError(
        f"{asked.name} does not run in {runtime}",
        where="--runtime",
        hint=f"it runs in {' or '.join(sorted({t.runtime for t in same}))}",
    )


@lru_cache(maxsize=1)
def _all_targets() -> tuple[Target, ...]:
    # A leading underscore marks data that is not a device.
    files = sorted(path for path in DEVICES.glob("*.json") if not path.name.startswith("_"))
    return tuple(sorted(map(_read, files), key=attrgetter("name")))


def _read(path: Path) -> Target:
    try:
        return decode(Target, msgspec.json.decode(path.read_bytes()))
    except ValueError as error:
        raise InternalError(str(error), where=f"targets/devices/{path.name}") from error


def list_targets() -> list[Target]:
    """Return every target, by name."""
    return list(_all_targets())
