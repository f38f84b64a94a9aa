"""How a model's own code has its positions for another image size, as `export` records it."""

from __future__ import annotations

from collections.abc import Mapping

from tcompile.core.decode import parse_json

POSITIONS_KEY = "tcompile.positions"


def read_positions(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the rules that `export` recorded, by `table`, `relative` and `rotary`; those that are
    not there are not known."""
    try:
        found = parse_json(metadata.get(POSITIONS_KEY, "{}"))
    except ValueError:
        return {}
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}
