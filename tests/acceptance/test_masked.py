"""A second reference, which shares nothing with the first: the dense file with the dropped tokens
masked out (tests/oracles/masked.py), for every family of the matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tcompile import pipeline
from tests.acceptance.test_mutants import REFUSED
from tests.oracles import mutants
from tests.oracles.compare import MismatchError, infer
from tests.oracles.dense_file import feed_for
from tests.oracles.exports import exported, selection
from tests.oracles.masked import check_masked
from tests.support.judge import layout
from tests.support.onnx_models import to_onnx
from tests.support.zoo_matrix import BY_ID, CASES, Case, Variant

pytestmark = pytest.mark.usefixtures("read_once")

#: The Q-Former's queries attend to each other, where masks of tokens say nothing.
APART = ("hf-blip2-qformer",)
TOPK = [case for case in CASES if "topk" not in case.refused and case.id not in APART]


def two_cuts(path: Path) -> dict[str, Any]:
    """A schedule that drops tokens twice: at the first legal site, and in a later block."""
    document = pipeline.plan(path, keep=0.6, method="topk").to_json()
    patches, score = document["model"]["patches"], document["reductions"][0]["score"]
    legal = [site for site in pipeline.read(path).analysis.sites if site.legal]
    later = [site for site in legal if site.block > legal[0].block] or legal[1:]
    whole = legal[0].granularity
    many, few = (whole * (n // whole) for n in (patches - patches // 4, patches // 2))
    steps = ((legal[0].name, many), (later[0].name, few))
    document["reductions"] = [
        {"site": site, "score": score, "reducer": {"name": "topk"}, "keep": keep}
        for site, keep in steps
    ]
    return document


class Bench:
    """A file, what tcompile made of it, and what it takes to compare the two."""

    def __init__(
        self, path: Path, outputs: str = "reduced", *, method: str = "topk", twice: bool = False
    ) -> None:
        request: dict[str, Any] = {"keep": 0.6, "method": method}
        if twice:
            request = {"schedule": two_cuts(path)}
        made = pipeline.reduce(path, outputs=outputs, **request)
        self.source, self.outputs = onnx.load(path), outputs
        self.model, self.dense = to_onnx(made.graph), to_onnx(made.dense)
        self.tokens = layout(path)
        self.schedule = made.schedule.to_json()

    def compare(self, model: onnx.ModelProto) -> None:
        """Raises one of `REFUSED` when the model is not right."""
        onnx.checker.check_model(model, full_check=True)
        feed = feed_for(self.source)
        check_masked(self.source, model, self.schedule, feed, self.outputs, self.tokens)

    def catches(self, model: onnx.ModelProto) -> bool:
        try:
            self.compare(model)
        except REFUSED:
            return True
        return False


def quick(case_id: str) -> Variant:
    """An export that costs little."""
    return Variant("torchscript", BY_ID[case_id].attentions[0], 17, "dynamic")


#: One case after the other: its file is read once for both tests.
every_case = pytest.mark.parametrize("case", TOPK, ids=lambda case: case.id, scope="module")


@every_case
def test_dropping_is_masking(case: Case, cache: Path) -> None:
    variant = selection(case)[-1]
    bench = Bench(exported(case, variant, cache), twice=True)
    bench.compare(bench.model)


@every_case
def test_keep_one_changes_no_bit(case: Case, cache: Path) -> None:
    path = exported(case, selection(case)[-1], cache)
    made = pipeline.reduce(path, keep=1.0, method="topk")
    source = onnx.load(path)
    feed = feed_for(source)
    kept, normal, given = (
        infer(m, feed) for m in (to_onnx(made.graph), to_onnx(made.dense), source)
    )
    assert kept.keys() == normal.keys() == given.keys()
    for name, value in given.items():
        assert np.array_equal(kept[name], normal[name])
        np.testing.assert_allclose(kept[name], value, rtol=0, atol=3e-6 * np.abs(value).max())


@pytest.mark.parametrize("case_id", ["timm-vit", "timm-siglip", "timm-beit", "timm-eva02"])
def test_bypassing_is_masking_and_keeping(case_id: str, cache: Path) -> None:
    case = BY_ID[case_id]
    bench = Bench(exported(case, selection(case)[0], cache), method="bypass")
    bench.compare(bench.model)


@pytest.mark.parametrize("case_id", ["hf-vit", "hf-dinov2-registers", "open-clip-tokens"])
def test_restored_outputs_repeat_kept_rows(case_id: str, cache: Path) -> None:
    bench = Bench(exported(BY_ID[case_id], quick(case_id), cache), "restored")
    bench.compare(bench.model)


MUTANTS = (
    mutants.unsorted,
    mutants.worst_kept,
    mutants.wrong_prefix,
    mutants.rows_off_by_one,
    mutants.logits_not_softmax,
    mutants.largest_head,
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_mutant_is_caught(mutant: mutants.Mutant, cache: Path) -> None:
    bench = Bench(exported(BY_ID["timm-vit"], quick("timm-vit"), cache))
    bench.compare(bench.model)
    copy = onnx.ModelProto()
    copy.CopyFrom(bench.model)
    del copy.graph.value_info[:]
    mutant(copy)
    assert bench.catches(copy)


@pytest.mark.parametrize("case_id", ["timm-siglip-n-is-d", "hf-vit", "open-clip-tokens"])
def test_every_missed_fix_is_caught(case_id: str, cache: Path) -> None:
    bench = Bench(exported(BY_ID[case_id], quick(case_id), cache))
    missed = list(mutants.missed_fixes(bench.model, bench.dense))
    assert len(missed) > 3
    assert [what for what, model in missed if not bench.catches(model)] == []


def test_an_index_off_by_one_is_caught(cache: Path) -> None:
    bench = Bench(exported(BY_ID["hf-vit"], quick("hf-vit"), cache))
    mutants.index_off_by_one(bench.model)
    with pytest.raises(MismatchError, match="token_index"):
        bench.compare(bench.model)
