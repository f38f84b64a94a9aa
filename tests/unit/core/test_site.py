"""Names of sites, as values."""

from __future__ import annotations

import copy
import json
import pickle

import pytest

from tcompile.core.schedule import Reduction, Spec
from tcompile.core.site import SiteName


@pytest.mark.parametrize(
    ("text", "kind", "block", "returns", "depth"),
    [
        ("attn:3", "attn", 3, False, (3, 0)),
        ("block:3", "block", 3, False, (3, 1)),
        ("around:0", "around", 0, True, (0, 0)),
        ("inside:11", "inside", 11, True, (11, 0)),
        ("output", "output", None, False, (11, 2)),
    ],
)
def test_parts(
    text: str, kind: str, block: int | None, returns: bool, depth: tuple[int, int]
) -> None:
    site = SiteName(text)
    assert (site.kind, site.block, site.returns, site.depth(12)) == (kind, block, returns, depth)
    assert SiteName.of(kind, block) == site == text


def test_it_is_its_own_text() -> None:
    site = SiteName.of("attn", 3)
    assert json.dumps({site: site}) == '{"attn:3": "attn:3"}'
    assert {site: 1}["attn:3"] == 1
    for same in (copy.deepcopy(site), pickle.loads(pickle.dumps(site))):
        assert isinstance(same, SiteName)
        assert same == site


def test_a_schedule_takes_what_people_write() -> None:
    assert Reduction("inside:2", None, Spec("merge"), 4).site.returns


def test_text_that_is_not_a_site_is_of_no_kind() -> None:
    assert SiteName("nowhere").kind == "nowhere"
    with pytest.raises(ValueError, match="invalid literal"):
        _ = SiteName("attn:first").block
