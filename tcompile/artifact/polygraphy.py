"""polygraphy.sh of an artifact: checks by NVIDIA's polygraphy, as lines that a person can read.

The script, report.md and `tcompile verify --print-polygraphy` show the same lines.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

SCRIPT = "polygraphy.sh"
#: Beside the model: the loader, the inputs, and what the model gave for them at build; a Jetson's
#: bundle has what check.sh needs there too.
CHECKS = "checks"
LOADER, INPUTS, OUTPUTS = (
    f"{CHECKS}/{n}" for n in ("polygraphy_data.py", "scenes.npz", "out.json")
)
#: The polygraphy whose options the lines use. 0.50 has all but --graph-optimization-level.
VERSIONS = "0.53"
#: Before the lines: a loader must leave no __pycache__ in the artifact, whose files are checked.
SETUP = ("export PYTHONDONTWRITEBYTECODE=1", "out=$(mktemp -d)")
#: Of several engines of a Jetson's bundle, the newest that the installed TensorRT runs, which
#: check.py says: before lines with `$engine`.
FIND_ENGINE = f"engine=$(python3 {CHECKS}/check.py --which)"
#: Of a bundle without check.py, an older one.
FIND_NEWEST = "engine=$(ls -t engine/*.engine | head -n 1)"

#: In the script in place of `FIND_ENGINE`: says which it takes. Where none fits, check.py says why.
_CHOOSE = f"""\
        engine=$("${{PYTHON:-python3}}" {CHECKS}/check.py --which)
        echo "$engine"
"""


@dataclass(frozen=True)
class Part:
    """Lines that answer one question.

    Attributes:
        name: onnxruntime, engine, both or dense; an argument of the script.
        about: what is compared, and what must be known of it; sentences, a line each.
        commands: for a shell in the artifact, after `SETUP`; that of `dense` has the dense model in
            `$dense`.
    """

    name: str
    about: tuple[str, ...]
    commands: tuple[str, ...]

    @property
    def lines(self) -> tuple[str, ...]:
        """What to type, with comments."""
        return (*(f"# {line}" for line in self.about), *self.commands)


def setup(parts: Sequence[Part], find: str = FIND_ENGINE) -> tuple[str, ...]:
    """What comes before the lines, once.

    Args:
        find: the line that sets `$engine`, where lines have it.
    """
    found = any('"$engine"' in line for part in parts for line in part.commands)
    return (*SETUP, find) if found else SETUP


def script_text(parts: Sequence[Part], head: Sequence[str]) -> str:
    """The script.

    Args:
        head: what the artifact is, and what the lines need; comments.
    """
    bodies = "\n".join(
        f"{part.name}() {{\n" + "".join(f"    {line}\n" for line in part.lines) + "}\n"
        for part in parts
    )
    names = [part.name for part in parts]
    usage = " | ".join("dense DENSE.onnx" if name == "dense" else name for name in names)
    found = _CHOOSE if FIND_ENGINE in setup(parts) else ""
    return f"""\
#!/bin/sh
# sh {SCRIPT} {usage}
#
{"".join(f"# {line}" + chr(10) for line in head)}set -eu
dense=${{2:-}}
case "$dense" in '' | /*) ;; *) dense=$PWD/$dense ;; esac
cd "$(dirname "$0")"
{chr(10).join(SETUP)}
trap 'rm -rf "$out"' EXIT
trap 'exit 130' INT TERM HUP

{bodies}
if ! command -v polygraphy > /dev/null; then
    echo "no polygraphy: python3 -m pip install 'polygraphy>={VERSIONS}'" >&2
    exit 2
fi
case "${{1:-}}" in
{" | ".join(names)})
    if [ "$1" = dense ] && ! [ -f "$dense" ]; then
        echo "no dense model at '$dense': sh {SCRIPT} dense DENSE.onnx" >&2
        exit 2
    fi
    if [ "$1" = engine ] || [ "$1" = both ]; then
        set -- "$1" engine/*.engine
        if ! [ -f "$2" ]; then
            echo "there is no engine in engine/: build it first" >&2
            exit 2
        fi
{found}    fi
    "$1"
    ;;
*)
    echo "usage: sh {SCRIPT} {usage}" >&2
    exit 2
    ;;
esac
"""


def read_parts(script: str) -> tuple[Part, ...]:
    """The parts of a script that `script_text` made."""
    found = []
    for name, body in re.findall(r"(?ms)^(\w+)\(\) \{\n(.*?)^\}$", script):
        lines = [line.strip() for line in body.splitlines()]
        about = tuple(line[2:] for line in lines if line.startswith("# "))
        commands = tuple(line for line in lines if not line.startswith("# "))
        found.append(Part(name, about, commands))
    return tuple(found)


def page(parts: Sequence[Part]) -> str:
    """The lines as a section of report.md."""
    lines = "\n".join(line for part in parts for line in ("", *part.lines))
    before = "\n".join(setup(parts))
    return (
        f"\n## Checks by polygraphy\n\nIn this folder, with polygraphy {VERSIONS} and, for `dense`,"
        f" the model that was compiled; `sh {SCRIPT}` runs the same.\n\n```sh\n{before}\n"
        f"dense=DENSE.onnx\n{lines}\n```\n"
    )
