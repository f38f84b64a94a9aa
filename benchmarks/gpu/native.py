"""Kernels that TensorRT-RTX engines gain by one step of each method, with native token ops.

python -m benchmarks.gpu.native            all of it, as a table
python -m benchmarks.gpu.native --write    into native_kernels.json, for docs and tests

No GPU is needed: engines are built for every compute capability on any machine, and a plan lists
its kernels. What is counted is kernels of an engine with one reduction less those of the dense one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import onnx

from tcompile import pipeline
from tcompile.core.errors import TcompileError, UsageError
from tcompile.core.save import save
from tcompile.core.schedule import Schedule
from tcompile.methods.presets import PRESETS
from tcompile.models.onnx_vit import VitSpec, build_vit, random_weights
from tcompile.passes.lower import lower
from tcompile.passes.stages import Analysed
from tcompile.planning.method_schedule import schedule_for
from tcompile.targets import load_target
from tcompile.targets.backends import rtx
from tcompile.targets.backends.fusion import kernels
from tools.token_ops import NATIVE

#: What TensorRT-RTX 1.7 builds for.
CAPABILITIES = ("75", "80", "86", "89", "120", "121")
#: 14 × 14 patches and a CLS, as a ViT has at 224; heads that are fused.
SPEC = VitSpec(image=112, patch=8, width=128, heads=2, depth=3)
KEEPS = ("0.7", "0.5", "0.25", "0.9")
ABOUT = (
    f"Kernels of an engine in which tokens leave once, less those of the dense engine: a ViT of "
    f"{SPEC.tokens} tokens, width {SPEC.width}, {SPEC.depth} blocks, fp16, batch 1. The first step "
    "of each method at --keep 0.7, or near it; methods that need a trained head, calibration or "
    "frames are left out, as they are made of the same scores and reducers."
)
#: Targets whose lowering is that of a capability; the others' is that of the first.
TARGETS = {"": "rtx-4090", "75": "t4"}


@dataclass(frozen=True)
class Row:
    """Kernels and bytes that one step of a method adds.

    Attributes:
        step: the site, score and reducer.
        added: kernels by compute capability.
    """

    method: str
    step: str
    added: dict[str, int]


@lru_cache(maxsize=1)
def model() -> Analysed:
    """The dense model."""
    path = Path(mkdtemp()) / "vit.onnx"
    onnx.save(build_vit(SPEC, random_weights(SPEC), batch=1), str(path))
    return pipeline.read(path)


def methods() -> tuple[str, ...]:
    """The presets that can be asked for with nothing but a budget."""
    needs = {"head", "calibration", "frames"}
    return tuple(p.name for p in PRESETS if not needs & {*p.needs} and p.family != "head")


def first_step(method: str) -> Schedule:
    """The first reduction of a method's schedule, alone.

    Raises:
        TcompileError: none of the budgets is in its reach.
    """
    problem: TcompileError | None = None
    for keep in KEEPS:
        try:
            made = schedule_for(model(), keep, method)
            if not made.reductions:
                continue
            step = replace(made, reductions=made.reductions[:1])
            pipeline.apply_schedule(model(), step, "reduced")
            return step
        except TcompileError as error:
            problem = problem or error
    raise problem or UsageError(f"{method} reduces nothing at any of {', '.join(KEEPS)}")


def count(schedule: Schedule | None, capabilities: Sequence[str]) -> dict[str, int]:
    """Kernels of the engine of a schedule, of the dense model for None, by compute capability."""
    chosen = schedule or replace(first_step("topk"), reductions=())
    reduced = pipeline.apply_schedule(model(), chosen, "reduced")
    found = {}
    for capability in capabilities:
        target = load_target(TARGETS.get(capability, TARGETS[""]))
        graph = lower(reduced.graph, target=target, precision="fp16", fp32_nodes=reduced.fp32_nodes)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            save(graph, path)
            plan = rtx.build(path, f"{capability[:-1]}.{capability[-1]}")
            found[capability] = len(kernels(plan))
    return found


@lru_cache(maxsize=8)
def dense(capabilities: tuple[str, ...]) -> dict[str, int]:
    """Kernels of the dense engine."""
    return count(None, capabilities)


def rows(names: Sequence[str], capabilities: tuple[str, ...] = CAPABILITIES) -> Iterator[Row]:
    """Return what each method adds."""
    for name in names:
        schedule = first_step(name)
        (step,) = schedule.reductions
        found = count(schedule, capabilities)
        added = {c: found[c] - dense(capabilities)[c] for c in capabilities}
        score = step.score.name if step.score else "no score"
        yield Row(name, f"{step.site} {score} → {step.reducer.name}", added)


def document(found: Sequence[Row]) -> dict[str, Any]:
    """The JSON that docs and tests read. The bound is the most that was counted."""
    return {
        "about": ABOUT,
        "runtime": f"TensorRT-RTX {rtx.version()}",
        "capabilities": list(CAPABILITIES),
        "dense": dense(CAPABILITIES),
        "rows": [
            {"method": r.method, "step": r.step, "added": r.added, "bound": max(r.added.values())}
            for r in found
        ],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """See the top."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"into {NATIVE.name}")
    parser.add_argument("--methods", nargs="+", default=methods())
    given = parser.parse_args(arguments)
    found = []
    for row in rows(given.methods):
        print(f"{row.method:12} {row.step:40} {row.added}", file=sys.stderr, flush=True)
        found.append(row)
    text = json.dumps(document(found), indent=1, ensure_ascii=False) + "\n"
    if given.write:
        NATIVE.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
