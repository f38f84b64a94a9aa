"""The model made of a tower with inputs of its own kind, whatever its family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Ready:
    """The parts that a family makes of its tower: see the fields of `LoadedModel`."""

    module: torch.nn.Module
    inputs: Mapping[str, torch.Tensor]
    outputs: tuple[str, ...]
    preprocessing: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    fixed_batch: str = ""


def integers(name: str, value: Any, count: int) -> tuple[int, ...]:
    """An option of several numbers, as `1,2,3` or a list.

    Raises:
        ValueError: it is not `count` integers.
    """
    parts = value.split(",") if isinstance(value, str) else value
    try:
        numbers = tuple(int(part) for part in parts)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != count:
        raise ValueError(f"{name} takes {count} whole numbers, as {name}={'1,' * (count - 1)}1")
    return numbers
