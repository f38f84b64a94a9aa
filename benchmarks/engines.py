"""Engines of every precision for every GPU that TensorRT-RTX builds for: are they built, is every
attention one fused kernel?

`python -m benchmarks.engines --work DIR -o docs/benchmarks`: five kinds of vision transformer of a
few blocks, reduced by three methods to 60 % of their patches, in each precision that a GPU has.
Weights are random: nothing is said of accuracy, and in 8 bits is whatever may be, however much
rounding takes from it, so that all kernels that a trained model could need are asked for. Nothing
runs: TensorRT-RTX builds without a GPU.

What was built stays in DIR as figures: stopped, the same command goes on; `--fresh` begins again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property, partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import onnx

from benchmarks.real.fetch import default_cache, digest
from benchmarks.state import State
from tcompile import __version__
from tcompile.builder.on_images import looking_at
from tcompile.core.errors import TcompileError
from tcompile.core.progress import silent
from tcompile.core.save import save
from tcompile.models import export, load_source
from tcompile.passes.lower import lower
from tcompile.passes.stages import Analysed, Reduced
from tcompile.pipeline import read, reduce
from tcompile.planning.request import Request
from tcompile.targets import load_target
from tcompile.targets.backends import rtx
from tcompile.targets.backends.fusion import fused_attention, kernels
from tcompile.targets.devices import ON_IMAGES

KEEP = "0.6"
METHODS = ("topk", "evit", "tome")
#: What a model is lowered for, by compute capability: those between need nothing of their own.
DEVICES = {"7.5": "t4", "8.0": "rtx-3090", "8.6": "rtx-3090", "8.9": "rtx-4090"}
DEVICES |= {"12.0": "rtx-5090", "12.1": "rtx-5090"}
PRECISIONS = ("fp16", "mixed", "bf16", "int8", "fp8")


@dataclass(frozen=True)
class Model:
    """A model as `load_source` takes it, of so many blocks."""

    name: str
    source: str
    depth: int
    image: int


MODELS = (
    Model("ViT-B/16", "timm:vit_base_patch16_224", 4, 224),
    Model("DINOv2-S reg4", "timm:vit_small_patch14_reg4_dinov2", 4, 518),
    Model("SigLIP-B", "timm:vit_base_patch16_siglip_224", 4, 224),
    Model("CLIP-L/336", "timm:vit_large_patch14_clip_336", 4, 336),
    Model("EVA-02-S", "timm:eva02_small_patch14_336", 4, 336),
)


@dataclass(frozen=True)
class Cell:
    """One engine.

    Attributes:
        fault: why there is none; empty where there is.
        expected, fused: attentions that should be one kernel, and that are.
        products, attentions: in 8 bits.
        kernels: that the engine lists.
        megabytes: of the engine.
        seconds: to build it.
    """

    model: str
    method: str
    precision: str
    capability: str
    fault: str = ""
    expected: int = 0
    fused: int = 0
    products: int = 0
    attentions: int = 0
    kernels: int = 0
    megabytes: float = 0.0
    seconds: float = 0.0

    @property
    def words(self) -> str:
        """What a table says of it."""
        return f"no: {self.fault}" if self.fault else f"{self.fused}/{self.expected}"


def exported(model: Model, folder: Path) -> Path:
    """The model's file, written where it is not there."""
    path = folder / f"engines-{model.source.partition(':')[2]}-{model.depth}.onnx"
    if not path.exists():
        loaded = load_source(
            model.source,
            random_weights=True,
            image_size=model.image,
            overrides={"depth": model.depth},
        )
        export(loaded, path, exporter="dynamo", batch=1)
    return path


class Built:
    """The files of one model and method, lowered once for all capabilities that share a form."""

    def __init__(self, path: Path, method: str, folder: Path) -> None:
        self.path, self.method, self.folder = path, method, folder
        self.lowered = cache(self._lowered)

    @cached_property
    def model(self) -> Analysed:
        """The dense model."""
        return read(self.path)

    @cached_property
    def reduced(self) -> Reduced:
        """The reduced graph."""
        return reduce(self.path, method=self.method, keep=KEEP)

    def _lowered(self, name: str, precision: str) -> tuple[Path, int, int]:
        target, reduced, looking = load_target(name), self.reduced, None
        if precision in ON_IMAGES:
            request = Request(keep=KEEP, method=self.method)
            looking = looking_at(self.model, request, target, precision, reduced.metadata, silent)
            if looking.eight_bits is not None:
                looking.eight_bits.limit = math.inf
        lowered = lower(
            reduced.graph,
            target=target,
            precision=precision,  # type: ignore[arg-type]
            fp32_nodes=reduced.fp32_nodes,
            wide=None if looking is None else looking.wide,
            eight_bits=None if looking is None else looking.eight_bits,
        )
        path = self.folder / f"{name}-{precision}.onnx"
        save(lowered, path)
        eight = None if looking is None else looking.eight_bits
        return path, *((0, 0) if eight is None else (eight.products, eight.attentions))

    def cell(self, model: str, precision: str, capability: str) -> dict[str, Any]:
        """Build one engine."""
        cell = Cell(model, self.method, precision, capability)
        try:
            path, products, attentions = self.lowered(DEVICES[capability], precision)
            start = time.perf_counter()
            plan = rtx.build(path, capability)
        except TcompileError as error:
            return asdict(replace(cell, fault=error.what))
        found = fused_attention(plan, onnx.load(path, load_external_data=False))
        return asdict(
            replace(
                cell,
                expected=found.expected,
                fused=found.found,
                products=products,
                attentions=attentions,
                kernels=len(kernels(plan)),
                megabytes=len(plan) / 1e6,
                seconds=time.perf_counter() - start,
            )
        )


def capabilities(precision: str) -> list[str]:
    """Those whose devices have the precision."""
    return [c for c, name in DEVICES.items() if precision in load_target(name).precisions]


def page(found: dict[str, Any]) -> str:
    """The page of all cells."""
    cells = [Cell(**row) for row in found["cells"]]
    whole = [c for c in cells if not c.fault]
    fused = [c for c in whole if c.fused == c.expected]
    lines = [
        "# Engines",
        "",
        f"`python -m benchmarks.engines -o docs/benchmarks`: TensorRT-RTX {found['rtx']}, tcompile "
        f"{found['version']}. Models of {MODELS[0].depth} blocks with random weights, reduced to "
        f"{float(KEEP):.0%} of their patches. A cell has the attentions that are one fused kernel, "
        "of those that should be. In int8 and fp8 all products with weights are in 8 bits, and all "
        "attentions that have a kernel (int8: from SM80 on, heads of 16, 32 or 64 and at most 512 "
        "keys; the others are fused in fp16), however much rounding takes from them: a build "
        "leaves in 16 bits what 8 are too few for. No engine was run.",
        "",
        f"**{len(whole)} of {len(cells)} engines are built; in {len(fused)} of them every "
        "attention is fused.**",
        "",
    ]
    for model in dict.fromkeys(c.model for c in cells):
        lines += [f"## {model}", ""]
        heads = " | ".join(f"SM{c.replace('.', '')}" for c in DEVICES)
        lines += [f"| method | precision | 8 bits | MB | {heads} |"]
        lines += ["|" + "---|" * (4 + len(DEVICES))]
        for method in METHODS:
            for precision in PRECISIONS:
                row = {
                    c.capability: c
                    for c in cells
                    if (c.model, c.method, c.precision) == (model, method, precision)
                }
                if not row:
                    continue
                some = max(row.values(), key=attrgetter("attentions", "megabytes"))
                eight = (
                    f"{some.products} products, {some.attentions} attentions"
                    if some.products
                    else ""
                )
                size = f"{some.megabytes:.0f}" if not some.fault else ""
                words = " | ".join(row[c].words if c in row else "–" for c in DEVICES)
                lines.append(f"| {method} | {precision} | {eight} | {size} | {words} |")
        lines.append("")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Build, print; exit code 1 where an engine is missing or an attention is not fused."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__)
    parser.add_argument("--models", nargs="*", default=[m.name for m in MODELS])
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--precisions", nargs="*", default=list(PRECISIONS))
    parser.add_argument("--work", type=Path, help="where models and figures lie")
    parser.add_argument("--fresh", action="store_true", help="build again what is there")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args(arguments)
    folder = given.work or default_cache()
    folder.mkdir(parents=True, exist_ok=True)
    if given.fresh:
        (folder / "engines.state.jsonl").unlink(missing_ok=True)
    state = State(folder / "engines.state.jsonl")
    cells: list[dict[str, Any]] = []
    for model in (m for m in MODELS if m.name in given.models):
        path = exported(model, folder)
        for method in given.methods:
            with tempfile.TemporaryDirectory(prefix="tcompile-bench-") as scratch:
                built = Built(path, method, Path(scratch))
                for precision in given.precisions:
                    for capability in capabilities(precision):
                        key = {
                            "model": digest(path),
                            "method": method,
                            "precision": precision,
                            "capability": capability,
                            "rtx": rtx.version(),
                            "version": __version__,
                        }
                        make = partial(built.cell, model.name, precision, capability)
                        cells.append(state.get(key, make))
                        print(Cell(**cells[-1]), file=sys.stderr, flush=True)
    found = {"rtx": rtx.version(), "version": __version__, "cells": cells}
    print(page(found))
    if given.output is not None:
        (given.output / "engines.md").write_text(page(found) + "\n")
        (given.output / "engines.json").write_text(json.dumps(found, indent=1) + "\n")
    if any(c["fault"] or c["fused"] != c["expected"] for c in cells):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
