"""Acceptance: what tcompile makes of an exported model is what the methods say.

Each case of tests/support/zoo_matrix.py, exported in several ways, is reduced to 0.6 of
its patch tokens by each method and held against PyTorch code that removes tokens inside the model
(tests/oracles).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from tcompile import pipeline
from tcompile.core.errors import UsageError
from tcompile.models import export, load_source
from tests.oracles.compare import (
    EXTRA,
    POOL,
    Subject,
    check,
    check_structure,
    dense_errors,
    infer,
    infer_in_batches,
)
from tests.oracles.exports import (
    biased,
    exported,
    glyphs,
    masked,
    odd,
    once,
    selection,
    stirred,
    subject,
)
from tests.oracles.methods import Reduction, run
from tests.oracles.plans import document, expected, reductions
from tests.oracles.processed import PROCESSORS, Processor
from tests.oracles.small_models import ODD
from tests.support.onnx_models import to_onnx
from tests.support.zoo_matrix import BY_ID, CASES, Case, Variant

pytestmark = pytest.mark.usefixtures("read_once")

KEEP = "0.6"
METHODS = ("topk", "evit", "tome")
CHOSEN = [(case, variant) for case in CASES for variant in selection(case)]
#: With TCOMPILE_MATRIX every export meets every method; else the first of each case does, and the
#: others meet one each, which moves on from export to export.
FIRST = {case.id: selection(case)[0] for case in CASES}


def pairs(chosen: Iterable[tuple[Case, Variant]]) -> Any:
    """Parametrise over cases and variants, with readable ids."""
    items = list(chosen)
    ids = [f"{case.id}-{variant.id}" for case, variant in items]
    return pytest.mark.parametrize(("case", "variant"), items, ids=ids)


def some(*ids: str, batch: int | str = "dynamic") -> list[tuple[Case, Variant]]:
    """Quick exports of a few cases, for what does not depend on the exporter."""
    spelled = {case_id: BY_ID[case_id].attentions[0] for case_id in ids}
    return [(BY_ID[i], Variant("torchscript", spelled[i], 17, batch)) for i in ids]


def holds(
    path: Path, found: Subject, count: int, request: dict[str, Any], outputs: str = "reduced"
) -> list[Reduction]:
    """Reduce the file as requested and compare it with the oracle; the reductions it chose."""
    reduced = pipeline.reduce(path, target="cpu", outputs=outputs, **request)
    cuts = reductions(reduced.schedule.to_json())
    model, dense = to_onnx(reduced.graph), onnx.load(path)
    check_structure(model)
    rule = reduced.schedule.restore or "owner"
    images = found.images(cuts, count, owners=outputs == "restored", rule=rule)
    check(model, found, images, cuts, dense_errors(dense, found, images), outputs, rule)
    return cuts


@pytest.mark.parametrize("case", [c for c in CASES if not c.few], ids=lambda case: case.id)
def test_the_oracle_is_the_model(case: Case) -> None:
    found = subject(case.id)
    assert (found.encoder.prefix, found.patches) == (case.prefix, case.patches)
    assert len(found.chosen) == len(stirred(case.id).output_names)


@pairs(CHOSEN)
def test_every_case_by_every_method(case: Case, variant: Variant, cache: Path) -> None:
    path, found = exported(case, variant, cache), subject(case.id)
    assert (found.encoder.prefix, found.patches) == (case.prefix, case.patches)
    count = {1: 2, 4: 4}.get(variant.batch, 3)  # type: ignore[call-overload]
    failures = []
    turn = CHOSEN.index((case, variant)) % len(METHODS)
    every = variant == FIRST[case.id] or "TCOMPILE_MATRIX" in os.environ
    for method in METHODS if every else METHODS[turn : turn + 1]:
        request = {"keep": float(KEEP), "method": method}
        try:
            if method in case.refused:
                with pytest.raises(UsageError, match=case.refused[method]):
                    pipeline.reduce(path, target="cpu", **request)
                continue
            assert holds(path, found, count, request) == expected(method, found, KEEP)
        except Exception as error:  # so that the report has every method, not the first that fails
            failures.append(f"{method}: {type(error).__name__}: {error}")
    assert not failures, "\n".join(failures)


PROCESSED = [
    *some("timm-vit", "hf-vit", "timm-siglip", "open-clip", batch=1),
    *(
        next((BY_ID[i], v) for v in selection(BY_ID[i]) if v.exporter == "dynamo")
        for i in ("hf-vit-classify", "torchvision-vit", "timm-dinov2", "timm-eva02")
    ),
]


@pytest.mark.parametrize("process", PROCESSORS, ids=lambda process: process.__name__)
@pairs(PROCESSED)
def test_models_processed_by_others(
    case: Case, variant: Variant, process: Processor, cache: Path, tmp_path: Path
) -> None:
    processed, found = tmp_path / "processed.onnx", subject(case.id)
    process(exported(case, variant, cache), processed)
    turn = PROCESSED.index((case, variant)) + PROCESSORS.index(process)
    method = METHODS[turn % len(METHODS)]
    holds(processed, found, 4, {"keep": float(KEEP), "method": method})


SITES = ("topk:block=1", "topk:block=0,site=block", "topk:block=2,site=block", "topk:site=output")


@pytest.mark.parametrize("method", ["tome", "tome:prop_attn=false"])
@pairs(some("timm-vit", "timm-vit-gap", "timm-siglip"))
def test_proportional_attention_can_be_switched_off(
    case: Case, variant: Variant, method: str, cache: Path
) -> None:
    path, found = exported(case, variant, cache), subject(case.id)
    cuts = holds(path, found, 2, {"keep": float(KEEP), "method": method})
    assert all(cut.proportional == (method == "tome") for cut in cuts)


@pytest.mark.parametrize("method", SITES)
@pairs(some("timm-vit", "hf-dinov3", "hf-beit", "hf-siglip-vision", "open-clip-tokens"))
def test_every_site(case: Case, variant: Variant, method: str, cache: Path) -> None:
    path, found = exported(case, variant, cache), subject(case.id)
    holds(path, found, 2, {"keep": float(KEEP), "method": method})


@pytest.mark.parametrize("method", METHODS)
@pairs(some("hf-vit", "hf-dinov2-registers", "hf-dinov3", "hf-llava", "open-clip-tokens"))
def test_restored_outputs(case: Case, variant: Variant, method: str, cache: Path) -> None:
    path, found = exported(case, variant, cache), subject(case.id)
    holds(path, found, 3, {"keep": float(KEEP), "method": method}, outputs="restored")


RULES = [
    ("hf-vit", "evit", "similar"),
    ("hf-vit", "topk", "stale"),
    ("hf-dinov2-registers", "evit", "stale"),
    ("hf-dinov2-registers", "tome", "stale"),
    ("hf-dinov3", "topk", "interpolate"),
    ("hf-llava", "evit", "interpolate"),
    ("open-clip-tokens", "topk", "similar"),
]


@pytest.mark.parametrize(("case", "method", "rule"), RULES)
def test_tokens_given_back_by_a_rule(case: str, method: str, rule: str, cache: Path) -> None:
    path, found = exported(*some(case)[0], cache), subject(case)
    holds(path, found, 3, {"keep": float(KEEP), "method": method, "restore": rule}, "restored")


MIXED = {
    "attn": (("attn:0", "tome", 9), ("attn:1", "topk", 14), ("attn:2", "fuse", 20)),
    "block": (("block:0", "fuse", 9), ("attn:1", "tome", 14), ("block:2", "topk", 20)),
    "output": (("block:0", "tome", 9), ("block:1", "fuse", 14), ("output", "tome", 20)),
}


@pytest.mark.parametrize("plan", MIXED)
@pairs(some("hf-vit", "timm-vit-gap", "timm-deit-distilled", "hf-siglip-vision", "hf-dinov3"))
def test_schedules_written_by_hand(
    case: Case, variant: Variant, plan: str, cache: Path, tmp_path: Path
) -> None:
    """Methods mixed: sizes must be gathered and fused, indices and owners composed."""
    path, found = exported(case, variant, cache), subject(case.id)
    cuts = [
        Reduction(site, kind, found.patches - away, "cls" if kind == "tome" else found.score)
        for site, kind, away in MIXED[plan]
    ]
    file = tmp_path / "schedule.json"
    file.write_text(json.dumps(document(cuts, found)))
    assert holds(path, found, 3, {"schedule": file}) == cuts


@pytest.mark.parametrize("method", METHODS)
@pairs(
    some("timm-vit", "hf-vit", "timm-vit-gap", "open-clip-tokens", "hf-siglip-vision", "hf-beit")
)
def test_keep_one_is_the_dense_graph(
    case: Case, variant: Variant, method: str, cache: Path
) -> None:
    path, found = exported(case, variant, cache), subject(case.id)
    reduced = pipeline.reduce(path, target="cpu", keep=1.0, method=method)
    images = found.pool[:2]
    ours = infer_in_batches(to_onnx(reduced.graph), images)
    dense = infer_in_batches(to_onnx(reduced.dense), images)
    assert ours.keys() == dense.keys()
    assert all(np.array_equal(ours[name], dense[name]) for name in dense)


@pytest.mark.parametrize("method", METHODS)
@pairs(some("hf-vit", "timm-vit-gap", "open-clip-tokens"))
def test_rows_do_not_depend_on_the_batch(
    case: Case, variant: Variant, method: str, cache: Path
) -> None:
    path, found = exported(case, variant, cache), subject(case.id)
    model = to_onnx(pipeline.reduce(path, target="cpu", keep=0.5, method=method).graph)
    images = found.images(expected(method, found, "0.5"), 3)
    together = infer_in_batches(model, images)
    for row in range(3):
        alone = infer_in_batches(model, images[row : row + 1])
        for name, value in alone.items():
            if name in EXTRA:
                assert np.array_equal(value[0], together[name][row])
            else:  # a matrix product sums in another order at another size
                scale = float(np.abs(value).max())
                np.testing.assert_allclose(together[name][row], value[0], atol=3e-6 * scale)


TABLES = [("dynamo", 20, 1), ("dynamo", 23, "dynamic"), ("torchscript", 17, "dynamic")]


@pytest.mark.parametrize("outputs", ["reduced", "restored"])
@pytest.mark.parametrize(("exporter", "opset", "batch"), TABLES)
def test_a_table_for_pairs_of_tokens_is_gathered(
    exporter: str, opset: int, batch: int | str, outputs: str, cache: Path
) -> None:
    loaded, found = biased()

    def write(path: Path) -> None:
        export(loaded, path, exporter=exporter, opset=opset, batch=batch)

    path = once(cache / f"biased-{exporter}-{opset}-{batch}.onnx", write)
    request = {"keep": float(KEEP), "method": "topk:block=1"}
    holds(path, found, 2, request, outputs)


@pytest.mark.parametrize(("exporter", "opset", "batch"), TABLES)
@pytest.mark.parametrize("dark", [False, True], ids=["constant", "from-the-image"])
def test_a_mask_is_gathered(
    dark: bool, exporter: str, opset: int, batch: int | str, tmp_path: Path
) -> None:
    loaded, found = masked(dark)
    path = tmp_path / "masked.onnx"
    export(loaded, path, exporter=exporter, opset=opset, batch=batch)
    for method in ("topk", "tome"):
        request = {"keep": float(KEEP), "method": method}
        assert holds(path, found, 2, request) == expected(method, found, KEEP)
    with pytest.raises(UsageError, match="fused token"):
        pipeline.reduce(path, target="cpu", keep=float(KEEP), method="evit")


@pytest.mark.parametrize(("exporter", "opset", "batch"), TABLES)
def test_a_mask_that_is_an_input_is_gathered(
    exporter: str, opset: int, batch: int | str, tmp_path: Path
) -> None:
    loaded, found = masked(dark=False)
    generator = torch.Generator().manual_seed(1)
    seen = torch.rand(POOL, found.patches, generator=generator) < 0.9
    both = replace(loaded, example_inputs={**loaded.example_inputs, "seen": seen[:1]})
    path = tmp_path / "masked.onnx"
    export(both, path, exporter=exporter, opset=opset, batch=batch)
    images = found.pool[:2]

    def mask(image: torch.Tensor) -> torch.Tensor:
        hidden = ~loaded.module.mask(image, seen[: len(image)])
        return torch.zeros(hidden.shape).double().masked_fill(hidden, -torch.inf)

    encoder = replace(found.encoder, mask=mask)
    for method in ("topk", "tome"):
        reduced = pipeline.reduce(path, target="cpu", keep=float(KEEP), method=method)
        cuts = reductions(reduced.schedule.to_json())
        assert cuts == expected(method, found, KEEP)
        model = to_onnx(reduced.graph)
        check_structure(model)
        truth = run(encoder, images.double(), cuts)
        for rows in ([0], [1]) if batch == 1 else ([0, 1],):
            ours = infer(model, {"image": images[rows].numpy(), "seen": seen[rows].numpy()})
            assert np.array_equal(ours["token_index"], truth.index[rows].numpy())
            for name, output in zip(("logits", "tokens"), truth.outputs, strict=True):
                np.testing.assert_allclose(ours[name], output.value[rows].numpy(), atol=2e-5)
    with pytest.raises(UsageError, match="fused token"):
        pipeline.reduce(path, target="cpu", keep=float(KEEP), method="evit")


@pytest.mark.parametrize("name", ODD)
def test_encoders_that_no_library_has(name: str, tmp_path: Path) -> None:
    exporter, opset = (("dynamo", 20), ("torchscript", 17))[list(ODD).index(name) % 2]
    loaded, found = odd(name)
    path = tmp_path / "odd.onnx"
    export(loaded, path, exporter=exporter, opset=opset, batch="dynamic")
    for method in METHODS:
        request = {"keep": float(KEEP), "method": method}
        if method == "evit" and name.startswith("positions"):
            with pytest.raises(UsageError, match="fused token"):
                pipeline.reduce(path, target="cpu", **request)
        else:
            assert holds(path, found, 2, request) == expected(method, found, KEEP)


@pytest.mark.parametrize("outputs", ["reduced", "restored"])
@pytest.mark.parametrize("method", METHODS)
def test_glyphs(method: str, outputs: str, cache: Path) -> None:
    """Logits from CLS, and logits of every patch: a token axis without the prefix."""
    loaded, found = glyphs()

    def write(path: Path) -> None:
        export(loaded, path, exporter="torchscript", batch="dynamic")

    path = once(cache / "glyphs.onnx", write)
    holds(path, found, 2, {"keep": float(KEEP), "method": method}, outputs)


# ---- counts (METHODS, "Test oracles (counts)") ---------------------------------------------------


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ViT with 197 tokens and 12 blocks, narrow."""
    over = {"depth": 12, "embed_dim": 24, "num_heads": 2, "num_classes": 3}
    loaded = load_source("timm:vit_tiny_patch16_224", random_weights=True, overrides=over)
    path = tmp_path_factory.mktemp("deep") / "vit.onnx"
    export(loaded, path, exporter="torchscript")
    return path


@pytest.mark.parametrize(
    ("method", "counts"),
    [
        ("evit:rate=0.7", {3: (197, 140), 6: (140, 100), 9: (100, 72), 11: (72, 72)}),
        ("tome:r=13", {0: (197, 184), 1: (184, 171), 11: (54, 41)}),
        ("tome:r=16", {0: (197, 181), 10: (37, 21), 11: (21, 11)}),
    ],
)
def test_published_counts(deep: Path, method: str, counts: dict[int, tuple[int, int]]) -> None:
    """In the schedule, and in the graph: the reduced file must really carry so many tokens."""
    reduced = pipeline.reduce(deep, target="cpu", method=method)
    rows = reduced.schedule.to_json()["tokens_per_block"]
    found = {row["block"]: (row["attention"], row["mlp"]) for row in rows}
    assert {block: found[block] for block in counts} == counts
    model = to_onnx(reduced.graph)
    check_structure(model)
    shapes = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    widths = {
        tuple(d.dim_value for d in info.type.tensor_type.shape.dim)
        for info in shapes.graph.value_info
    }
    for attention, mlp in found.values():
        assert (1, attention, 3 * 24) in widths  # q, k and v
        assert (1, mlp, 4 * 24) in widths  # inside the MLP
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)
    (logits,) = infer(model, {model.graph.input[0].name: image}).values()
    assert np.isfinite(logits).all()
