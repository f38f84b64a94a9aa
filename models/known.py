"""Exports known to fail, with every workaround tried. A test notices when one starts to work."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class KnownFailure:
    """A model that no workaround helps.

    Attributes:
        source: regular expression over the SOURCE string.
        exporter: the one that fails; empty for all of them.
        error: part of its message.
        hint: why, and what works.
        example: a SOURCE of this kind, with its image size and overrides to make it small.
    """

    source: str
    exporter: str
    error: str
    hint: str
    example: str
    image_size: int
    overrides: Mapping[str, Any] = field(default_factory=dict)


KNOWN: tuple[KnownFailure, ...] = (
    KnownFailure(
        r"hf:ViTMAE\w+",
        "",
        "differs by",
        "it leaves out patches at random, other ones at every call: hf:vit is the same encoder"
        " with all of them",
        "hf:ViTMAEModel",
        32,
        {"depth": 1, "embed_dim": 32, "num_heads": 2, "patch_size": 8},
    ),
)


def known_hint(source: str, exporter: str) -> str:
    """Return what to do about a failed export."""
    for failure in KNOWN:
        if failure.exporter in ("", exporter) and re.match(failure.source, source):
            return f"known to fail: {failure.hint}"
    return "try another exporter, opset or attention"
