"""Memory of this machine that a model takes, measured: that of a new process that runs it alone.

As a script it is that process: `python -m tcompile.runtime.resident`, what to run as JSON on stdin.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tcompile.core.drafts import scratch
from tcompile.core.errors import TcompileError
from tcompile.targets.backends.cpu import OnCpu

_STATUS = Path("/proc/self/status")
#: Runs of the model: from the second on ONNX Runtime lays its memory out by a pattern.
_RUNS = 3


@dataclass(frozen=True)
class Resident:
    """Resident memory of a process that opens a model and runs it, in bytes.

    Attributes:
        peak: most there was, while it was opened as well.
        running: of what is there once it ran, what was not before it was opened.
    """

    peak: int
    running: int


def measure_resident(path: Path, how: OnCpu, *, threads: int, batch: int = 1) -> Resident | None:
    """Run a model in a process of its own; None where the system does not tell (other than Linux),
    or the process failed.

    Args:
        how: it is run.
        batch: that a free one is run with.
    """
    from tcompile.runtime.samples import feed, samples_for
    from tcompile.runtime.signature import signature

    if not _STATUS.is_file():
        return None
    model = signature(path)
    arrays = samples_for(model.whole, count=model.batch or batch).arrays
    fed = feed(model.inputs, model.host.fed(arrays) if model.host else arrays)
    with scratch() as folder:
        named: dict[str, Any] = {f"_{name}": array for name, array in fed.items()}
        np.savez(folder / "feed.npz", **named)
        asked = {
            "path": str(path.resolve()),
            "feed": str(folder / "feed.npz"),
            "runtime": how.runtime,
            "precision": how.precision,
            "threads": threads,
        }
        done = subprocess.run(
            [sys.executable, "-m", "tcompile.runtime.resident"],
            input=json.dumps(asked),
            capture_output=True,
            encoding="utf-8",
            check=False,
            cwd=folder,  # `-m` looks there for modules first, and a person's folder may hold any
        )
    if done.returncode:
        return None
    return Resident(**json.loads(done.stdout))


def _bytes(field: str) -> int:
    """A field of this process's status, such as VmHWM, which Linux gives in KiB."""
    lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _run() -> None:
    asked = json.load(sys.stdin)
    with np.load(asked["feed"]) as stored:
        feed = {name[1:]: stored[name] for name in stored.files}
    how = OnCpu(asked["runtime"], asked["precision"])
    how.words  # noqa: B018 — imports the runtime
    before = _bytes("VmRSS")
    try:
        model = how.open(asked["path"], asked["threads"])
        for _ in range(_RUNS):
            model.run(feed)
    except TcompileError as error:
        sys.exit(error.one_line())
    print(json.dumps({"peak": _bytes("VmHWM"), "running": _bytes("VmRSS") - before}))


if __name__ == "__main__":
    _run()
