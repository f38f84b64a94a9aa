"""ViT-B/16 at 224 on `cpu`: dense against reduced, and what a build costs.

Needs the extras `cpu` and `export`; weights are random, which changes no latency.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

METHOD = "topk:block=3,site=block"


def export(path: Path, model: str) -> None:
    """Write the dense model in a process of its own."""
    command = [sys.executable, "-m", "tcompile", "export", f"timm:{model}", "--random-weights"]
    subprocess.run([*command, "-o", str(path)], check=True, stdout=subprocess.DEVNULL)


def timed_build(model: Path, artifact: Path, method: str, keep: str) -> tuple[float, float]:
    """Seconds and peak MB of `tcompile build`, as a whole process."""
    command = [sys.executable, "-m", "tcompile", "build", str(model), "--target", "cpu"]
    command += ["--keep", keep, "--method", method, "--force", "-o", str(artifact)]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"build failed with status {status}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def main() -> None:
    """Run, print, optionally as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--keep", default="0.6")
    parser.add_argument("--method", default=METHOD)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()

    from tcompile.api.bench import bench

    with tempfile.TemporaryDirectory(prefix="tcompile-bench-") as folder:
        model, artifact = Path(folder) / "model.onnx", Path(folder) / "artifact"
        export(model, given.model)
        size = model.stat().st_size / 2**20
        seconds, peak = timed_build(model, artifact, given.method, given.keep)
        found = bench(artifact, rounds=given.rounds, threads=given.threads)
    if given.json:
        cost = {"build_seconds": seconds, "build_peak_mb": peak, "model_mb": size}
        print(json.dumps({**found.to_json(), **cost}, indent=2))
        return
    s, ideal = found.speedup, found.flop_ideal or 1.0
    print(f"{given.model}, keep {given.keep}, {given.method}; batch {found.batch}")
    print(f"{found.machine}; {found.runtime}, {found.threads} threads; {found.rounds} rounds")
    for name, timing in (("dense", found.dense), ("reduced", found.reduced)):
        print(f"  {name:8} {timing.median:7.1f} ms [{timing.lower:.1f}, {timing.upper:.1f}]")
    print(
        f"  speed-up {s.ratio:.3f} [{s.lower:.3f}, {s.upper:.3f}], FLOP-ideal {ideal:.3f}: "
        f"{s.ratio / ideal:.1%} of it"
    )
    print(f"  build    {seconds:.1f} s, peak {peak:.0f} MB for a model of {size:.0f} MB")
    print(f"  (this process: peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MB)")


if __name__ == "__main__":
    main()
