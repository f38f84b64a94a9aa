"""`resolution` as a schedule: grids for a budget, refusals with their remedy, who resizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tcompile import pipeline
from tcompile.core.errors import ModelError, UsageError
from tcompile.core.schedule import Schedule
from tcompile.models.positions import POSITIONS_KEY
from tcompile.passes.resize.rules import IMAGE_RULE, RULES, resampled
from tcompile.planning.losses.distance import distance
from tcompile.planning.request import Request
from tcompile.planning.resolution import (
    best_rule,
    describe_grids,
    problem,
    resized_model,
    resolutions,
    with_position_rule,
)
from tests.oracles.compare import infer
from tests.support.onnx_models import to_onnx
from tests.support.tiny_vit import VitSpec, build_vit, random_weights, save_tiny_vit

#: 8 × 8 patches.
SPEC = VitSpec(image=32, patch=4, depth=2)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_vit(tmp_path_factory.mktemp("vit") / "vit.onnx", SPEC)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that returns all its tokens."""
    spec = VitSpec(image=32, patch=4, depth=2, pool="none")
    return save_tiny_vit(tmp_path_factory.mktemp("vit") / "tokens.onnx", spec, batch=None)


def resized(path: Path, method: str = "resolution", **asked: Any) -> Any:
    return pipeline.reduce(path, target="cpu", method=method, **asked)


@pytest.mark.parametrize(
    ("method", "asked", "grid"),
    [
        ("resolution", {"keep": 0.5}, (6, 6)),  # 32 of 64: 5 × 5 is too few
        ("resolution", {"keep": "0.5625"}, (6, 6)),  # 36 exactly
        ("resolution", {"keep": 0.57}, (7, 7)),
        ("resolution:grid=6x4", {}, (6, 4)),
        ("resolution:grid=5", {}, (5, 5)),
        ("resolution:size=24", {}, (6, 6)),
    ],
)
def test_the_grid_of_a_budget(
    vit: Path, method: str, asked: dict[str, Any], grid: tuple[int, int]
) -> None:
    made = resized(vit, method, **asked).schedule
    assert made.resized is not None
    assert made.resized.grid == grid
    assert made.resized.size == (4 * grid[0], 4 * grid[1])
    assert made.final == made.resized.patches == grid[0] * grid[1]
    assert {b.attention for b in made.tokens_per_block()} == {made.final + 1}
    assert Schedule.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    ("method", "asked", "words"),
    [
        ("resolution", {}, "no budget given"),
        ("resolution:grid=6x6", {"keep": 0.5}, "two budgets given"),
        ("resolution:grid=6x6,size=24", {}, "two budgets given"),
        ("resolution:grid=8x8", {}, "8 x 8 patches is not a smaller grid than 8 x 8"),
        ("resolution:grid=9x4", {}, "not a smaller grid"),
        ("resolution:grid=0x4", {}, "not a smaller grid"),
        ("resolution:grid=6y6", {}, "grid=6y6 is not ROWSxCOLUMNS"),
        ("resolution:size=26", {}, "size=26 is not a whole number of patches"),
        ("resolution", {"keep": 0.99}, "no smaller grid of 64 patches"),
        ("resolution:rule=lanczos", {"keep": 0.5}, "rule=lanczos is not bicubic-antialias"),
    ],
)
def test_what_cannot_be_asked(vit: Path, method: str, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        resized(vit, method, **asked)


def test_all_of_it_is_the_dense_model(vit: Path) -> None:
    assert resized(vit, keep=1).schedule.dense


def test_rows_of_patches_are_restored_or_refused(tokens: Path) -> None:
    with pytest.raises(UsageError, match="'tokens' has a row for each patch") as refused:
        resized(tokens, keep=0.5)
    assert "--outputs restored" in refused.value.hint
    model = pipeline.read(tokens)
    assert "--outputs restored" in problem(model)
    assert not problem(model, "restored")
    assert describe_grids(model).restored == ("tokens",)
    made = resized(tokens, keep=0.5, outputs="restored")
    out = made.graph.outputs[0]
    assert out.shape == ["batch", 65, SPEC.width]
    assert not made.token_index


@pytest.mark.parametrize("batch", [1, None])
def test_the_host_may_resize(tmp_path: Path, batch: int | None) -> None:
    path = save_tiny_vit(tmp_path / "vit.onnx", SPEC, batch=batch)
    inside, outside = (to_onnx(resized(path, keep=0.5, resize=who).graph) for who in WHO)
    image = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    small = resampled(resampled(image, 2, 24, IMAGE_RULE), 3, 24, IMAGE_RULE)
    wanted = infer(inside, {"image": image})["logits"]
    np.testing.assert_allclose(infer(outside, {"image": small})["logits"], wanted, atol=1e-5)
    dims = [d.dim_value for d in outside.graph.input[0].type.tensor_type.shape.dim]
    assert dims[1:] == [3, 24, 24]


WHO = ("graph", "host")


def test_the_files_record_names_the_rule(vit: Path, tmp_path: Path) -> None:
    model = onnx.load(vit)
    model.metadata_props.add(key=POSITIONS_KEY, value='{"table": "bicubic"}')
    onnx.save(model, tmp_path / "vit.onnx")
    made = resized(tmp_path / "vit.onnx", keep=0.5).schedule
    assert made.resized.table == "bicubic"
    assert "table bicubic: as the export recorded" in made.notes[0]
    asked = resized(tmp_path / "vit.onnx", "resolution:rule=bilinear", keep=0.5).schedule
    assert asked.resized.table == "bilinear"
    plain = resized(vit, keep=0.5).schedule
    assert "table bicubic-antialias: the default" in plain.notes[0]


def test_the_rule_that_loses_least_on_images(vit: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    np.savez(tmp_path / "images.npz", image=images)
    made = resized(vit, keep=0.5, calibration=tmp_path / "images.npz").schedule
    dense = np.concatenate([infer(onnx.load(vit), {"image": i[None]})["logits"] for i in images])
    losses = {}
    for rule in RULES:
        one = to_onnx(resized(vit, f"resolution:rule={rule}", keep=0.5).graph)
        found = np.concatenate([infer(one, {"image": i[None]})["logits"] for i in images])
        losses[rule] = float(distance({"y": dense}, {"y": found}).mean())
    assert len({round(v, 9) for v in losses.values()}) == len(RULES)
    assert made.resized.table == min(losses, key=lambda r: losses[r])
    assert f"table {made.resized.table}: loses least on 3 samples" in made.notes[0]
    told = resized(vit, "resolution:rule=bicubic", keep=0.5, calibration=tmp_path / "images.npz")
    assert told.schedule.resized.table == "bicubic"
    given = {"calibration": tmp_path / "images.npz", "outputs": "restored"}
    request = Request(schedule=made.to_json(), **given)
    assert with_position_rule(pipeline.read(vit), request, made) is made


def test_no_rule_is_weighed_where_no_table_is_interpolated(vit: Path) -> None:
    (first, *_) = resolutions(pipeline.read(vit))
    asked: list[Schedule] = []

    def loss_of(schedule: Schedule) -> float:
        asked.append(schedule)
        return 0.5

    assert best_rule(pipeline.read(vit), first, loss_of, "images") == (first, 0.5)
    assert len(asked) == 2


def test_schedules_of_all_grids(vit: Path) -> None:
    model = pipeline.read(vit)
    found = resolutions(model, "resolution:rule=bicubic")
    assert [s.resized.grid[0] for s in found if s.resized] == [7, 6, 5, 4, 3, 2]
    for schedule in found[:2]:
        made = resized_model(model, schedule)
        assert made.schedule.method == "resolution:rule=bicubic"
        again = pipeline.apply_schedule(model, schedule)
        assert again.schedule == made.schedule


def test_a_schedule_is_for_one_model(vit: Path, tokens: Path) -> None:
    (first, *_) = resolutions(pipeline.read(vit))
    other = save_tiny_vit(tokens.with_name("other.onnx"), VitSpec(image=24, patch=4))
    with pytest.raises(UsageError, match="made for"):
        pipeline.apply_schedule(pipeline.read(other), first)


def test_a_mean_by_a_literal_follows(tmp_path: Path) -> None:
    """sum(x) / 64 becomes sum(x) / 36, as a mean is one of as many as there are."""
    spec = VitSpec(image=32, patch=4, depth=2, prefix=0, pool="avg")
    weights = random_weights(spec)
    files = []
    for spelled in ("mean", "literal"):
        model = build_vit(spec, weights)
        if spelled == "literal":
            _spell_mean(model, 64)
        onnx.save(model, tmp_path / f"{spelled}.onnx")
        files.append(to_onnx(resized(tmp_path / f"{spelled}.onnx", keep=0.5).graph))
    image = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    mean, literal = (infer(m, {"image": image})["logits"] for m in files)
    np.testing.assert_allclose(literal, mean, atol=1e-5)


def _spell_mean(model: onnx.ModelProto, count: int) -> None:
    """ReduceMean over tokens as a sum that is divided by a number."""
    (mean,) = (n for n in model.graph.node if n.op_type == "ReduceMean")
    axes = next(a for a in mean.attribute if a.name == "axes").ints
    keep = next((a.i for a in mean.attribute if a.name == "keepdims"), 1)
    place = list(model.graph.node).index(mean)
    number = onnx.numpy_helper.from_array(np.float32(count), "count")
    over = onnx.numpy_helper.from_array(np.array(axes, np.int64), "over")
    model.graph.initializer.extend([number, over])
    model.graph.node.remove(mean)
    total = onnx.helper.make_node("ReduceSum", [mean.input[0], "over"], ["total"], keepdims=keep)
    divided = onnx.helper.make_node("Div", ["total", "count"], list(mean.output))
    for node in (divided, total):
        model.graph.node.insert(place, node)


def test_weights_for_each_position_are_refused(tmp_path: Path) -> None:
    """A head that mixes tokens has a weight for each pair of them."""
    model = build_vit(SPEC, random_weights(SPEC))
    norm = [n for n in model.graph.node if n.op_type == "LayerNormalization"][-1]
    mixing = np.random.default_rng(0).standard_normal((65, 65)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(mixing, "mixing"))
    (out,) = norm.output
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == out:
                node.input[i] = "mixed"
    place = list(model.graph.node).index(norm) + 1
    mixed = onnx.helper.make_node("MatMul", ["mixing", out], ["mixed"], name="mixer")
    model.graph.node.insert(place, mixed)
    onnx.save(model, tmp_path / "mixer.onnx")
    read = pipeline.read(tmp_path / "mixer.onnx")
    assert "MatMul 'mixer'" in describe_grids(read).reason
    with pytest.raises((UsageError, ModelError), match="mix positions"):
        resized(tmp_path / "mixer.onnx", keep=0.5)
