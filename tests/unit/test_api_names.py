"""The names of the public API."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

import tcompile


@pytest.mark.parametrize("name", tcompile.__all__)
def test_a_name_of_the_api_is_not_hidden_by_a_module(name: str) -> None:
    """Once imported, a module `tcompile.NAME` would take the place of the function."""
    assert find_spec(f"tcompile.{name}") is None
    assert getattr(tcompile, name) is not None
