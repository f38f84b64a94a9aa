"""polygraphy as a shell finds it, and its own parser in this process."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

#: The console script of the package, of this Python.
_COMMAND = """\
#!/bin/sh
exec {python} -c 'import sys; from polygraphy.tools import main; sys.exit(main())' "$@"
"""


def shell(text: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run lines as they are printed, in a shell that has polygraphy on its path."""
    command = folder / "bin" / "polygraphy"
    command.parent.mkdir(exist_ok=True)
    command.write_text(_COMMAND.format(python=shlex.quote(sys.executable)))
    command.chmod(0o755)
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["sh", "-e", "-c", text],
        capture_output=True,
        encoding="utf-8",
        cwd=folder,
        env={**os.environ, "PATH": path, **environment},
        check=False,
    )


def parsed(line: str) -> argparse.Namespace:
    """A line as polygraphy's own parser takes it; it exits at an option that it does not know."""
    from polygraphy.tools.run import Run

    words = shlex.split(line)
    words = words[words.index("polygraphy") :]
    assert words[:2] == ["polygraphy", "run"]
    parser = argparse.ArgumentParser()
    tool = Run()
    tool.setup_parser(parser.add_subparsers())
    found = parser.parse_args(words[1:])
    tool.parse(found)
    return found


def run_here(line: str) -> int:
    """A line in this process and folder, variables of the environment filled in: its exit code."""
    from polygraphy.tools import main

    words = shlex.split(os.path.expandvars(line))
    assert words[:2] == ["polygraphy", "run"]
    return int(main(run_opts=words[1:]))
