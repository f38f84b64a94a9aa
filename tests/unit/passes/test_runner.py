"""Passes run in order, and a dump shows the graph after each of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from tcompile import pipeline
from tcompile.builder.checks import measure
from tcompile.core.errors import UsageError
from tcompile.passes import lower, normalize, reduce
from tcompile.passes.runner import Dump, Pass, run, to_text
from tcompile.pipeline import building
from tests.support.command import Command
from tests.support.tiny_vit import VitSpec, save_tiny_vit

SPEC = VitSpec(depth=2, image=32)


@pytest.fixture
def vit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return save_tiny_vit(Path("vit.onnx"), SPEC, batch=None)


@dataclass
class Counted:
    graph: gs.Graph
    by: int = 1


def add(state: Counted) -> int:
    x = state.graph.outputs[0]
    y = gs.Variable(f"{x.name}+", np.float32, [2])
    state.graph.nodes.append(gs.Node("Neg", y.name, {}, [x], [y]))
    state.graph.outputs = [y]
    return state.by


def small(*shape: int) -> gs.Graph:
    x, y = (gs.Variable(name, np.float32, shape) for name in "xy")
    w = gs.Constant("w", np.arange(np.prod(shape), dtype=np.float32).reshape(shape))
    return gs.Graph([gs.Node("Add", "sum", {}, [x, w], [y])], [x], [y], opset=20)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def passes_of(files: list[str], stage: str) -> list[str]:
    parts = [name.removesuffix(".txt").split("-", 2) for name in files]
    assert [int(number) for number, _, _ in parts] == list(range(1, len(files) + 1))
    return [name for _, which, name in parts if which == stage]


def test_passes_that_apply_run_in_order(tmp_path: Path) -> None:
    never = Pass[Counted]("never", add, when=lambda s: s.by > 1)
    silent = Pass[Counted]("silent", lambda s: None)
    dump = Dump(tmp_path / "dump")
    dump.restart()
    changes = run(
        Counted(small(2)), (Pass("one", add), never, silent, Pass("two", add)), "lower", dump
    )
    assert changes == 2
    files = names(tmp_path / "dump")
    assert files == ["001-lower-one.txt", "002-lower-silent.txt", "003-lower-two.txt"]
    counts = [
        len(onnx.parser.parse_model((tmp_path / "dump" / name).read_text()).graph.node)
        for name in files
    ]
    assert counts == [2, 2, 3]


def test_large_weights_are_a_digest() -> None:
    few, many = to_text(small(2)), to_text(small(8, 8))
    assert "float[2] w =  {0,1}" in few
    assert "#" not in few
    assert "float[8,8] w =  {}" in many
    (line,) = [line for line in many.splitlines() if line.startswith("# w: ")]
    changed = small(8, 8)
    changed.tensors()["w"].values[0, 0] = 7
    assert line not in to_text(changed).splitlines()
    assert to_text(small(8, 8)) == many


def test_large_values_in_attributes_are_left_out() -> None:
    graph = small(8, 8)
    inside = gs.Constant("inside", np.ones((8, 8), np.float32))
    z = gs.Variable("z", np.float32, [8, 8])
    graph.nodes.append(gs.Node("Constant", "stored", {"value": inside}, [], [z]))
    graph.outputs.append(z)
    node = onnx.parser.parse_model(to_text(graph)).graph.node[1]
    assert list(node.attribute[0].t.dims) == [8, 8]
    assert not node.attribute[0].t.raw_data


@pytest.mark.parametrize("target", ["cpu", "jetson-orin"])
def test_a_build_dumps_every_pass(vit: Path, target: str) -> None:
    plain = pipeline.build(vit, target=target, keep=0.5, method="topk", output="plain", force=True)
    for _ in range(2):  # the second takes the place of the first
        built = pipeline.build(
            vit, target=target, keep=0.5, method="topk", output="out", force=True, dump="dump"
        )
    assert (built / "model.onnx").read_bytes() == (plain / "model.onnx").read_bytes()
    files = names(Path("dump"))
    normal = passes_of(files, "normalize")
    before, again, after = (
        [p.name for p in passes] for passes in (normalize.BEFORE, normalize.ROUND, normalize.AFTER)
    )
    assert normal[: len(before)] == before
    assert normal[-len(after) :] == after
    rounds = normal[len(before) : -len(after)]
    assert len(rounds) >= 2 * len(again), "a last round finds nothing to do"
    assert rounds == again * (len(rounds) // len(again))
    schedule = pipeline.plan(vit, keep=0.5, method="topk")
    steps = [f"{r.site.replace(':', '_')}-{r.reducer.name}" for r in schedule.reductions]
    assert passes_of(files, "reduce") == [*steps, *(p.name for p in reduce.PASSES)]
    lowered = passes_of(files, "lower")
    assert [name for name in (p.name for p in lower.PASSES) if name in lowered] == lowered
    assert ("to-half" in lowered) == (target != "cpu")
    texts = [Path("dump", name).read_text() for name in files]
    for text in texts:
        onnx.parser.parse_model(text)
    last, shipped = onnx.parser.parse_model(texts[-1]), onnx.load(str(built / "model.onnx"))
    assert [n.op_type for n in last.graph.node] == [n.op_type for n in shipped.graph.node]
    assert sum(map(len, texts)) < len(files) * 200_000


def test_a_dump_is_of_the_model_that_is_written(vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the dense one takes its place, of that."""

    def slower(*args: object, **options: object) -> object:
        found = measure(*args, **options)  # type: ignore[arg-type]
        return replace(found, faster=False)

    monkeypatch.setattr(building, "measure", slower)
    pipeline.build(vit, target="cpu", keep=0.5, method="topk", output="out", dump="dump")
    files = names(Path("dump"))
    assert passes_of(files, "normalize")
    assert passes_of(files, "reduce") == []


def test_a_foreign_folder_is_left_alone(vit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    Path("mine", "001-normalize-check.txt").write_text("of a dump")
    Path("mine", "thesis.tex").write_text("years of work")
    command = ("build", str(vit), "--target", "cpu", "--keep", "0.5", "-o", "out", "--dump")
    for folder, why in (("mine", "'thesis.tex'"), (str(vit), "not a directory")):
        refused = Command(capsys)(*command, folder)
        assert refused.code == 2
        assert folder in refused.err
        assert why in refused.err
    assert names(Path("mine")) == ["001-normalize-check.txt", "thesis.tex"]
    assert not Path("out").exists()


def test_a_dump_that_cannot_be_written_is_said(vit: Path) -> None:
    with pytest.raises(UsageError, match="cannot write the dump"):
        pipeline.build(vit, target="cpu", keep=0.5, output="out", dump=vit / "below")
    assert not Path("out").exists()


def test_the_option_writes_it(vit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("build", str(vit), "--target", "cpu", "--keep", "0.5", "--method", "topk")
    assert Command(capsys)(*command, "--dump", "new/dump").code == 0
    assert names(Path("new/dump"))[0] == "001-normalize-spell-group-norm.txt"
