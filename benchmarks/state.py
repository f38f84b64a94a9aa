"""What was measured, by all that it depends on: stopped, a benchmark goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tcompile.core.cache import digest_of


class State:
    """A file of JSON lines, one a result, each written as soon as it is there.

    Args:
        path: the file; made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, Any] = {}
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:  # Stopped while it was written.
                continue
            self.known[entry["key"]] = entry["value"]
        if lines:  # The end of a line that is broken off must not be the start of the next.
            self._add("\n")

    def has(self, key: Mapping[str, Any]) -> bool:
        """Return whether there is a result."""
        return digest_of(key) in self.known

    def get(self, key: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """The result of a key, made if it is not there; JSON values."""
        digest = digest_of(key)
        if digest not in self.known:
            self.known[digest] = made = json.loads(json.dumps(make()))
            self._add(json.dumps({"key": digest, "value": made}) + "\n")
        return self.known[digest]

    def _add(self, text: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)
