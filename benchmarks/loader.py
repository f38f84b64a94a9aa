"""Many images through one loaded model, by several threads: resident memory and identical results.

python -m benchmarks.loader ARTIFACT [--images 10000] [--threads 8] [--runtime onnxruntime]

Images are random pixels, prepared as the model records it where it does. Each thread has images of
its own and holds the digest of every result against what one thread got. Prints the resident memory
every tenth of the way; exits with 1 where a result differs, or where memory grows after the first
tenth by more than --slack.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import tcompile
from tcompile.deploy.load import Model

#: Images that are run again and again.
DISTINCT = 16


def resident() -> float:
    """MiB of this process in memory, on Linux."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def digest(result: Any) -> str:
    """SHA-256 of all outputs."""
    made = hashlib.sha256()
    for name in result:
        made.update(np.ascontiguousarray(result[name]).tobytes())
    return made.hexdigest()


def images_for(model: Model) -> list[Any]:
    """Pixels where the model says how they are prepared, else prepared arrays."""
    rng = np.random.default_rng(0)
    if model.preprocessing:
        return list(rng.integers(256, size=(DISTINCT, 320, 240, 3), dtype=np.uint8))
    shape = [d if isinstance(d, int) else 1 for d in model.inputs[0].shape[1:]]
    return list(rng.standard_normal((DISTINCT, *shape), np.float32))


def tenths(model: Model, images: list[Any], count: int, threads: int) -> Iterator[list[str]]:
    """The digests of each tenth of the runs, in the order of their images."""
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, count, max(count // 10, 1)):
            rows = range(first, min(first + max(count // 10, 1), count))
            yield list(pool.map(lambda i: digest(model(images[i % DISTINCT])), rows))


def main() -> int:
    """Run it; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--runtime")
    parser.add_argument("--slack", type=float, default=16.0, help="MiB")
    given = parser.parse_args()
    with tcompile.load(given.artifact, given.runtime) as model:
        images = images_for(model)
        alone = [digest(model(image)) for image in images]
        start, done, settled = time.perf_counter(), 0, 0.0
        for found in tenths(model, images, given.images, given.threads):
            different = sum(d != alone[(done + i) % DISTINCT] for i, d in enumerate(found))
            if different:
                print(f"{different} results are not those of one thread")
                return 1
            done += len(found)
            settled = settled or resident()
            print(f"{done:>7} images  {resident():8.1f} MiB  {time.perf_counter() - start:7.1f} s")
        grown = resident() - settled
    print(f"{given.threads} threads, all results those of one thread; memory grew {grown:.1f} MiB")
    return int(grown > given.slack)


if __name__ == "__main__":
    sys.exit(main())
