"""The roofline with this machine's CPU: modelled against measured latency of plain ViTs.

Models are written without PyTorch, weights are random; each is built anew at every token count.
With one thread CPU time is measured, which other work on the machine hardly spoils; with more, wall
time, and then the machine should do nothing else.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from tcompile.core.machine import usable_cores
from tcompile.core.save import save
from tcompile.models.onnx_vit import VitSpec, build_vit, random_weights
from tcompile.passes.stages import Analysed
from tcompile.pipeline import read
from tcompile.profiling.roofline import Device, cpu_device, modelled
from tcompile.runtime.timing import machine_name
from tcompile.targets.backends.ort import OrtRunner

SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12), "large": (1024, 16)}
IMAGES = (64, 96, 128, 160, 192, 224, 288, 384)


@dataclass(frozen=True)
class Row:
    """One model: milliseconds for one batch. `measured` is the lower decile of the rounds."""

    model: str
    tokens: int
    batch: int
    modelled: float
    measured: float
    median: float

    @property
    def error(self) -> float:
        """Modelled over measured, less one."""
        return self.modelled / self.measured - 1


def rows(
    size: str, images: list[int], device: Device, *, depth: int, batch: int, rounds: int
) -> Iterator[Row]:
    """Model and measure one size at several image sizes."""
    width, heads = SIZES[size]
    spec = VitSpec(width=width, heads=heads, depth=depth, patch=16, mlp_ratio=4, classes=1000)
    weights = random_weights(spec)
    for image in images:
        at = replace(spec, image=image)
        table = np.zeros((1, at.tokens, width), np.float32)
        with tempfile.TemporaryDirectory(prefix="tcompile-bench-") as folder:
            path = Path(folder) / "model.onnx"
            model = build_vit(at, {**weights, "pos_embed": table}, batch=batch)
            onnx.save(model, path)
            found = read(path)
            expected = modelled(found.graph, device, precision="fp32", batch=batch).ms
            times = measure(found, path, device.cores, rounds)
        low, median = np.percentile(times, [10, 50])
        yield Row(size, at.tokens, batch, expected, float(low), float(median))


def measure(model: Analysed, path: Path, threads: int, rounds: int) -> list[float]:
    """Milliseconds of some runs of the normalised model, after two that are not counted."""
    save(model.graph, path)
    runner = OrtRunner(path, threads=threads)
    rng = np.random.default_rng(0)
    feed = {
        i.name: rng.standard_normal([int(d) for d in i.shape]).astype(np.float32)
        for i in runner.inputs
    }
    clock = time.thread_time if threads == 1 else time.perf_counter
    times = []
    for _ in range(rounds + 2):
        start = clock()
        runner.run(feed)
        times.append((clock() - start) * 1e3)
    return times[2:]


def main() -> None:
    """Run, print, optionally as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["small", "base"], choices=SIZES)
    parser.add_argument("--images", nargs="+", type=int, default=list(IMAGES))
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()

    device = cpu_device(given.threads)
    found = []
    for size in given.models:
        for row in rows(
            size, given.images, device, depth=given.depth, batch=given.batch, rounds=given.rounds
        ):
            found.append(row)
            if not given.json:
                print(
                    f"{row.model:6} {row.tokens:4} tokens  modelled {row.modelled:8.2f} ms  "
                    f"measured {row.measured:8.2f} (median {row.median:8.2f})  "
                    f"{row.error:+6.1%}",
                    flush=True,
                )
    errors = sorted(abs(row.error) for row in found)
    median, worst = float(np.median(errors)), errors[-1]
    if given.json:
        data = {
            "device": asdict(device),
            "rows": [asdict(r) for r in found],
            "median": median,
            "worst": worst,
            "machine": machine_name(),
        }
        print(json.dumps(data, indent=2))
        return
    what = "CPU time" if given.threads == 1 else "wall time"
    print(f"{machine_name()}; {given.threads} thread(s), {what}, lower decile of {given.rounds}")
    print(
        f"  {device.matrix * device.cores:.0f} GFLOP/s, {device.cache / 1e9:.0f} GB/s in cache, "
        f"{device.memory / 1e9:.0f} GB/s beyond, {device.launch * 1e6:.2f} us a node"
    )
    print(f"  error: median {median:.1%}, worst {worst:.1%}, over {len(errors)} models")


if __name__ == "__main__":
    main()
