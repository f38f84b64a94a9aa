"""Processes that judge cases, each case with a time limit; one that dies is replaced."""

from __future__ import annotations

import multiprocessing as mp
import os
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path

from tests.fuzz.cases import Result

#: Bytes that a worker may take beyond its imports: the models take less than one MiB each.
MEMORY = 1 << 30


def _serve(link: Connection, folder: Path, scratch: Path) -> None:
    """Judge seeds as they come, until there are none."""
    import warnings

    import torch

    from tests.fuzz.cases import tried

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    _bound_memory()
    while (seed := link.recv()) is not None:
        link.send(tried(seed, folder, scratch))


def _bound_memory() -> None:
    """Let this process take `MEMORY` beyond what it has; more is a crash."""
    import resource

    status = Path("/proc/self/status").read_text()
    held = next(int(x.split()[1]) << 10 for x in status.splitlines() if x.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (held + MEMORY, held + MEMORY))


class _Worker:
    def __init__(self, folder: Path, scratch: Path) -> None:
        context = mp.get_context("spawn")
        self.link, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, folder, scratch), daemon=True)
        self.process.start()
        theirs.close()
        self.seed, self.until = -1, 0.0

    def start(self, seed: int, limit: float) -> None:
        self.seed, self.until = seed, time.monotonic() + limit
        self.link.send(seed)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.link.close()


def run(
    seeds: Sequence[int],
    folder: Path,
    scratch: Path,
    *,
    count: int,
    limit: float,
    done: Callable[[Result], None],
) -> None:
    """Judge these seeds, handing over each result as it comes.

    Args:
        folder: where the sound models are, or are written.
        count: of processes, one thread each.
        limit: seconds for a case; more make it `slow`.
    """
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    left = list(reversed(seeds))
    busy: list[_Worker] = []
    try:
        while left or busy:
            while left and len(busy) < count:
                busy.append(_Worker(folder, scratch))
                # The first case of a process waits for its imports.
                busy[-1].start(left.pop(), limit + 60)
            ready = wait([w.link for w in busy], timeout=0.5)
            for worker in list(busy):
                result = _received(worker, worker.link in ready)
                if result is None:
                    continue
                done(result)
                if result.outcome == "slow" or not worker.process.is_alive():
                    worker.stop()
                    busy.remove(worker)
                elif left:
                    worker.start(left.pop(), limit)
                else:
                    worker.link.send(None)
                    worker.process.join(10)
                    worker.stop()
                    busy.remove(worker)
    finally:
        for worker in busy:
            worker.stop()


def _received(worker: _Worker, ready: bool) -> Result | None:
    """Return what came of a worker's case, if anything did."""
    if ready:
        try:
            result = worker.link.recv()
        except EOFError:
            worker.process.join(10)
            code = worker.process.exitcode
            return Result(worker.seed, "crashed", f"the process ended with {code}", "", "", ())
        assert isinstance(result, Result)
        return result
    if time.monotonic() > worker.until:
        return Result(worker.seed, "slow", "more than the time for a case", "", "", ())
    return None
