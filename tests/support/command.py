"""The command line in this process: exit code, stdout and stderr as a shell would see them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import pytest

from tcompile.cli import main, progress

#: A method's own schedule: what the planner does is tests/acceptance/cli/test_planner.py's matter.
TOPK = ("--target", "cpu", "--method", "topk")

#: What a command writes must not depend on how busy the machine is.
progress.REPEAT = 3600.0
#: A line that says what is being done, on stderr.
_STAGE = re.compile(r"\[ *\d+\.\d s\] ")


@dataclass(frozen=True)
class Outcome:
    """Result of a command.

    Attributes:
        err: stderr without the lines of progress, which are `log`.
    """

    code: int
    out: str
    err: str
    log: str = ""

    def json(self) -> Any:
        """Stdout as the one JSON document it should be."""
        return json.loads(self.out)


class Command:
    """Call with the arguments of the command line."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: object) -> Outcome:
        self.capsys.readouterr()
        code = main([str(a) for a in arguments])
        captured = self.capsys.readouterr()
        log, err = [], []
        for line in captured.err.splitlines(keepends=True):
            (log if _STAGE.match(line) else err).append(line)
        return Outcome(code, captured.out, "".join(err), "".join(log))
