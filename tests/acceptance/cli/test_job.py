"""The main job through the command line, on a tiny model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest

import tcompile as package
from tests.support.command import TOPK, Command
from tests.support.tiny_vit import VitSpec, save_tiny_vit

SCHEMA = json.loads((Path(package.__file__).parent / "manifest.schema.json").read_text())


def build(tcompile: Command, *more: object) -> dict[str, object]:
    """Build for the CPU and return the JSON document; `-o out` unless told.

    A model so tiny may be no faster reduced: `--force` keeps it.
    """
    where = [] if "-o" in more else ["-o", "out"]
    how = TOPK[:2] if {"--method", "--schedule"} & set(more) else TOPK
    made = tcompile("build", "vit.onnx", "--json", "--force", *how, *where, *more)
    assert (made.code, made.err) == (0, ""), made
    document: dict[str, object] = made.json()
    return document


def test_build_writes_what_it_says(tcompile: Command, vit: Path) -> None:
    document = build(tcompile, "--keep", "0.6")
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert document == {
        "artifact": str(Path("out").resolve()),
        "emitted": manifest["emitted"],
        "manifest": manifest,
    }
    jsonschema.validate(manifest, SCHEMA, cls=jsonschema.Draft202012Validator)
    # 16 patches: ceil(9.6) stay, and CLS.
    assert manifest["tokens_per_block"][-1]["mlp"] == 11
    assert manifest["flops"]["reduced"] < manifest["flops"]["dense"]
    memory = manifest["memory"]
    assert memory["file"] == Path("out/model.onnx").stat().st_size
    assert 0.8 * memory["file"] < memory["reduced"]["weights"] < memory["file"]
    assert {f["kind"] for f in manifest["latency"]} == {"measured"}
    onnx.checker.check_model("out/model.onnx", full_check=True)
    assert sorted(p.name for p in Path().iterdir()) == ["out", "vit.onnx"]


def test_batch_sizes_of_an_engine(tcompile: Command, vit: Path) -> None:
    """Asked with a batch of 16 the bundle once said 8; a fixed batch takes no sizes."""
    save_tiny_vit(Path("free.onnx"), batch=None)
    asked = ("build", "free.onnx", "--target", "jetson-orin", "--method", "topk", "--keep", "0.5")
    made = tcompile(*asked, "--batch", 16, "--min-batch", 4, "--max-batch", 32, "-o", "out", "-v")
    assert made.code == 0, made
    assert "4 to 32, tuned for 16" in made.out
    assert "--maxShapes=image:32x3x32x32" in Path("out/trtexec.json").read_text()
    assert tcompile(*asked, "--batch", 16, "-o", "more").code == 0
    assert "--maxShapes=image:16x3x32x32" in Path("more/build_engine.sh").read_text()
    for wrong in (("--max-batch", 0), ("--min-batch", 9, "--max-batch", 8), ("--opt-batch", "x")):
        refused = tcompile(*asked, *wrong, "-o", "none")
        assert refused.code == 2
        assert "-batch" in refused.err
    fixed = tcompile("build", vit, *TOPK, "--keep", "0.5", "--opt-batch", 4, "-o", "none")
    assert fixed.code == 2
    assert "--opt-batch 4 needs a model with a free batch" in fixed.err
    assert not Path("none").exists()


def test_build_for_people(tcompile: Command, vit: Path) -> None:
    made = tcompile("build", vit, *TOPK, "--force", "--keep", "0.5")
    assert (made.code, made.err) == (0, "")
    assert "vit-cpu" in made.out
    assert "measured" in made.out
    assert Path("vit-cpu/report.md").exists()


def test_progress_goes_to_stderr(tcompile: Command, vit: Path) -> None:
    quiet = tcompile("build", vit, *TOPK, "--force", "--keep", "0.5", "--json")
    told = tcompile("build", vit, *TOPK, "--force", "--keep", "0.5", "--json", "-v")
    assert (quiet.err, told.err) == ("", "")
    stages = [line.partition("] ")[2] for line in quiet.log.splitlines()]
    assert stages == [
        "reading vit.onnx",
        "reducing",
        "checking the normal form against the source",
        "checking the lowered model against the reduced one",
        "emitting for cpu",
        "measuring",
        "writing checks for polygraphy",
        "done",
    ]
    assert "reading vit.onnx" in told.log
    assert told.json()["manifest"]["schedule"] == quiet.json()["manifest"]["schedule"]


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_a_plan_is_a_schedule(tcompile: Command, vit: Path, suffix: str) -> None:
    planned = tcompile("plan", vit, "--target", "cpu", "--method", "tome:r=2", "--json")
    assert planned.code == 0
    assert sorted(p.name for p in Path().iterdir()) == ["vit.onnx"]
    text = planned.out
    if suffix == "yaml":
        yaml = pytest.importorskip("yaml")
        text = yaml.safe_dump(planned.json())
    Path(f"s.{suffix}").write_text(text)
    by_schedule = build(tcompile, "--schedule", f"s.{suffix}")
    by_method = build(tcompile, "--method", "tome:r=2", "-o", "other")
    assert Path("out/model.onnx").read_bytes() == Path("other/model.onnx").read_bytes()
    told = planned.json()
    assert told["cost"]["nodes_added"] > 0
    schedule = {k: told[k] for k in by_method["manifest"]["schedule"]}  # type: ignore[index]
    for document in (by_schedule, by_method):
        assert document["manifest"]["schedule"] == schedule  # type: ignore[index]


def test_a_schedule_edited_by_hand(tcompile: Command, vit: Path) -> None:
    schedule = tcompile("plan", vit, *TOPK, "--keep", "0.6", "--json").json()
    schedule["reductions"][0]["keep"] = 5
    Path("s.json").write_text(json.dumps(schedule))
    manifest = build(tcompile, "--schedule", "s.json")["manifest"]
    assert manifest["tokens_per_block"][-1]["mlp"] == 6  # type: ignore[index]


def test_plan_for_people(tcompile: Command, vit: Path) -> None:
    shown = tcompile("plan", vit, *TOPK, "--keep", "0.6").out
    assert "method topk" in shown
    assert "patch tokens kept" in shown
    assert "no token leaves" in tcompile("plan", vit, *TOPK, "--keep", "1").out.lower()


def test_keep_is_exact(tcompile: Command, tmp_path: Path) -> None:
    """0.07 x 100 is 7.000000000000001 to a float, and 7 to everyone else."""
    save_tiny_vit(tmp_path / "v.onnx", VitSpec(image=80))
    planned = tcompile("plan", tmp_path / "v.onnx", *TOPK, "--keep", "0.07", "--json")
    assert planned.json()["reductions"][-1]["keep"] == 7


def test_inspect(tcompile: Command, vit: Path) -> None:
    found = tcompile("inspect", vit, "--json").json()
    assert (found["tokens"], found["prefix"], found["grid"]) == (17, 1, [4, 4])
    assert "17 = 1 prefix" in tcompile("inspect", vit).out


def test_verify(tcompile: Command, vit: Path) -> None:
    build(tcompile, "--keep", "0.6")
    checked = tcompile("verify", "out")
    assert (checked.code, checked.err) == (0, "")
    found = tcompile("verify", "out", "--samples", "3", "--json").json()
    assert found["passed"]
    outcomes = {c["name"]: c["outcome"] for c in found["checks"]}
    assert outcomes == {
        "files": "passed",
        "finite": "passed",
        "numerics": "passed",
        "fused attention": "skipped",
    }
    assert found["numerics"]["token_overlap"] == 1
    assert found["fidelity"]["samples"] == 3


def test_verify_fails_in_one_line(tcompile: Command, vit: Path) -> None:
    build(tcompile, "--keep", "0.6")
    with Path("out/report.md").open("a") as stream:
        stream.write("and all was well")
    failed = tcompile("verify", "out")
    assert failed.code == 1
    assert failed.err == "tcompile: error: out: files: not as they were written: report.md\n"
    document = tcompile("verify", "out", "--json")
    assert (document.code, document.json()["passed"]) == (1, False)


def test_data_that_is_wrong_is_the_users_fault(tcompile: Command, vit: Path) -> None:
    """A key that is no input's, NaN, and pixels of unknown range, wherever data is read."""
    good = np.zeros((4, 3, 32, 32), np.float32)
    nan = good.copy()
    nan[2, 1, 0, 5] = np.nan
    np.savez("key.npz", imgae=good)
    np.savez("nan.npz", image=nan)
    build(tcompile, "--keep", "0.5")
    for file, says in (
        (
            "key.npz",
            "key.npz: has 'imgae', which the model has no input for; the model takes 'image'",
        ),
        ("nan.npz", "nan.npz: 'image' has nan at [2, 1, 0, 5]"),
    ):
        for command in (
            ("run", "out", "--input", file),
            ("verify", "out", "--data", file),
            (
                "plan",
                vit,
                "--target",
                "cpu",
                "--keep",
                "0.5",
                "--method",
                "fitprune",
                "--calibration",
                file,
            ),
            (
                "build",
                vit,
                *TOPK,
                "--keep",
                "0.5",
                "--max-drop",
                "0.5",
                "--profile",
                "model",
                "--calibration",
                file,
                "-o",
                "none",
            ),
        ):
            refused = tcompile(*command)
            assert refused.code == 2, (command, refused)
            assert says in refused.err, command
    assert not Path("none").exists()


def test_bench(tcompile: Command, vit: Path) -> None:
    build(tcompile, "--keep", "0.6")
    found = tcompile("bench", "out", "--rounds", "5", "--threads", "1", "--json").json()
    assert found["kind"] == "measured"
    assert found["speedup"]["lower"] <= found["speedup"]["ratio"] <= found["speedup"]["upper"]
    assert found["flop_ideal"] > 1
    memory, predicted = found["memory"], found["memory_predicted"]
    if sys.platform == "linux":
        assert memory.keys() == {"dense", "reduced"}
        for name, one in memory.items():
            assert sum(predicted[name].values()) < one["running"] < one["peak"]
    shown = tcompile("bench", "out", "--rounds", "5").out
    assert "speed-up" in shown
    assert ("predicted at least" in shown) == bool(memory)
    Path("vit.onnx").rename("moved.onnx")
    lost = tcompile("bench", "out")
    assert lost.code == 2
    assert "--against" in lost.err
    assert tcompile("bench", "out", "--rounds", "5", "--against", "moved.onnx").code == 0


def test_run_on_arrays(tcompile: Command, vit: Path) -> None:
    build(tcompile, "--keep", "0.6")
    np.save("x.npy", np.random.default_rng(0).standard_normal((2, 3, 32, 32)))
    for model in ("out", "vit.onnx"):
        (out,) = tcompile("run", model, "--input", "x.npy", "--top", "3", "--json").json()[
            "outputs"
        ]
        assert (out["name"], out["shape"]) == ("logits", [2, 10])
        assert [len(top) for top in out["top"]] == [3, 3]
        logits = [c["logit"] for c in out["top"][0]]
        assert logits == sorted(logits, reverse=True)
    assert "softmax" in tcompile("run", "out", "--input", "x.npy").out


def test_outputs_restored(tcompile: Command, vit: Path) -> None:
    save_tiny_vit(vit, VitSpec(pool="none"))
    for mode, names in (("reduced", ["tokens", "token_index"]), ("restored", ["tokens"])):
        made = build(tcompile, "--keep", "0.6", "--outputs", mode)["manifest"]
        assert [t["name"] for t in made["outputs"]] == names  # type: ignore[index]
        assert tcompile("verify", "out").code == 0


def test_export(tcompile: Command, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    made = tcompile(
        "export",
        "zoo:glyphs",
        "--random-weights",
        "-o",
        tmp_path / "g.onnx",
        "--exporter",
        "torchscript",
        "--json",
    )
    assert made.code == 0, made.err
    assert made.json()["exporter"] == "torchscript"
    assert (tmp_path / "g.onnx").exists()


def test_a_free_size_is_settled_by_shape(tcompile: Command, vit: Path) -> None:
    from tests.acceptance.cli.test_bad_input import dynamic_tokens

    dynamic_tokens(vit)
    refused = tcompile("inspect", vit)
    assert refused.code == 2
    assert "--shape" in refused.err
    shape = ("--shape", "image=1,3,32,32")
    assert tcompile("inspect", vit, *shape, "--json").json()["patches"] == 16
    assert tcompile("plan", vit, *shape, *TOPK, "--keep", "0.5").code == 0
    build(tcompile, "--keep", "0.5", *shape)
    assert tcompile("verify", "out").code == 0


@pytest.mark.parametrize("shape", ["32", "image=", "image=1,,3", "other=1,3,32,32", "image=1,3"])
def test_a_shape_that_makes_no_sense(tcompile: Command, vit: Path, shape: str) -> None:
    refused = tcompile("inspect", vit, "--shape", shape)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.count("\n") == 1
