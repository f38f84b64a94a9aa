"""Progress: lines that tell a person what a long job is doing."""

from __future__ import annotations

from collections.abc import Callable

#: Is given one line at a time.
Progress = Callable[[str], None]


def silent(_: str) -> None:
    """Show no progress."""
