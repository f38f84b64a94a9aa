"""The sites at which a step can be planned."""

from __future__ import annotations

import pytest

from tcompile.core.errors import UsageError
from tcompile.methods.site_rule import SiteRule


@pytest.mark.parametrize("name", ["around:1", "attn", "attn:x", "inside:0", ""])
def test_what_is_no_site_of_a_plan(name: str) -> None:
    with pytest.raises(UsageError, match="not a site"):
        SiteRule(name)
