"""`inspect --why`, `--prefix` and `plan --outputs`, and what `verify` rebuilds of them."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from tests.acceptance.cli.test_bad_input import dynamic_tokens
from tests.support.command import TOPK, Command
from tests.support.tiny_vit import VitSpec, save_tiny_vit


def test_why(tcompile: Command, vit: Path) -> None:
    node = tcompile("inspect", vit, "--json").json()["blocks"][1]["node"]
    shown = tcompile("inspect", vit, "--why", node)
    assert (shown.code, shown.err) == (0, "")
    assert "in the attention of block 1" in shown.out
    assert tcompile("inspect", vit, "--why", node, "--json").json()["block"] == 1


def test_why_of_nothing(tcompile: Command, vit: Path) -> None:
    refused = tcompile("inspect", vit, "--why", "Softmaxx")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.startswith("tcompile: error: --why: no node or tensor 'Softmaxx'")
    assert refused.err.count("\n") == 1


@pytest.fixture
def plain(vit: Path) -> Path:
    """A model without special tokens, in which a person may see some."""
    return save_tiny_vit(vit, VitSpec(prefix=0, pool="none"))


def test_a_stated_prefix_everywhere(tcompile: Command, plain: Path) -> None:
    stated = ("--prefix", "3")
    assert tcompile("inspect", plain, *stated, "--json").json()["prefix"] == 3
    planned = tcompile("plan", plain, *stated, *TOPK, "--keep", "0.5", "--json").json()
    assert planned["model"] == {"tokens": 16, "prefix": 3, "patches": 13, "blocks": 3}
    built = tcompile("build", plain, *stated, *TOPK, "--keep", "0.5", "--force", "-o", "out")
    assert built.code == 0, built.err
    assert json.loads(Path("out/manifest.json").read_text())["prefix"] == 3
    checked = tcompile("verify", "out", "--json").json()
    outcomes = {c["name"]: c["outcome"] for c in checked["checks"]}
    assert outcomes["numerics"] == "passed"


@pytest.mark.parametrize("prefix", ["-1", "16", "many"])
def test_a_prefix_that_cannot_be(tcompile: Command, plain: Path, prefix: str) -> None:
    refused = tcompile("inspect", plain, "--prefix", prefix)
    assert (refused.code, refused.out) == (2, "")
    assert "--prefix" in refused.err


@pytest.mark.parametrize("batch", ["batch", "2"])
def test_verify_rebuilds_what_a_shape_settled(tcompile: Command, vit: Path, batch: str) -> None:
    dynamic_tokens(vit)
    model = onnx.load(vit)
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.shape.dim[0].dim_param = "n"
    onnx.save(model, vit)
    shape = ("--shape", f"image={batch},3,32,32")
    built = tcompile("build", vit, *shape, *TOPK, "--keep", "0.5", "--force", "-o", "out")
    assert built.code == 0, built.err
    dims = [batch if batch == "batch" else 2, 3, 32, 32]
    assert json.loads(Path("out/manifest.json").read_text())["shapes"] == {"image": dims}
    checked = tcompile("verify", "out", "--json")
    assert checked.code == 0, checked.err
    outcomes = {c["name"]: c["outcome"] for c in checked.json()["checks"]}
    assert outcomes["numerics"] == "passed"


def test_a_size_that_the_file_settles_stays(tcompile: Command, vit: Path) -> None:
    for dims in ("2,3,32,32", "batch,3,32,32", "1,3,64,64"):
        refused = tcompile("inspect", vit, "--shape", f"image={dims}")
        assert (refused.code, refused.out) == (2, "")
        assert "in the file, not" in refused.err


def test_plan_with_restored_outputs(tcompile: Command, plain: Path) -> None:
    options = (*TOPK, "--keep", "0.5", "--json")
    restored = tcompile("plan", plain, *options, "--outputs", "restored")
    reduced = tcompile("plan", plain, *options)
    assert restored.json()["reductions"] == reduced.json()["reductions"]
    assert tcompile("plan", plain, *options, "--outputs", "some").code == 2


def test_names_of_any_length_stay_short_on_a_page(tcompile: Command, vit: Path) -> None:
    model = onnx.load(vit)
    long = "n" * 20_000
    for node in model.graph.node:
        node.name = f"{node.name}_{long}"
        for i, name in enumerate(node.output):
            node.output[i] = f"{name}_{long}"
        for i, name in enumerate(node.input):
            made = any(f"{name}_{long}" in n.output for n in model.graph.node)
            node.input[i] = f"{name}_{long}" if made else name
        if node.op_type == "Erf":
            node.op_type = "Shrink"  # no op that is known: named in every reason
    model.graph.output[0].name += f"_{long}"
    del model.graph.value_info[:]
    onnx.save(model, vit)
    shown = tcompile("inspect", vit)
    assert shown.code == 0
    assert max(map(len, shown.out.splitlines())) < 1_500
    for command in (("plan", vit, *TOPK, "--keep", "0.5"), ("inspect", vit, "--why", long)):
        refused = tcompile(*command)
        assert refused.code == 2
        assert len(refused.err) < 1_300
