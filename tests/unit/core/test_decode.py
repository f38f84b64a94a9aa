"""Data classes as JSON values, and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tcompile.core.decode import decode, encode
from tcompile.core.site import SiteName


@dataclass(frozen=True)
class Step:
    site: SiteName
    milliseconds: float
    counts: dict[str, int]


def test_subclasses_of_plain_types_are_written_as_those() -> None:
    made = encode(Step(SiteName("attn:1"), np.float64(0.5), {SiteName("block:2"): 3}))
    assert made == {"site": "attn:1", "milliseconds": 0.5, "counts": {"block:2": 3}}
    assert {type(made["site"]), *map(type, made["counts"])} == {str}
    assert type(made["milliseconds"]) is float


def test_what_is_read_is_what_was_written() -> None:
    @dataclass(frozen=True)
    class Plain:
        site: str
        kept: tuple[int, ...]

    assert decode(Plain, encode(Plain("attn:1", (3, 4)))) == Plain("attn:1", (3, 4))
