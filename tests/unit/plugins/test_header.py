"""The C form of the specifications."""

from __future__ import annotations

from tcompile.plugins.header import PATH, header


def test_the_header_is_that_of_the_specifications() -> None:
    assert PATH.read_text() == header(), "run: python -m tcompile.plugins.header --write"
