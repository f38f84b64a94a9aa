"""The comparison of tests/acceptance/test_conformance.py must be able to fail.

Each mutant is a mistake that a pass could make. The graph without it passes; with it the same
comparison must not: the file is refused by the checker or ONNX Runtime, or its numbers are off.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as ort

from tcompile import pipeline
from tcompile.models import export
from tests.oracles import mutants, mutants_side
from tests.oracles.compare import MismatchError, Subject, check, check_structure, dense_errors
from tests.oracles.exports import biased, exported, masked, subject
from tests.oracles.plans import reductions
from tests.support.onnx_models import to_onnx
from tests.support.zoo_matrix import BY_ID, Variant

REFUSED = (
    MismatchError,
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    ort.Fail,
    ort.InvalidArgument,
    ort.InvalidGraph,
    ort.RuntimeException,
)


class Bench:
    """A reduced model and what it takes to compare it."""

    def __init__(
        self,
        path: Path,
        found: Subject,
        method: str,
        outputs: str = "reduced",
        restore: str | None = None,
    ) -> None:
        reduced = pipeline.reduce(
            path, target="cpu", keep=0.6, method=method, outputs=outputs, restore=restore
        )
        self.rule = reduced.schedule.restore or "owner"
        self.model, self.dense = to_onnx(reduced.graph), to_onnx(reduced.dense)
        self.found = found
        self.cuts = reductions(reduced.schedule.to_json())
        self.outputs = outputs
        self.images = found.images(self.cuts, 2, owners=outputs == "restored", rule=self.rule)
        self.errors = dense_errors(onnx.load(path), found, self.images)

    def compare(self, model: onnx.ModelProto) -> None:
        """Raises one of `REFUSED` when the model is not right."""
        check_structure(model)
        check(model, self.found, self.images, self.cuts, self.errors, self.outputs, self.rule)

    def accepts(self, model: onnx.ModelProto) -> bool:
        """Return whether `compare` finds nothing wrong."""
        try:
            self.compare(model)
        except REFUSED:
            return False
        return True

    def mutated(self, mutant: mutants.Mutant) -> onnx.ModelProto:
        copy = onnx.ModelProto()
        copy.CopyFrom(self.model)
        del copy.graph.value_info[:]
        mutant(copy)
        return copy


def bench_of(
    cache: Path, case: str, method: str, outputs: str = "reduced", restore: str | None = None
) -> Bench:
    variant = Variant("torchscript", BY_ID[case].attentions[0], 17, "dynamic")
    return Bench(exported(BY_ID[case], variant, cache), subject(case), method, outputs, restore)


SEEN = [
    ("hf-vit", "topk", mutants.unsorted),
    ("timm-vit", "topk", mutants.worst_kept),
    ("timm-vit", "topk", mutants.wrong_prefix),
    ("timm-deit-distilled", "evit", mutants.wrong_prefix),
    ("timm-vit", "topk", mutants.rows_off_by_one),
    ("timm-vit", "topk", mutants.logits_not_softmax),
    ("timm-vit", "topk", mutants.largest_head),
    ("hf-siglip-vision", "topk", mutants.largest_head),
    ("timm-vit", "tome", mutants.largest_key),
    ("timm-vit", "evit", mutants.fused_renormalised),
    ("timm-vit", "evit", mutants.fused_forgotten),
    ("timm-vit", "evit", mutants.fused_everything),
    ("timm-vit", "tome", mutants.plain_mean),
    ("timm-vit", "tome", mutants.other_half_merged),
    ("timm-vit", "tome", mutants.no_proportional_attention),
    ("timm-vit", "tome", mutants.last_attention_not_proportional),
    ("timm-siglip", "tome", mutants.last_attention_not_proportional),
    ("timm-vit-gap", "tome", mutants.plain_pooling),
    ("hf-dinov2-classify", "tome", mutants.plain_pooling),
    ("hf-vit", "topk", mutants.index_off_by_one),
    ("hf-vit", "tome", mutants.owner_off_by_one),
]


@pytest.mark.parametrize(
    ("case", "method", "mutant"), SEEN, ids=[f"{c}-{m}-{f.__name__}" for c, m, f in SEEN]
)
def test_a_mutant_is_caught(case: str, method: str, mutant: mutants.Mutant, cache: Path) -> None:
    bench = bench_of(cache, case, method)
    bench.compare(bench.model)
    assert not bench.accepts(bench.mutated(mutant))


@pytest.mark.parametrize("mutant", [mutants.farthest_owner, mutants.worst_kept])
def test_a_mutant_of_restored_outputs_is_caught(mutant: mutants.Mutant, cache: Path) -> None:
    bench = bench_of(cache, "hf-vit", "topk", "restored")
    bench.compare(bench.model)
    assert not bench.accepts(bench.mutated(mutant))


@pytest.mark.parametrize("mutant", [mutants.blurred, mutants.nothing_changed, mutants.not_itself])
def test_a_mutant_of_a_rule_is_caught(mutant: mutants.Mutant, cache: Path) -> None:
    bench = bench_of(cache, "hf-vit", "evit", "restored", "stale")
    bench.compare(bench.model)
    assert not bench.accepts(bench.mutated(mutant))


@pytest.mark.parametrize("opset", [20, 23])
def test_a_table_that_was_not_gathered_is_caught(opset: int, tmp_path: Path) -> None:
    loaded, found = biased()
    path = tmp_path / "biased.onnx"
    export(loaded, path, exporter="dynamo", opset=opset, batch=2)
    bench = Bench(path, found, "topk")
    bench.compare(bench.model)
    assert not bench.accepts(bench.mutated(mutants.table_not_gathered))


@pytest.mark.parametrize("method", ["topk", "tome"])
@pytest.mark.parametrize("case", ["timm-vit", "timm-siglip-n-is-d", "hf-vit", "open-clip-tokens"])
def test_every_missed_fix_is_caught(case: str, method: str, cache: Path) -> None:
    """Each shape, bound or length that reducing had to change, left as it was."""
    bench = bench_of(cache, case, method)
    bench.compare(bench.model)
    missed = list(mutants.missed_fixes(bench.model, bench.dense))
    assert len(missed) > 3
    survivors = [what for what, model in missed if bench.accepts(model)]
    assert not survivors


BESIDE = [
    ("timm-eva02", "topk", mutants_side.rows_not_reindexed),
    ("timm-dinov3", "topk", mutants_side.one_block_not_reindexed),
    ("timm-dinov3", "tome", mutants_side.rows_not_reindexed),
    ("timm-dinov3", "topk", mutants_side.prefix_off_by_one),
    ("timm-eva02", "tome", mutants_side.prefix_off_by_one),
    ("timm-dinov3", "evit", mutants_side.fused_turned),
    ("timm-dinov3", "evit", mutants_side.rows_not_reindexed),
    ("timm-beit", "topk", mutants_side.rows_not_reindexed),
    ("timm-beit", "topk", mutants_side.first_axis_not_gathered),
    ("timm-beit", "tome", mutants_side.second_axis_not_gathered),
    ("hf-internvl-projector", "topk", mutants_side.members_out_of_order),
    ("hf-internvl-projector", "topk", mutants_side.groups_along_the_rows),
    ("hf-internvl-projector", "topk", mutants_side.best_member_decides),
    ("hf-internvl-projector", "topk", mutants.unsorted),
    ("hf-internvl-projector", "topk", mutants.index_off_by_one),
]


@pytest.mark.parametrize(
    ("case", "method", "mutant"), BESIDE, ids=[f"{c}-{m}-{f.__name__}" for c, m, f in BESIDE]
)
def test_a_mutant_of_side_inputs_or_groups_is_caught(
    case: str, method: str, mutant: mutants.Mutant, cache: Path
) -> None:
    variant = Variant("torchscript", "eager", 17, "dynamic")
    bench = Bench(exported(BY_ID[case], variant, cache), subject(case), method)
    bench.compare(bench.model)
    assert not bench.accepts(bench.mutated(mutant))


@pytest.mark.parametrize("opset", [20, 23])
def test_a_mutant_of_a_mask_is_caught(opset: int, tmp_path: Path) -> None:
    loaded, found = masked(dark=False)
    path = tmp_path / "masked.onnx"
    export(loaded, path, exporter="dynamo", opset=opset, batch=2)
    bench = Bench(path, found, "topk")
    bench.compare(bench.model)
    for mutant in (
        mutants_side.rows_not_reindexed,
        mutants_side.first_axis_not_gathered,
        mutants_side.second_axis_not_gathered,
    ):
        assert not bench.accepts(bench.mutated(mutant)), mutant.__name__
