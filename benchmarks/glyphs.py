"""`zoo:glyphs`: how much accuracy a few methods give up for how many tokens.

All of them, with their latency: `python -m benchmarks.methods`.

Dense and reduced models run in ONNX Runtime on the same held-out scenes. Top-1 is of the sum of the
digits; patch accuracy is of the restored per-patch labels, on patches that hold a digit.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from tcompile.api.demo import write_glyphs
from tcompile.core.save import save
from tcompile.models.glyphs.evaluate import Scores, evaluate
from tcompile.pipeline import reduce
from tcompile.targets.backends.ort import OrtRunner

METHODS = ("topk", "evit", "tome")
KEEPS = ("0.9", "0.8", "0.7", "0.6", "0.5", "0.4", "0.3")


def score(model: Path, scenes: int) -> Scores:
    """Accuracy of an ONNX file."""
    runner = OrtRunner(model)
    return evaluate(lambda images: runner.run({"image": images}), n=scenes, batch_size=50)


def main() -> None:
    """Run the methods at every keep; print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=2000)
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--keeps", nargs="*", default=list(KEEPS))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()

    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="tcompile-bench-") as folder:
        source, model = Path(folder) / "glyphs.onnx", Path(folder) / "reduced.onnx"
        write_glyphs(source)
        dense = score(source, given.scenes)
        for method in given.methods:
            for keep in given.keeps:
                made = reduce(source, keep=keep, method=method, outputs="restored")
                save(made.graph, model)
                found = score(model, given.scenes)
                rows.setdefault(method, {})[keep] = [found.top1, found.ink_accuracy]
    if given.json:
        print(json.dumps({"dense": [dense.top1, dense.ink_accuracy], "methods": rows}, indent=2))
        return
    print(f"top-1 on {given.scenes} held-out scenes (patches with ink, restored, in brackets)\n")
    print("| method | dense | " + " | ".join(given.keeps) + " |")
    print("|---|---|" + "---|" * len(given.keeps))
    for method, found in rows.items():
        cells = [f"{top1:.1%} ({ink:.1%})" for top1, ink in found.values()]
        first = f"{dense.top1:.1%} ({dense.ink_accuracy:.1%})"
        print(f"| {method} | {first} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
