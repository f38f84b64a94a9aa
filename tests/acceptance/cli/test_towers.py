"""`--tower`: one of several encoders or passes loses tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.command import TOPK, Command
from tests.support.many_towers import Encoder, Pair, export, stirred


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An encoder without special tokens on two images, `pair.onnx`, in the current directory."""
    monkeypatch.chdir(tmp_path)
    return export(stirred(Pair(Encoder(prefix=0), mean=True, tokens=True)), Path("pair.onnx"))


def test_a_chosen_tower_everywhere(tcompile: Command, pair: Path) -> None:
    one = ("--tower", "right")
    found = tcompile("inspect", pair, *one, "--json").json()
    assert [(t["tower"], t["reduced"]) for t in found["towers"]] == [
        ("right", True),
        ("left", False),
    ]
    planned = tcompile("plan", pair, *one, *TOPK, "--keep", "0.5", "--json").json()
    assert planned["tower"] == "right"
    Path("s.json").write_text(json.dumps(planned))
    built = tcompile(
        "build", pair, "--target", "cpu", "--schedule", "s.json", "--force", "-o", "out"
    )
    assert built.code == 0, built.err
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert manifest["schedule"]["tower"] == "right"
    assert "tower 'left' stays dense: 'right' was chosen" in manifest["notes"]
    checked = tcompile("verify", "out", "--json").json()
    outcomes = {c["name"]: c["outcome"] for c in checked["checks"]}
    assert outcomes["numerics"] == "passed"
    layers = tcompile("verify", "out", "--layers", "--json").json()["layers"]
    named = [row["layer"] for row in layers if "block" in row["layer"]]
    assert named[0].partition(", block 0, ")[0] in ("left", "right")
    assert {name.partition(",")[0] for name in named} == {"left", "right"}
    assert len(set(named)) == len(named)
    shape = {o["name"]: o["shape"] for o in manifest["outputs"]}
    assert (shape["out2"], shape["out3"]) == ([1, 16, 32], [1, 8, 32])


@pytest.mark.parametrize("command", ["inspect", "plan", "build", "profile"])
def test_no_such_tower(tcompile: Command, pair: Path, command: str) -> None:
    more = {
        "inspect": (),
        "plan": (*TOPK, "--keep", "0.5"),
        "build": (*TOPK, "--keep", "0.5", "-o", "out"),
        "profile": ("--target", "rtx-4090"),
    }[command]
    refused = tcompile(command, pair, *more, "--tower", "up")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.startswith("tcompile: error: --tower: no tower 'up'")
    assert "left, right" in refused.err
    assert not Path("out").exists()


def test_a_stated_prefix_is_that_of_every_tower(tcompile: Command, pair: Path) -> None:
    planned = tcompile("plan", pair, *TOPK, "--keep", "0.5", "--prefix", "4", "--json").json()
    assert planned["model"]["patches"] == 12
    assert [t["model"]["patches"] for t in planned["towers"]] == [12]
    assert planned["towers"][0]["reductions"][-1]["keep"] == 6
