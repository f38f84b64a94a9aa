"""The cost that a method adds to a model, as `plan` prints it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tcompile import pipeline
from tcompile.analysis.flops import graph_flops
from tcompile.core.schedule import Reduction, Schedule, Shape, Spec
from tcompile.passes.reduce import scores
from tcompile.passes.reduce.scores import Score, norm
from tcompile.planning.solve.plan_report import PlanWithCost
from tests.support.tiny_vit import VitSpec, save_tiny_vit

SHAPE = Shape(17, 1, 16, 3)


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    return save_tiny_vit(tmp_path / "vit.onnx", VitSpec(), batch=2)


def priced(path: Path, *steps: Reduction) -> PlanWithCost:
    return pipeline.price(path, schedule=Schedule("test", SHAPE, steps))


def test_one_row_of_the_attention(vit: Path) -> None:
    """q_cls·Kᵀ of 17 tokens and 32 channels, once; the rest of topk multiplies nothing."""
    found = priced(vit, Reduction("attn:1", Spec("cls"), Spec("topk"), 8)).cost
    assert found.added == 2 * 17 * 32
    assert found.unfused == ()
    assert found.dense == graph_flops(pipeline.read(vit).graph)
    # Of 17 tokens 9 are left for one MLP and one block.
    assert found.reduced < found.dense


def test_matching_and_merging(vit: Path) -> None:
    """Eight by eight cosines of heads of 16 channels, and five tokens that leave for eight."""
    step = Reduction("attn:0", None, Spec("merge"), 11)
    found = priced(vit, step).cost
    cosines, features, sizes = 2 * 8 * 8 * 16, 2 * 8 * 5 * 32, 2 * 8 * 5
    assert found.added == cosines + features + sizes
    assert found.nodes > 40


def test_nothing_costs_nothing(vit: Path) -> None:
    found = priced(vit).cost
    assert (found.added, found.nodes, found.reduced) == (0, 0, found.dense)


def test_a_score_that_keeps_attention_from_being_fused(
    vit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loud = Score("loud", norm.SCORE.run, norm.SCORE.parameters, False, lambda _: False)
    monkeypatch.setattr(scores, "SCORES", (*scores.SCORES, loud))
    own = {"reducer": {"name": "topk"}, "keep": 6, "score": {"name": "loud"}}
    of_a_sum = Spec("sum", {"terms": [{"score": {"name": "loud"}}, {"score": {"name": "cls"}}]})
    found = priced(
        vit,
        Reduction("attn:0", of_a_sum, Spec("topk"), 9),
        Reduction("attn:1", None, Spec("chain", {"steps": [own]}), 6),
        Reduction("attn:2", Spec("cls"), Spec("topk"), 4),
    ).cost
    assert found.unfused == ("attn:0 (score loud)", "attn:1 (score loud)")
    assert "attention not at attn:0 (score loud), attn:1 (score loud)" in found.lines()[1]
    assert np.isclose(found.to_json()["flops_added"], found.added)
