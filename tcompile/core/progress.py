"""Progress: lines that tell a person what a long job is doing."""

from __future__ import annotations

from collections.abc import Callable

#: Is given one line at a time: the name of a stage, or `STAGE: how far it is`, the latter a number
#: or a share. Logs have a line for each stage.
Progress = Callable[[str], None]


def silent(_: str) -> None:
    """Show no progress."""
