"""Others' measurements: what is read, what is refused, and how it is spread over parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcompile.core.errors import UsageError
from tcompile.passes.stages import Analysed
from tcompile.planning.optimise.prior import prior_loss
from tcompile.planning.options.method_tables import counts_for, tables_for
from tcompile.profiling.curve import Curve, Figure, StepCost
from tcompile.profiling.imported import (
    imported_profile,
    read_csv,
    read_steps,
    read_trtexec,
    whole_curve,
)
from tcompile.profiling.structure import layout_of
from tests.support.profiling import CONDITIONS, method, sided, tiny, trtexec_times
from tests.support.tiny_vit import VitSpec


def written(folder: Path, text: str | list[Any]) -> Path:
    path = folder / "given"
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return path


@pytest.mark.parametrize(
    "text",
    [
        "17,3\n9,2\n",
        "tokens, ms\n9, 2.0\n17, 3.0\n",
        "# by hand\n\n9;2\n17;3 # dense\n",
        "n\tms\n9\t2\n17\t3",
        "\ufefftokens,ms\n9.0,2e0\n17,3\n",
    ],
)
def test_tables_are_read_as_they_come(tmp_path: Path, text: str) -> None:
    found = read_csv(written(tmp_path, text))
    assert [(n, f.ms) for n, f in found.points] == [(9, 2.0), (17, 3.0)]


def test_quartiles_are_kept(tmp_path: Path) -> None:
    found = read_csv(written(tmp_path, "tokens,ms,lower,upper\n9,2,1.5,2.5\n17,3,3,3\n"))
    assert found.points[0] == (9, Figure(2.0, 1.5, 2.5, 1))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("9,2\nx,3\n", 2),
        ("9,2\n\n17\n", 3),
        ("9,2\n17,3,4\n", 2),
        ("9,-2\n17,3\n", 1),
        ("9,2\n17,nan\n", 2),
        ("9,2\n17,inf\n", 2),
        ("9,2\n9,3\n", 2),
        ("9.5,2\n17,3\n", 1),
        ("0,2\n17,3\n", 1),
        ("9,2,3,4\n17,3\n", 1),
        ("a,b\nc,d\n", 2),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, line: int) -> None:
    with pytest.raises(UsageError, match=f"given, line {line}: "):
        read_csv(written(tmp_path, text))


@pytest.mark.parametrize("text", ["", "# nothing\n", "tokens,ms\n", "9,2\n"])
def test_too_little_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="given"):
        read_csv(written(tmp_path, text))
    with pytest.raises(UsageError, match="is a directory"):
        read_csv(tmp_path)


def test_steps_of_a_method(tmp_path: Path) -> None:
    found = read_steps(written(tmp_path, "before,after,ms\n17,9,0.2\n9,5,0.1\n"))
    assert [(n, k, f.ms) for n, k, f in found.points] == [(9, 5, 0.1), (17, 9, 0.2)]
    with pytest.raises(UsageError, match="line 1"):
        read_steps(written(tmp_path, "9,17,0.2\n"))


def test_times_of_runs(tmp_path: Path) -> None:
    """21 runs of 2.0 to 2.2 ms on the GPU, and 0.3 ms of transfers."""
    found = read_trtexec(written(tmp_path, trtexec_times()))
    assert found == Figure(pytest.approx(2.4), pytest.approx(2.35), pytest.approx(2.45), 21)


def test_times_of_runs_without_transfers(tmp_path: Path) -> None:
    kept = [{k: v for k, v in r.items() if k != "latencyMs"} for r in trtexec_times()]
    assert read_trtexec(written(tmp_path, kept)).ms == pytest.approx(2.1)


def layers() -> list[dict[str, Any]]:
    """As trtexec writes --exportProfile."""
    return [
        {"count": 300},
        {"name": "patch", "timeMs": 30.0, "averageMs": 0.1, "medianMs": 0.09, "percentage": 20.0},
        {"name": "mha", "timeMs": 120.0, "averageMs": 0.4, "medianMs": 0.41, "percentage": 80.0},
    ]


def test_times_of_layers(tmp_path: Path) -> None:
    path = written(tmp_path, layers())
    assert read_trtexec(path) == Figure(
        pytest.approx(0.5), pytest.approx(0.5), pytest.approx(0.5), 300
    )
    old = [{k: v for k, v in row.items() if k != "medianMs"} for row in layers()]
    assert read_trtexec(written(tmp_path, old)).ms == pytest.approx(0.5)


@pytest.mark.parametrize(
    "document",
    [
        "",
        "{",
        "{}",
        "[]",
        "[1]",
        '[{"a": 1}]',
        [{"latencyMs": 1.0}, {}],
        [{"latencyMs": "1"}],
        [{"latencyMs": -1.0}],
        [{"latencyMs": True}],
        [{"count": 3}],
        [{"count": 3}, {"name": "a", "averageMs": None}],
        "[NaN]",
        '[{"latencyMs": NaN}]',
    ],
    ids=str,
)
def test_what_trtexec_did_not_write_is_refused(tmp_path: Path, document: Any) -> None:
    with pytest.raises(UsageError, match="given"):
        read_trtexec(written(tmp_path, document))


def test_a_curve_of_files(tmp_path: Path) -> None:
    path = written(tmp_path, trtexec_times())
    assert whole_curve({17: path, 9: path}).counts == (9, 17)
    with pytest.raises(UsageError, match="two token counts"):
        whole_curve({17: path})


def curve(*points: tuple[int, float]) -> Curve:
    return Curve.of((n, Figure(ms, 0.9 * ms, 1.2 * ms, 7)) for n, ms in points)


def test_parts_add_up_to_the_whole_by_their_flops(tmp_path: Path) -> None:
    """Halves against a closed form; the planner's tables against the curve itself."""
    spec = VitSpec(depth=3)
    model = tiny(tmp_path, spec, batch=None)
    planner = method(model, "topk")
    given = curve((5, 2.0), (9, 2.5), (13, 4.0), (17, 6.0))
    made = imported_profile(
        model.graph, model.analysis, [planner], given, CONDITIONS, source="tiny.onnx"
    )
    layout = layout_of(model.graph, planner)
    c, hidden = spec.width, spec.width * spec.mlp_ratio
    attn_curve, mlp_curve = (made.halves[s] for s in layout.dense[0])
    for n in given.counts:
        ratio = (8 * n * c * c + 4 * n * n * c) / (4 * n * c * hidden)
        assert attn_curve.at(n) / mlp_curve.at(n) == pytest.approx(ratio)
    loss = prior_loss("prune", tokens=17, prefix=1, blocks=3)
    tables = tables_for(made, layout, planner, loss, counts_for(made, layout, planner))
    total = tables.attn_ms.sum(0) + tables.mlp_ms.sum(0) + tables.head_ms + tables.stem_ms
    covered = [i for i, n in enumerate(tables.counts) if n >= given.counts[0]]
    assert total[covered] == pytest.approx(given.at(tables.counts)[covered])
    assert tables.dense_ms == pytest.approx(6.0)
    assert np.max(tables.reducer_ms[0]) < 1e-4
    assert "FLOPs" in made.conditions.note
    assert "topk" in made.conditions.note
    spread = attn_curve.points[-1][1]
    assert spread.lower < spread.ms < spread.upper


def test_steps_that_were_measured_are_taken(tmp_path: Path) -> None:
    model = tiny(tmp_path)
    planner = method(model, "topk")
    cost = StepCost(((17, 9, Figure(0.25, 0.25, 0.25)),))
    made = imported_profile(
        model.graph,
        model.analysis,
        [planner],
        curve((9, 2.0), (25, 4.0)),
        CONDITIONS,
        source="x",
        steps={"topk": cost},
    )
    assert made.reducers["topk"] == cost
    assert "topk" not in made.conditions.note
    assert "17 tokens were not measured" in made.conditions.note
    assert made.dense is not None
    assert made.dense.ms == pytest.approx(3.0)


def test_models_with_sides_and_merging(tmp_path: Path) -> None:
    model: Analysed = sided(tmp_path, VitSpec(depth=4))
    planners = [method(model, text) for text in ("tome",)]
    given = curve((5, 2.0), (17, 6.0))
    made = imported_profile(model.graph, model.analysis, planners, given, CONDITIONS, source="x")
    for planner in planners:
        layout = layout_of(model.graph, planner)
        loss = prior_loss("prune", tokens=17, prefix=1, blocks=4)
        tables = tables_for(made, layout, planner, loss, (5, 17))
        assert tables.dense_ms == pytest.approx(6.0)
        # Block 0's attention reads other things than those behind a step: it only ever sees 17.
        total = 4 * tables.attn_ms[1, 0] + tables.mlp_ms[:, 0].sum() + tables.head_ms[0]
        assert total + tables.stem_ms == pytest.approx(2.0)


def test_a_curve_beyond_the_model_is_refused(tmp_path: Path) -> None:
    model = tiny(tmp_path)
    with pytest.raises(UsageError, match="17 tokens"):
        imported_profile(
            model.graph,
            model.analysis,
            [method(model, "topk")],
            curve((17, 2.0), (25, 4.0)),
            CONDITIONS,
            source="x",
        )
