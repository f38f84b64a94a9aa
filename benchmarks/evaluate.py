"""Many images through `tcompile evaluate`: does memory stay flat?

python -m benchmarks.evaluate --work DIR [--images 20000]

Builds `zoo:glyphs`, writes labelled images of its kind (PNG, class subfolders) into DIR, evaluates
the artifact on all of them, and prints the memory of the process every tenth of the way. Exits with
1 where it grows after the first tenth by more than --slack MiB.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from benchmarks.loader import resident
from tcompile import pipeline
from tcompile.api.evaluate import evaluate
from tcompile.models import export
from tcompile.models.glyphs.data import batch

#: Images of one seed are drawn so many at a time.
_DRAWN = 250


def write_images(folder: Path, count: int) -> None:
    """Write scenes and their classes; those that are there already stay."""
    from PIL import Image

    for start in range(0, count, _DRAWN):
        if (folder / f"{start + _DRAWN}.done").exists():
            continue
        images, labels, _ = batch(seed=1, start=start, count=_DRAWN)
        for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True), start):
            place = folder / "images" / f"{label:02d}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{i:06d}.png")
        (folder / f"{start + _DRAWN}.done").touch()


def main() -> int:
    """Run the benchmark and return an exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--slack", type=float, default=32.0, help="MiB")
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    write_images(work, arguments.images)
    model = work / "glyphs.onnx"
    if not model.exists():
        export("zoo:glyphs", model, batch="dynamic")
    if not (work / "out").exists():
        pipeline.build(
            model, target="cpu", method="topk", keep=0.5, force=True, output=work / "out"
        )
    seen: list[tuple[int, float]] = []

    def look(text: str) -> None:
        done = re.search(r"([\d,]+) of [\d,]+ images", text)
        count = int(done[1].replace(",", "")) if done else 0
        if count >= (len(seen) + 1) * arguments.images // 10:
            seen.append((count, resident()))
            print(f"{text}; {seen[-1][1]:.0f} MiB", flush=True)

    found = evaluate(work / "out", work / "images", progress=look)
    after = resident()
    growth = max(mib for _, mib in seen) - seen[0][1]
    top1, same = found.measure("top1"), found.measure("agreement")
    print(
        f"{found.images:,} images: top-1 {top1.dense:.4f} dense, {top1.reduced:.4f} reduced "
        f"[{top1.low:+.4f}, {top1.high:+.4f}], agreement {same.reduced:.4f}; memory grew by "
        f"{growth:.1f} MiB after the first tenth, {after:.0f} MiB with intervals"
    )
    return int(growth > arguments.slack)


if __name__ == "__main__":
    sys.exit(main())
