"""The planner's options on the command line, by profiles that were made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tcompile.artifact.manifest import Fidelity, Latency
from tcompile.builder.checks import Evidence
from tcompile.pipeline import building
from tests.acceptance.cli.test_bad_input import listing, refused
from tests.support.command import Command
from tests.support.planted import Planted, method, model

PLANTED = Planted()


@pytest.fixture
def profiled(vit: Path) -> Path:
    """p.json: a profile of vit.onnx under the methods that `auto` tries."""
    given = model()
    methods = [method(given, name) for name in ("topk", "evit", "tome", "pomt")]
    Path("p.json").write_text(json.dumps(PLANTED.profile(given, methods).to_json()))
    return vit


def test_help_tells_of_them(tcompile: Command) -> None:
    for command in ("plan", "build"):
        shown = tcompile(command, "--help").out
        for option in (
            "--latency",
            "--max-drop",
            "--objective",
            "--profile",
            "--calibration",
            "--losses",
            "--images",
            "--exact",
            "--batch",
            "--threads",
            "--seed",
        ):
            assert option in shown, (command, option)
        assert "[default: auto]" in " ".join(shown.split())
    assert "--refine" in tcompile("build", "--help").out
    assert "--plot" in tcompile("plan", "--help").out


def test_plan_for_people(tcompile: Command, profiled: Path) -> None:
    dense = PLANTED.dense(model())
    asked = ["plan", profiled, "--target", "cpu", "--latency", f"{0.7 * dense:.3f}"]
    asked += ["--profile", "p.json"]
    shown = tcompile(*asked)
    assert (shown.code, shown.err) == (0, "")
    assert "method tome" in shown.out
    assert "plateau" in shown.out
    assert f"dense {dense:.4g} ms" in shown.out
    assert "predicted latency: " in shown.out
    assert "profile: measured, " in shown.out
    assert "measured latency" not in shown.out
    assert "measured on 32 procedural scenes" in shown.out
    assert "memory, predicted: weights " in shown.out
    unseen = tcompile(*asked, "--calibration", "none")
    assert "a documented prior" in unseen.out


@pytest.mark.parametrize("budget", [("--keep", "0.5"), ("--latency", "40")])
def test_json_has_the_plan_and_is_a_schedule(
    tcompile: Command, profiled: Path, budget: tuple[str, str]
) -> None:
    told = tcompile("plan", profiled, "--target", "cpu", *budget, "--profile", "p.json", "--json")
    assert told.code == 0, told.err
    document = told.json()
    plan = document["plan"]
    assert plan["predicted_ms"] < plan["dense_ms"] == pytest.approx(PLANTED.dense(model()))
    assert [s["site"] for s in plan["steps"]] == [r["site"] for r in document["reductions"]]
    assert [s["after"] - 1 for s in plan["steps"]] == [r["keep"] for r in document["reductions"]]
    assert plan["latency_kind"] == "measured"
    memory, size = document["memory"], profiled.stat().st_size
    assert 0.8 * size < memory["dense"]["weights"] < size
    assert memory["dense"]["activations"] > 0
    assert (memory["batch"], memory["device"], memory["file"]) == (1, None, None)
    (chosen,) = (point for point in plan["front"] if point["chosen"])
    assert (chosen["latency_ms"], chosen["loss"]) == (plan["predicted_ms"], plan["loss"])
    assert (chosen["precision"], chosen["seen_in"]) == ("fp32", "fp32")
    assert chosen["patches"] == document["reductions"][-1]["keep"]
    (dense,) = (point for point in plan["front"] if point["method"] == "dense")
    assert (dense["latency_ms"], dense["loss"]) == (plan["dense_ms"], 0)
    name = {"--keep": "keep", "--latency": "latency_ms"}[budget[0]]
    assert float(plan["budget"][name]) == float(budget[1])
    Path("s.json").write_text(told.out)
    built = tcompile(
        "build",
        profiled,
        "--target",
        "cpu",
        "--schedule",
        "s.json",
        "--force",
        "-o",
        "out",
        "--json",
    )
    assert built.code == 0, built.err
    assert built.json()["manifest"]["schedule"]["reductions"] == document["reductions"]


def test_build_says_how_it_was_planned(tcompile: Command, profiled: Path) -> None:
    built = tcompile(
        "build",
        profiled,
        "--target",
        "cpu",
        "--keep",
        "0.5",
        "--profile",
        "p.json",
        "--force",
        "-o",
        "out",
        "--json",
    )
    assert built.code == 0, built.err
    manifest = built.json()["manifest"]
    plan, report = manifest["plan"], Path("out/report.md").read_text()
    assert plan["latency_kind"] == "measured"
    assert manifest["schedule"]["reductions"]
    assert "asked 0.50 (8 of 16 patch tokens), kept 0.50 (8)" in report
    # A prediction is told where it was wrong, which depends on the machine.
    assert ("were predicted" in report) == (abs(plan["measured_off"]) > plan["band"])


def test_dense_within_a_budget_is_said_first(tcompile: Command, profiled: Path) -> None:
    asked = ("plan", profiled, "--target", "cpu", "--latency", "1000", "--profile", "p.json")
    shown = tcompile(*asked)
    assert shown.code == 0
    assert shown.out.startswith("this is the dense model: its ")
    assert "method none" in shown.out
    assert "No token leaves" in shown.out
    document = tcompile(*asked, "--json").json()
    assert (document["emitted"], document["reason"]) == ("dense", "budget")
    assert document["asked"] is None


def test_asked_kept_and_why_come_first(tcompile: Command, vit: Path) -> None:
    """On a GPU whose model has this tiny one no faster with fewer tokens, in `plan`, `build`, their
    JSON, the manifest and the report."""
    for extra in ((), ("--exact", "--calibration", "none"), ("--method", "topk")):
        asked = (vit, "--target", "jetson-orin", "--keep", "0.6", *extra)
        shown = tcompile("plan", *asked)
        assert shown.code == 0, shown.err
        line = "asked 0.60 (10 of 16 patch tokens), kept 0.62 (10), because that is what was asked"
        free = "--exact" not in extra and extra == ()
        if free:
            line = "asked 0.60 (10 of 16 patch tokens), kept 0."
        assert shown.out.startswith(line), shown.out
        if "--exact" in extra:
            assert "(--exact)" in shown.out.splitlines()[0]
        assert "a modelled profile predicts" in shown.out
        assert "profile: modelled, " in shown.out
        if free:
            built = tcompile("build", *asked, "-o", "out")
            assert built.code == 0, built.err
            assert built.out.splitlines()[0] == shown.out.splitlines()[0]
        told = tcompile("build", *asked, "-o", "out", "--force", "--json").json()
        assert told["emitted"] == told["manifest"]["emitted"] == "reduced"
        assert told["manifest"]["reason"] in ("exact", "asked", *(["plateau"] if free else []))
        assert told["manifest"]["asked"] == {"keep": 0.6, "patches": 10, "of": 16}
        assert told["manifest"]["kept"]["patches"] in ((10, 11) if free else (10,))
        assert told["manifest"]["plan"]["budget"]["keep"] == 0.6
        report = Path("out/report.md").read_text().splitlines()
        assert report[2].startswith(shown.out.splitlines()[0])


def test_a_declined_build_says_so_first(
    tcompile: Command, vit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured on the target to take longer: dense, exit code 0, and which schedule was tried."""
    slow = Evidence(
        Fidelity("planted", 1, ()),
        tuple(
            Latency(m, "measured", ms, "here", "it")  # type: ignore[arg-type]
            for m, ms in (("dense", 20.0), ("reduced", 21.0))
        ),
        (),
        False,
    )
    monkeypatch.setattr(building, "measure", lambda *_, **__: slow)
    asked = ("build", vit, "--target", "cpu", "--method", "topk", "--keep", "0.6", "-o", "out")
    shown = tcompile(*asked, "-v")
    assert shown.code == 0
    assert shown.out.startswith(
        "this is the dense model: the reduced model (topk, 10 of 16 patch "
        "tokens) was measured slower than dense here, 21 ms against 20 ms"
    )
    words = " ".join(shown.out.split())
    assert words.count("dense, measured") == 1
    assert "topk, measured 21 ms; tried, not emitted" in words
    assert "reduced, measured" not in words
    told = tcompile(*asked, "--json", "--force").json()
    assert told["emitted"] == "reduced"
    forced = tcompile(*asked, "--force", "-v")
    assert "the reduced model was measured slower than dense here" in forced.out.splitlines()[1]
    assert "reduced, measured" in forced.out


def test_a_plan_drawn(tcompile: Command, profiled: Path) -> None:
    pytest.importorskip("matplotlib")
    shown = tcompile(
        "plan",
        profiled,
        "--target",
        "cpu",
        "--keep",
        "0.5",
        "--profile",
        "p.json",
        "--plot",
        "plan.svg",
    )
    assert shown.code == 0, shown.err
    for name in ("latency", "depth", "front"):
        assert Path(f"plan-{name}.svg").read_text().lstrip().startswith("<?xml")
        assert f"wrote plan-{name}.svg" in shown.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--latency", "-1"], ["--latency", "not a budget"]),
        (["--latency", "0"], ["--latency"]),
        (["--latency", "nan"], ["--latency"]),
        (["--latency", "fast"], ["--latency", "fast"]),
        (["--latency", "0.001", "--profile", "p.json"], ["no plan takes at most 0.001 ms"]),
        (["--max-drop", "0.1"], ["--max-drop", "needs images"]),
        (["--max-drop", "1.5", "--calibration", "i.npz"], ["--max-drop", "less than 1"]),
        (["--max-drop", "0.1", "--calibration", "none.npz", "--profile", "p.json"], ["none.npz"]),
        (["--objective", "pomt"], ["pomt", "--calibration"]),
        (
            [
                "--objective",
                "pomt",
                "--keep",
                "0.5",
                "--calibration",
                "i.npz",
                "--profile",
                "p.json",
            ],
            ["picks the count by itself"],
        ),
        (["--objective", "speed", "--keep", "0.5"], ["--objective"]),
        (["--keep", "0.5", "--profile", "nothing.json"], ["nothing.json"]),
        (["--keep", "0.5", "--profile", "damaged.json"], ["damaged.json", "not a profile"]),
        (["--keep", "0.5", "--profile", "other.json"], ["does not have", "tcompile profile"]),
        (["--schedule", "s.json", "--latency", "5"], ["--latency", "--schedule"]),
        (["--schedule", "s.json", "--keep", "0.5"], ["--keep", "--schedule"]),
        (["--exact"], ["--exact", "say --keep R"]),
        (["--exact", "--method", "tome:r=2"], ["--exact", "none is given"]),
        (["--keep", "0.5", "--method", "auto:x=1"], ["auto has no parameters"]),
        (["--latency", "5", "--method", "bypass"], ["cannot be planned"]),
        (["--latency", "5", "--method", "tomme"], ["did you mean 'tome'"]),
        (["--keep", "0.5", "--images", "0"], ["--images"]),
        (["--keep", "0.5", "--batch", "0"], ["--batch"]),
        (["--keep", "0.5", "--threads", "none"], ["--threads"]),
        (["--keep", "0.5", "--losses", "none"], ["--losses"]),
    ],
)
@pytest.mark.parametrize("command", ["plan", "build"])
def test_bad_values(
    tcompile: Command, profiled: Path, command: str, arguments: list[str], words: list[str]
) -> None:
    """Exit code 2, one line, nothing written."""
    document = json.loads(Path("p.json").read_text())
    Path("other.json").write_text(json.dumps({**document, "halves": {}}))
    Path("damaged.json").write_text(Path("p.json").read_text()[:200])
    Path("s.json").write_text("{}")
    np.savez("i.npz", image=np.zeros((4, 3, 32, 32), np.float32))
    before = listing()
    refused(tcompile(command, profiled, "--target", "cpu", *arguments), *words)
    assert listing() == before


def test_only_a_solved_plan_is_drawn(tcompile: Command, vit: Path) -> None:
    before = listing()
    shown = tcompile(
        "plan", vit, "--target", "cpu", "--keep", "0.5", "--method", "topk", "--plot", "p.png"
    )
    assert shown.code == 2
    assert "only a solved schedule" in shown.err
    assert listing() == before
