"""`tcompile verify --print-polygraphy`: the lines that check an artifact by polygraphy."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tcompile.api.reference import find_dense
from tcompile.artifact.directory import load_artifact
from tcompile.artifact.polygraphy import (
    FIND_ENGINE,
    FIND_NEWEST,
    SCRIPT,
    VERSIONS,
    Part,
    read_parts,
)
from tcompile.artifact.polygraphy import setup as setup_of
from tcompile.core.errors import UsageError
from tcompile.core.files import read_text
from tcompile.deploy.checks import check_file
from tcompile.examples import FOLDER
from tcompile.verify.polygraphy import facts_of, parts_for, without_rows


@dataclass(frozen=True)
class PolygraphyLines:
    """What to type, from any folder.

    Attributes:
        setup: what comes first, once.
        parts: what is compared, and the lines.
        versions: of polygraphy whose options they use.
    """

    setup: tuple[str, ...]
    parts: tuple[Part, ...]
    versions: str = VERSIONS

    @property
    def lines(self) -> tuple[str, ...]:
        """All of it."""
        return (*self.setup, *(line for part in self.parts for line in ("", *part.lines)))

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def polygraphy_lines(artifact: str | Path, against: str | Path | None = None) -> PolygraphyLines:
    """The lines of an artifact's polygraphy.sh; of an older artifact, lines from its manifest,
    which load their inputs with this tcompile.

    Args:
        against: the dense model; by default the source, where the manifest says it lies.

    Raises:
        UsageError: no artifact there, or nothing of it can be compared.
        ModelError: its manifest is damaged, or its script was altered.
    """
    found = load_artifact(artifact)
    folder = found.directory.absolute()
    setup: list[str] = []
    find = FIND_ENGINE
    if any(entry.path == SCRIPT for entry in found.manifest.files):
        check_file(found, SCRIPT)
        parts = read_parts(read_text(folder / SCRIPT))
    else:
        find = FIND_NEWEST
        setup.append(f"export ARTIFACT={shlex.quote(str(folder))}")
        loader = str(FOLDER / "polygraphy" / "polygraphy_data.py")
        facts = without_rows(facts_of(found.manifest, loader), found.manifest)
        setup += ["export RUNS=1"] if facts.half else []
        parts = parts_for(facts)
    if not parts:
        raise UsageError(
            "holds nothing that polygraphy could compare",
            where=str(artifact),
            hint="build it again: its own inputs and outputs are stored then",
        )
    setup = [f"cd {shlex.quote(str(folder))}", *setup_of(parts, find), *setup]
    dense = find_dense(found, against)
    if any(part.name == "dense" for part in parts):
        name = found.manifest.source.file if dense is None else str(dense.path.absolute())
        where = "  # give it: it is not where it was compiled" if dense is None else ""
        setup.append(f"dense={shlex.quote(name)}{where}")
    return PolygraphyLines(tuple(setup), parts)
