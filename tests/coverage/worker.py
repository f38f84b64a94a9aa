"""Measures the rows it is told on stdin, one JSON file a row: a process of its own, which may die.

`python -m tests.coverage.worker RESULTS EXPORTS`, ids on stdin, one a line.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

from tests.coverage.measure import measure
from tests.coverage.rows import wanted


def main(results: Path, exports: Path, ids: list[str]) -> None:
    """Write RESULTS/ID.json for each id; a file appears whole or not at all."""
    import torch

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    asks = {ask.id: ask for full in (True, False) for ask in wanted(full=full)}
    for name in ids:
        row = measure(asks[name], exports)
        mine = results / f"{name}.{os.getpid()}.tmp"
        mine.write_text(json.dumps(asdict(row)))
        mine.replace(results / f"{name}.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.stdin.read().split())
