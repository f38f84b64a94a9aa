"""Counts learned on images: what is observed, the searches by hand, the option."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from tcompile.core.errors import UsageError
from tcompile.core.schedule import Shape, Spec
from tcompile.methods.calibration import observer
from tcompile.methods.composition import compose
from tcompile.methods.presets import PRESETS
from tcompile.pipeline import plan, read
from tcompile.planning.losses.data import read_calibration
from tcompile.targets.backends.ort import OrtRunner
from tests.support.onnx_models import to_onnx
from tests.support.tiny_vit import VitSpec, save_tiny_vit

LEARN = [m.name for m in PRESETS if m.scheduler.observes]
SPEC = VitSpec(image=32, patch=8, width=32, heads=2, depth=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_vit(tmp_path_factory.mktemp("calibration") / "vit.onnx", SPEC, batch=None)


@pytest.fixture(scope="module")
def images(model: Path) -> Path:
    path = model.parent / "images.npz"
    shape = (5, 3, SPEC.image, SPEC.image)
    np.savez(path, image=np.random.default_rng(0).normal(size=shape).astype(np.float32))
    return path


def test_what_is_observed_is_the_attention_of_every_block(model: Path, images: Path) -> None:
    dense = read(model)
    paid, received = observer(
        dense.graph, dense.analysis, lambda: read_calibration(model, images).samples
    )([Spec("cls", {"agg": "max"}), Spec("colsum", {"queries": "all", "agg": "max"})])
    assert paid.shape == received.shape == (3, 5, 16)
    # The probabilities themselves, as further outputs of the model.
    graph = dense.graph.copy()
    graph.outputs += [n.outputs[0] for n in graph.nodes if n.op == "Softmax"]
    whole = model.parent / "attention.onnx"
    onnx.save(to_onnx(graph), whole)
    with np.load(images) as arrays:
        found = list(OrtRunner(whole).run({"image": arrays["image"]}).values())[1:]
    for block, attention in enumerate(found):
        most = attention.max(axis=1)  # [images, queries, keys]
        for shares, raw in ((paid, most[:, 0, 1:]), (received, most.sum(axis=1)[:, 1:])):
            expected = raw / raw.sum(axis=-1, keepdims=True)
            np.testing.assert_allclose(shares[block], expected, rtol=1e-4)


def counts(method: str, shares: Sequence[object], keep: str | None, patches: int) -> list[int]:
    def observe(scores: Sequence[Spec]) -> list[np.ndarray]:
        assert len(scores) == len(shares)
        return [np.asarray(s, np.float64) for s in shares]

    shape = Shape(patches + 1, 1, patches, np.asarray(shares[0]).shape[0])
    return [b.mlp - 1 for b in compose(method, shape, True, keep, None, observe).tokens_per_block()]


#: Two blocks, one image, four tokens.
PAID = [[[0.1, 0.2, 0.3, 0.4]], [[0.05, 0.05, 0.1, 0.8]]]
RECEIVED = [[[0.4, 0.1, 0.1, 0.4]], [[0.25, 0.25, 0.25, 0.25]]]


def test_fitprune_by_hand() -> None:
    # Block 0, by the product .04 .02 .03 .16: tokens 1, 2, 0, 3; paid .2 .5 .6 1, received .1 .2 .6
    # 1; block 1: tokens 0, 1, 2, 3; paid .05 .1 .2 1, received .25 .5 .75 1. Both count.
    assert counts("fitprune:alpha=0.3", (PAID, RECEIVED), None, 4) == [3, 3]
    assert counts("fitprune:alpha=0.55", (PAID, RECEIVED), None, 4) == [2, 2]
    assert counts("fitprune:alpha=0.76", (PAID, RECEIVED), None, 4) == [1, 1]
    assert counts("fitprune", (PAID, RECEIVED), "0.5", 4) == [2, 2]
    # Two images: the mean of what may leave, rounded down.
    two = [[[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]]]
    assert counts("fitprune:alpha=0.35", (two, two), None, 4) == [3]


def test_g_search_by_hand() -> None:
    # Block 0: .1 .3 .6 1 leave; within .3 two do. Block 1: of .9 that tokens 2 and 3 receive, token
    # 2 receives a ninth.
    assert counts("g-search:tolerance=0.31", (PAID,), None, 4) == [2, 1]
    assert counts("g-search:tolerance=0.15", (PAID,), None, 4) == [3, 2]
    assert counts("g-search", (PAID,), "0.25", 4)[-1] == 1


def test_p_sigmoid_keeps_no_more_than_a_straight_line() -> None:
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(64, 0.3), size=(12, 3))
    found = counts("p-sigmoid", (shares,), "0.25", 64)
    line = [64 - 48 * (i + 1) / 12 for i in range(12)]
    assert found[-1] == 16
    assert sum(found) <= sum(line)
    step = counts("p-sigmoid:middle=0.5,width=0.02", (shares,), "0.25", 64)
    assert (step[3], step[5], step[8]) == (64, 40, 16)


@pytest.mark.parametrize("method", LEARN)
@pytest.mark.parametrize("keep", ["0.9", "0.5", "0.26"])
def test_keep_is_met_exactly(method: str, keep: str) -> None:
    rng = np.random.default_rng(1)
    for blocks, patches in ((1, 16), (4, 49), (12, 196)):
        shares = [rng.dirichlet(np.full(patches, 0.5), size=(blocks, 3)) for _ in range(2)]
        wanted = next(m for m in PRESETS if m.name == method).scheduler.observes
        found = counts(method, shares[: len(wanted)], keep, patches)
        assert found[-1] == -(-int(keep[2:]) * patches // 10 ** len(keep[2:]))
        assert found == sorted(found, reverse=True)


def test_attention_that_is_all_on_one_token() -> None:
    spike = np.zeros((2, 1, 8))
    spike[..., 3] = 1
    for method, keep in (("fitprune", "0.5"), ("g-search", "0.5"), ("p-sigmoid", "0.5")):
        shares = (spike, spike) if method == "fitprune" else (spike,)
        assert counts(method, shares, keep, 8)[-1] == 4


@pytest.mark.parametrize("method", LEARN)
def test_without_images_they_say_what_to_give(method: str) -> None:
    with pytest.raises(UsageError, match=r"--calibration DIR, FILE\.npz or loader\.py"):
        compose(method, Shape(17, 1, 16, 3), True, "0.5")


def test_plan_takes_images(model: Path, images: Path) -> None:
    assert plan(model, keep="0.5", method="fitprune", calibration=images).final == 8


@pytest.mark.parametrize("method", LEARN)
def test_a_loader_gives_what_its_arrays_give(
    model: Path, images: Path, tmp_path: Path, method: str
) -> None:
    loader = tmp_path / "loader.py"
    loader.write_text(
        "import numpy as np\n"
        "def load_data():\n"
        f"    images = np.load({str(images)!r})['image']\n"
        "    yield {'image': images[:2], 'labels': [0, 1]}\n"
        "    yield {'image': images[2:], 'labels': [2, 3, 4]}\n"
    )
    by_loader, by_arrays = (
        plan(model, keep="0.5", method=method, calibration=data) for data in (loader, images)
    )
    assert by_loader == by_arrays


def test_without_cls_strided_patches_are_observed(tmp_path: Path) -> None:
    spec = VitSpec(image=32, patch=8, width=32, heads=2, depth=2, prefix=0, pool="avg")
    path, data = tmp_path / "vit.onnx", tmp_path / "images.npz"
    save_tiny_vit(path, spec)
    np.savez(data, np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32))
    made = plan(path, keep="0.5", method="g-search", calibration=data)
    assert made.final == 8
    assert {r.score.name for r in made.reductions if r.score} == {"attn"}
    assert any("no CLS" in note for note in made.notes)
