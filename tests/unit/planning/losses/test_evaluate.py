"""Schedules on samples: equal to whole reduced models on whole inputs, with no work done twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tcompile.core.errors import ModelError, UsageError
from tcompile.core.schedule import Reduction, Schedule, Spec
from tcompile.core.site import SiteName
from tcompile.passes.reduce import reduce_graph
from tcompile.passes.stages import Analysed
from tcompile.pipeline import read
from tcompile.planning.losses.distance import distance
from tcompile.planning.losses.evaluate import Evaluator
from tcompile.runtime.samples import Samples, run_graph, samples_for
from tcompile.runtime.signature import signature
from tcompile.targets.backends.ort import OrtRunner
from tests.support.tiny_vit import VitSpec, save_tiny_vit

SPEC = VitSpec(image=32, patch=8, width=32, heads=2, depth=4)

NORM, CLS = Spec("norm"), Spec("cls")
TOP, MERGE, FUSE = Spec("topk"), Spec("merge"), Spec("fuse")

#: Site, score, reducer, tokens that stay.
Step = tuple[str, Spec | None, Spec, int]
SCHEDULES: dict[str, tuple[Step, ...]] = {
    "topk": (("attn:1", NORM, TOP, 9),),
    "tome": (("attn:0", None, MERGE, 12), ("attn:2", None, MERGE, 8)),
    "fuse": (("attn:1", CLS, FUSE, 9), ("attn:3", CLS, FUSE, 5)),
    "mixed": (("block:0", NORM, TOP, 13), ("attn:2", None, MERGE, 8), ("attn:3", NORM, TOP, 4)),
}


def schedule(model: Analysed, *steps: Step) -> Schedule:
    made = tuple(Reduction(SiteName(site), score, red, keep) for site, score, red, keep in steps)
    return Schedule("some", model.analysis.shape, made)


def tiny(folder: Path, batch: int | None = None, **changes: object) -> Path:
    spec = VitSpec(**{**vars(SPEC), **changes})  # type: ignore[arg-type]
    return save_tiny_vit(folder / "vit.onnx", spec, batch=batch)


def packed(folder: Path) -> Path:
    """The patches of one image as rows, with no batch."""
    path = tiny(folder, batch=1)
    model = onnx.load(path)
    image = model.graph.input.pop()
    model.graph.input.append(helper.make_tensor_value_info("patches", 1, [16, 192]))
    dims = {"apart": [1, 4, 4, 3, 8, 8], "image": [1, 3, 32, 32]}
    for name, shape in dims.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(shape), f"{name}_dims"))
    nodes = [
        helper.make_node("Reshape", ["patches", "apart_dims"], ["apart"], "apart"),
        helper.make_node("Transpose", ["apart"], ["beside"], "beside", perm=[0, 3, 1, 4, 2, 5]),
        helper.make_node("Reshape", ["beside", "image_dims"], [image.name], "image"),
    ]
    nodes += list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)
    return path


MODELS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "classes": (tiny, "reduced"),
    "tokens": (lambda folder: tiny(folder, pool="none", prefix=2), "reduced"),
    "restored": (lambda folder: tiny(folder, pool="none", prefix=2), "restored"),
    "fixed batch": (lambda folder: tiny(folder, batch=2), "reduced"),
    "packed": (packed, "reduced"),
}


def whole(model: Analysed, one: Schedule, samples: Samples, mode: str) -> np.ndarray:
    """The losses by running the whole dense and the whole reduced model."""
    reduced = reduce_graph(model.graph, model.analysis, one, outputs=mode).graph
    return distance(run_graph(model.graph, samples), run_graph(reduced, samples))


def evaluator(
    model: Analysed, samples: Samples, mode: str = "reduced", **options: int
) -> Evaluator:
    return Evaluator(model.graph, model.analysis, samples, mode, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", MODELS)
def test_equal_to_whole_models(kind: str, tmp_path: Path) -> None:
    write, mode = MODELS[kind]
    path = write(tmp_path)
    model, samples = read(path), samples_for(signature(path), count=5)
    found = evaluator(model, samples, mode)
    for steps in SCHEDULES.values():
        one = schedule(model, *steps)
        expected = whole(model, one, samples, mode)
        np.testing.assert_allclose(found.losses(one), expected, atol=1e-6)
        assert expected.max() > 1e-4


def test_memory_changes_nothing(tmp_path: Path) -> None:
    path = tiny(tmp_path)
    model, samples = read(path), samples_for(signature(path), count=9)
    ones = [schedule(model, *steps) for steps in SCHEDULES.values()]
    expected = [evaluator(model, samples).losses(one) for one in ones]
    for memory in (0, 30_000, 100_000):
        little = evaluator(model, samples, memory=memory)
        for one, losses in zip(ones * 2, expected * 2, strict=True):
            np.testing.assert_allclose(little.losses(one), losses, atol=1e-7)


def test_outputs_that_are_known_outlast_what_is_computed_beside_them(tmp_path: Path) -> None:
    """Classes do not depend on how tokens are given back: they are known from the first rule, and
    must not make room for what the second one's runs leave."""
    path = tiny(tmp_path)
    file = onnx.load(path)
    *_, norm = (n for n in file.graph.node if n.op_type == "LayerNormalization")
    file.graph.output.append(helper.make_tensor_value_info(norm.output[0], 1, None))
    onnx.save(file, path)
    model, samples = read(path), samples_for(signature(path), count=8)
    one = schedule(model, *SCHEDULES["tome"])
    rules = [replace(one, restore=rule) for rule in ("owner", "stale", "owner", "nearest")]
    plenty = evaluator(model, samples, "restored")
    want = [plenty.losses(rule) for rule in rules]
    for memory in (60_000, 120_000, 180_000, 240_000):
        little = evaluator(model, samples, "restored", memory=memory, threads=2)
        for rule, loss in zip(rules, want, strict=True):
            assert np.allclose(little.losses(rule), loss, atol=1e-6)


def test_rows_that_are_added_equal_all_at_once(tmp_path: Path) -> None:
    path = tiny(tmp_path)
    model, samples = read(path), samples_for(signature(path), count=16)
    one = schedule(model, *SCHEDULES["mixed"])
    added, at_once = evaluator(model, samples), evaluator(model, samples)
    expected = at_once.losses(one)
    for rows in (4, 7, 8, 16):
        np.testing.assert_array_equal(added.losses(one, rows), expected[:rows])
    assert added.counted == at_once.counted
    for name, array in added.outputs(one, 3).items():
        np.testing.assert_array_equal(array, at_once.outputs(one)[name][:3])


def test_nothing_runs_twice(tmp_path: Path) -> None:
    path = tiny(tmp_path)
    model, samples = read(path), samples_for(signature(path), count=8)
    found = evaluator(model, samples)

    def nodes(*steps: Step) -> int:
        before = found.counted.nodes
        found.losses(schedule(model, *steps))
        return found.counted.nodes - before

    first, second, third = SCHEDULES["mixed"]
    assert found.dense.keys() == {str(o.name) for o in model.graph.outputs}
    dense = found.counted.nodes
    late, early = nodes(third), nodes(first)
    assert 0 < late < early < dense
    # What follows the last step alone, of a schedule that has run up to there.
    assert nodes(first, second, third) > nodes(first, second, ("attn:3", NORM, TOP, 5)) <= late
    assert nodes(first, second, third) == 0
    assert found.counted.dense == 4  # runs of two samples
    nodes(("attn:3", NORM, TOP, 12))
    opened = found.counted.sessions
    nodes(("attn:3", NORM, TOP, 11))
    assert found.counted.sessions == opened


def test_rules_that_give_tokens_back_differ(tmp_path: Path) -> None:
    path = tiny(tmp_path, pool="none")
    model, samples = read(path), samples_for(signature(path), count=2)
    found = evaluator(model, samples, "restored")
    one = schedule(model, *SCHEDULES["topk"])
    for rule in ("owner", "stale"):
        asked = replace(one, restore=rule)
        expected = whole(model, asked, samples, "restored")
        np.testing.assert_allclose(found.losses(asked), expected, atol=1e-6)


def test_a_runtime_that_wants_the_numbers_gets_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Strict(OrtRunner):
        def __init__(self, path: Path, *given: object, **options: object) -> None:
            names = [i.name for i in onnx.load(path, load_external_data=False).graph.input]
            if any(name.startswith("tc_number") for name in names):
                raise ModelError("does not infer shapes")
            super().__init__(path, *given, **options)  # type: ignore[arg-type]

    path = tiny(tmp_path)
    model, samples = read(path), samples_for(signature(path), count=4)
    ones = [schedule(model, ("attn:1", NORM, TOP, keep)) for keep in (12, 11)]
    expected = [evaluator(model, samples).losses(one) for one in ones]
    monkeypatch.setattr("tcompile.planning.losses.evaluate.OrtRunner", Strict)
    strict = evaluator(model, samples)
    for one, losses in zip(ones, expected, strict=True):
        np.testing.assert_allclose(strict.losses(one), losses, atol=1e-7)
    assert strict.counted.sessions == 1 + 1 + 2  # dense, refused, one for each count


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tiny(tmp_path)
    model, samples = read(path), samples_for(signature(path), count=2)
    with pytest.raises(UsageError, match="keeps 16 of 16 tokens"):
        evaluator(model, samples).losses(schedule(model, ("attn:1", NORM, TOP, 16)))
