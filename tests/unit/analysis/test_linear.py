"""The analysis looks at each tensor a fixed number of times, however many blocks there are."""

from __future__ import annotations

import sys
from collections import Counter
from types import CodeType, FrameType
from typing import Any

import pytest

from tcompile.analysis.model import analyse
from tcompile.passes.normalize import normalize
from tests.support.tiny_vit import VitSpec, build_vit, random_weights


def _visits(blocks: int) -> tuple[int, int]:
    """Calls of functions of the analysis, each of which looks at a tensor or two; and sites."""
    spec = VitSpec(image=8, patch=4, width=4, heads=1, depth=blocks, classes=2, mlp_ratio=1)
    graph = normalize(build_vit(spec, random_weights(spec))).graph
    visits = Counter[CodeType]()

    def count(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            visits[frame.f_code] += 1

    sys.setprofile(count)
    try:
        found = analyse(graph)
    finally:
        sys.setprofile(None)
    mine = (n for code, n in visits.items() if "analysis" in code.co_filename)
    return sum(mine), len(found.sites)


def test_visits_grow_as_the_number_of_blocks() -> None:
    (few, sites), (some, _), (many, all_sites) = (_visits(blocks) for blocks in (25, 50, 100))
    assert (sites, all_sites) == (25 * 4 + 1, 100 * 4 + 1)
    # Twice as many more blocks, twice as many more visits.
    assert many - some == pytest.approx(2 * (some - few), rel=0.002)
