"""Acceptance: `build` writes a whole artifact for a CPU, a desktop GPU and a Jetson.

test_conformance.py checks what the reduced graph computes; here it is the file that is shipped,
and for GPUs that every attention is one fused kernel.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest

from tcompile import pipeline
from tests.oracles.compare import EXTRA, check, dense_errors, infer_in_batches
from tests.oracles.exports import exported, selection, subject
from tests.oracles.plans import expected, reductions
from tests.support.zoo_matrix import CASES, Case, Variant

KEEP = 0.6
METHODS = ("topk", "evit", "tome")
SCHEMA = Path(__file__).parents[2] / "tcompile" / "manifest.schema.json"

#: Of the cases with side inputs, what is built need not be all that test_conformance.py reduces.
BUILT = [c for c in CASES if not c.few or c.id in ("timm-eva02", "timm-dinov3", "timm-beit")]


def _choice() -> Iterator[tuple[Case, Variant, str]]:
    """The methods in turn, over the exports of every case."""
    for row, case in enumerate(BUILT):
        possible = [method for method in METHODS if method not in case.refused]
        for column, variant in enumerate(selection(case)):
            yield case, variant, possible[(row + column) % len(possible)]


CHOSEN = list(_choice())


def _one_each(turn: int) -> list[tuple[Case, Variant, str]]:
    """Return one export of every second case, the others with another `turn`; all with
    TCOMPILE_MATRIX set. test_conformance.py checks that every export has the right numbers."""
    if os.environ.get("TCOMPILE_MATRIX"):
        return CHOSEN
    found = []
    for row, case in enumerate(BUILT):
        if row % 2 != turn:
            continue
        mine = [choice for choice in CHOSEN if choice[0] is case]
        found.append(mine[(row + turn) % len(mine)])
    return found


def _engines() -> list[tuple[Case, Variant, str]]:
    """Return two exports of each family, attention spelled out and as an op; without
    TCOMPILE_MATRIX one of the two, by turns, and of a library's families whose blocks read the
    stream alone every second."""
    seen: dict[tuple[str, bool], tuple[Case, Variant, str]] = {}
    for case, variant, method in CHOSEN:
        if variant.exporter == "dynamo":
            seen.setdefault((case.family, variant.opset >= 23), (case, variant, method))
    if os.environ.get("TCOMPILE_MATRIX"):
        return list(seen.values())
    families = list(dict.fromkeys(family for family, _ in seen))
    both = [[seen[f, op] for op in (False, True) if (f, op) in seen] for f in families]
    met, found = Counter[str](), []
    for turn, exports in enumerate(both):
        case = exports[0][0]
        library = case.source.partition(":")[0]
        met[library] += 1
        if case.few or met[library] % 2:
            found.append(exports[turn // 2 % len(exports)])
    return found


def triples(chosen: list[tuple[Case, Variant, str]]) -> Any:
    ids = [f"{case.id}-{variant.id}-{method}" for case, variant, method in chosen]
    return pytest.mark.parametrize(("case", "variant", "method"), chosen, ids=ids)


def _build(path: Path, folder: Path, target: str, method: str) -> tuple[Path, dict[str, Any]]:
    """Build, and check what every artifact has."""
    artifact = pipeline.build(
        path, target=target, keep=KEEP, method=method, output=folder / target, force=True
    )
    manifest = json.loads((artifact / "manifest.json").read_text())
    jsonschema.validate(manifest, json.loads(SCHEMA.read_text()))
    listed = {entry["path"]: entry["bytes"] for entry in manifest["files"]}
    there = {
        str(file.relative_to(artifact).as_posix()): file.stat().st_size
        for file in artifact.rglob("*")
        if file.is_file() and file.name != "manifest.json"
    }
    assert listed == there
    onnx.checker.check_model(str(artifact / "model.onnx"), full_check=True)
    return artifact, manifest


@triples(_one_each(0))
def test_for_the_cpu_it_equals_the_oracle(
    case: Case, variant: Variant, method: str, cache: Path, tmp_path: Path
) -> None:
    path, found = exported(case, variant, cache), subject(case.id)
    artifact, manifest = _build(path, tmp_path, "cpu", method)
    assert manifest["precision"] == "fp32"
    cuts = reductions(manifest["schedule"])
    assert cuts == expected(method, found, str(KEEP))
    images = found.images(cuts, 4 if variant.batch == 4 else 2)
    errors = dense_errors(onnx.load(path), found, images)
    check(onnx.load(artifact / "model.onnx"), found, images, cuts, errors, optimized=True)
    carried = [(row["attention"], row["mlp"]) for row in manifest["tokens_per_block"]]
    assert tuple(carried) == found.run(images[:1], cuts).entering


@triples(_one_each(1))
def test_for_a_jetson_it_is_a_bundle_in_half_precision(
    case: Case, variant: Variant, method: str, cache: Path, tmp_path: Path
) -> None:
    path, found = exported(case, variant, cache), subject(case.id)
    artifact, manifest = _build(path, tmp_path, "jetson-orin", method)
    assert manifest["precision"] == "fp16"
    assert "trtexec" in "".join(
        file.read_text() for file in artifact.iterdir() if file.suffix in (".sh", ".txt", ".json")
    )
    cuts = reductions(manifest["schedule"])
    images = found.images(cuts, 4 if variant.batch == 4 else 2)
    ours = infer_in_batches(onnx.load(artifact / "model.onnx"), images)
    outputs = [value for name, value in ours.items() if name not in EXTRA]
    for value, output in zip(outputs, found.run(images, cuts).outputs, strict=True):
        truth = output.value.numpy().ravel()
        half = value.astype(np.float64).ravel()
        cosine = truth @ half / np.linalg.norm(truth) / np.linalg.norm(half)
        # Half a percent of the norm, unless float16 chose another token at a near tie.
        assert cosine > 0.98, cosine


@pytest.mark.heavy
@triples(_engines())
def test_for_a_desktop_gpu_every_attention_is_fused(
    case: Case, variant: Variant, method: str, cache: Path, tmp_path: Path
) -> None:
    artifact, manifest = _build(exported(case, variant, cache), tmp_path, "rtx-4090", method)
    assert manifest["precision"] == "fp16"
    (engine,) = artifact.glob("engine/*.engine")
    assert engine.stat().st_size > 10_000
    fused = manifest["fused_attention"]
    assert fused["missing"] == []
    assert fused["found"] == fused["expected"] >= len(manifest["tokens_per_block"])
