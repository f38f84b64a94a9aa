"""The command line in this process: exit code, stdout and stderr as a shell would see them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from tcompile.cli import common, main

#: A method's own schedule: what the planner does is tests/acceptance/cli/test_planner.py's matter.
TOPK = ("--target", "cpu", "--method", "topk")


#: What a command writes must not depend on how busy the machine is.
common.LOOK = 3600.0


@dataclass(frozen=True)
class Outcome:
    """Result of a command."""

    code: int
    out: str
    err: str

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
        return Outcome(code, captured.out, captured.err)
