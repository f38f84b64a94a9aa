"""A target: a device and how one compiles for it, read from `devices/NAME.json`."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from tcompile.core.errors import UsageError

Runtime = Literal["onnxruntime", "tensorrt-rtx", "jetson"]
Precision = Literal["fp32", "fp16"]
Confidence = Literal["measured", "reported", "computed", "recalled"]

DEVICES = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Figure:
    """One number about a device, and how far it can be trusted.

    Attributes:
        value: the number, in `unit`.
        unit: SMs, GHz, TFLOPS, TOPS, GB/s, MiB, GB, KiB, threads or W.
        source: where it was read, or the formula that gives it.
        confidence: `measured` on the device, `reported` by someone named in `source`, `computed`
            from other figures, or `recalled`: general knowledge that was not checked again.
        note: what to keep in mind; may be empty.
    """

    value: float
    unit: str
    source: str
    confidence: Confidence
    note: str = ""


@dataclass(frozen=True)
class Target:
    """A device and how one compiles for it.

    Attributes:
        name: the name of its data file; with a variant, `name:variant`.
        title: what the device is called.
        aliases: other names by which `load_target` finds it.
        runtime: what runs the model there. `jetson` means that a build elsewhere writes a bundle.
        default_precision: what a build uses when nobody says otherwise.
        precisions: what may be asked for.
        compute_capability: "8.6"; None where there is no GPU.
        figures: sm_count, boost_clock, fp16_dense, int8_dense, memory_bandwidth, l2_cache, memory,
            shared_memory_per_sm, threads_per_sm, power. Peaks are of dense tensor work.
        jetpacks: the JetPack versions we know of for it; empty off Jetson.
        power_modes: names of its power modes.
        variants: figures that differ on a sibling of the device, by variant name.
        notes: sentences for people.
    """

    name: str
    title: str
    runtime: Runtime
    default_precision: Precision
    precisions: tuple[Precision, ...]
    compute_capability: str | None = None
    aliases: tuple[str, ...] = ()
    figures: Mapping[str, Figure] = field(default_factory=lambda: MappingProxyType({}))
    jetpacks: tuple[str, ...] = ()
    power_modes: tuple[str, ...] = ()
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: MappingProxyType({}))
    notes: tuple[str, ...] = ()

    def value(self, figure: str) -> float | None:
        """The number of a figure, or None where the device's file does not have it."""
        found = self.figures.get(figure)
        return None if found is None else found.value

    def to_json(self) -> dict[str, Any]:
        """The target as plain JSON data, in the form of its data file."""
        return {
            "name": self.name,
            "title": self.title,
            "aliases": list(self.aliases),
            "runtime": self.runtime,
            "compute_capability": self.compute_capability,
            "default_precision": self.default_precision,
            "precisions": list(self.precisions),
            "jetpacks": list(self.jetpacks),
            "figures": {name: _figure_json(figure) for name, figure in self.figures.items()},
            "power_modes": list(self.power_modes),
            "variants": {name: dict(change) for name, change in self.variants.items()},
            "notes": list(self.notes),
        }

    def variant(self, name: str) -> Target:
        """The target with the figures of one of its variants.

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
            title=str(change.get("title", self.title)),
            aliases=(),
            figures=MappingProxyType({**self.figures, **_figures(change.get("figures", {}))}),
            power_modes=tuple(change.get("power_modes", self.power_modes)),
            variants=MappingProxyType({}),
        )


def load_target(name: str) -> Target:
    """The target called `name`: a device, an alias, or `device:variant`.

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


@lru_cache(maxsize=1)
def _all_targets() -> tuple[Target, ...]:
    # A leading underscore marks data that is not a device.
    files = sorted(path for path in DEVICES.glob("*.json") if not path.name.startswith("_"))
    return tuple(_from_json(json.loads(path.read_text(encoding="utf-8"))) for path in files)


def list_targets() -> list[Target]:
    """Every target, by name."""
    return list(_all_targets())


def _from_json(data: Mapping[str, Any]) -> Target:
    return Target(
        name=data["name"],
        title=data["title"],
        runtime=data["runtime"],
        default_precision=data["default_precision"],
        precisions=tuple(data["precisions"]),
        compute_capability=data["compute_capability"],
        aliases=tuple(data["aliases"]),
        figures=MappingProxyType(_figures(data["figures"])),
        jetpacks=tuple(data["jetpacks"]),
        power_modes=tuple(data["power_modes"]),
        variants=MappingProxyType(dict(data["variants"])),
        notes=tuple(data["notes"]),
    )


def _figures(data: Mapping[str, Any]) -> dict[str, Figure]:
    return {name: Figure(**values) for name, values in data.items()}


def _figure_json(figure: Figure) -> dict[str, Any]:
    data: dict[str, Any] = {
        "value": figure.value,
        "unit": figure.unit,
        "source": figure.source,
        "confidence": figure.confidence,
    }
    return {**data, "note": figure.note} if figure.note else data
