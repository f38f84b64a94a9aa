"""`tcompile profile`: measured, modelled, imported, compared; and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tcompile as package
from tcompile.planning.options.method_tables import PORTFOLIO
from tcompile.profiling import measure, sessions
from tcompile.profiling.measure import Effort
from tcompile.profiling.profile import ModelledProfile, read_profile
from tests.acceptance.cli.test_bad_input import refused
from tests.support.command import Command
from tests.support.profiling import trtexec_times


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCOMPILE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def campaigns(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Campaigns of one round each; how many methods each was of."""
    found: list[int] = []
    real = measure.measure

    def short(dense: Any, analysis: Any, methods: Any, runtime: Any, **named: Any) -> Any:
        found.append(len(methods))
        named["effort"] = Effort(seconds=0.0, rounds=2, least=0.0)
        return real(dense, analysis, methods, runtime, **named)

    monkeypatch.setattr(measure, "measure", short)
    monkeypatch.setattr(measure, "_FIRST_SECONDS", 0.0)
    monkeypatch.setattr(sessions.gc, "collect", lambda: 0)
    return found


def test_a_device_that_is_not_here_is_modelled_and_said_so(tcompile: Command, vit: Path) -> None:
    made = tcompile(
        "profile", vit, "--target", "jetson-orin-nano", "-o", "p.json", "--plot", "p.svg"
    )
    assert made.code == 0, made
    assert made.err.startswith("tcompile: note: modelled: ")
    assert made.err.count("\n") == 1
    assert "tokens throughout" in made.out
    assert "modelled, Jetson Orin Nano" in made.out
    assert "docs/roofline.md" in made.out
    found = read_profile("p.json")
    assert isinstance(found, ModelledProfile)
    assert set(found.reducers) == set(PORTFOLIO)
    assert b"<svg" in Path("p.svg").read_bytes()


def test_asked_for_a_model_there_is_no_note(tcompile: Command, vit: Path) -> None:
    made = tcompile(
        "profile",
        vit,
        "--target",
        "rtx-4090",
        "--modelled",
        "--method",
        "topk",
        "--json",
        "--precision",
        "int8",
    )
    assert (made.code, made.err) == (0, "")
    document = made.json()
    assert document["kind"] == "modelled"
    assert document["conditions"]["precision"] == "int8"
    assert list(document["reducers"]) == ["topk"]
    assert document["notes"] == []


def test_measured_once_and_found_again(tcompile: Command, vit: Path, campaigns: list[int]) -> None:
    arguments = ("profile", vit, "--target", "cpu", "--method", "topk", "--json", "--threads", 1)
    first = tcompile(*arguments)
    assert first.code == 0, first
    assert first.json()["kind"] == "measured"
    assert campaigns == [1]
    assert tcompile(*arguments).json() == first.json()
    assert campaigns == [1], "from the cache"
    # Another method is measured and put together with what was there.
    both = tcompile(*arguments, "--method", "evit").json()
    assert campaigns == [1, 1]
    assert set(both["reducers"]) == {"topk", "evit"}
    assert tcompile(*arguments, "--fresh").code == 0
    assert campaigns == [1, 1, 1]


def test_a_table_of_others_and_steps_of_a_method(tcompile: Command, vit: Path) -> None:
    Path("t.csv").write_text("tokens,ms\n5,2\n9,2.5\n17,6\n")
    Path("s.csv").write_text("17,9,0.25\n")
    made = tcompile(
        "profile",
        vit,
        "--target",
        "t4",
        "--import",
        "t.csv",
        "--import",
        "topk=s.csv",
        "--method",
        "topk",
        "-o",
        "p.json",
    )
    assert (made.code, made.err) == (0, "")
    assert "measured, " in made.out
    assert "FLOPs" in made.out
    assert "0.25 ms" in made.out
    assert read_profile("p.json").dense.ms == 6.0  # type: ignore[union-attr]


def test_a_table_from_a_busy_machine_claims_no_plateaus(tcompile: Command, vit: Path) -> None:
    """7 tokens 2.2 ms, 9 tokens 1.9 ms: the fit does not fall, the figures stay, all say so."""
    Path("t.csv").write_text("tokens,ms\n3,1\n5,1.5\n7,2.2\n9,1.9\n11,2.6\n13,3\n15,3.5\n17,4\n")
    asked = ("profile", vit, "--target", "t4", "--import", "t.csv", "--method", "topk")
    made = tcompile(*asked, "-o", "p.json", "--plot", "p.svg")
    assert made.code == 0
    assert "no plateaus are claimed: spread 20 % exceeds the largest step" in made.out
    assert "measured on a busy machine?" in made.out
    assert " to " not in made.out.split("one step of")[0], "no column of plateaus"
    picture = Path("p.svg").read_text()
    assert "no plateaus: spread 20 %" in " ".join(picture.split())
    assert "plateau, right edge" not in picture
    document = tcompile(*asked, "--json").json()
    assert document["claims_plateaus"] is False
    assert document["why_no_plateaus"].startswith("spread 20 % exceeds")
    half = next(iter(document["halves"].values()))
    measured, fitted = [row[1] for row in half], [row[5] for row in half]
    assert measured[2] > measured[3], "as it was given"
    whole = package.profile(vit, target="t4", imports=["t.csv"], methods=["topk"]).totals
    assert list(whole.ms) == sorted(whole.ms)
    assert whole.raw[2] > whole.raw[3]
    assert fitted != measured


def test_a_table_of_a_staircase_claims_them(tcompile: Command, vit: Path) -> None:
    table = ((3, 2.0), (5, 2.0), (7, 2.01), (9, 3.0), (11, 3.01), (13, 3.0), (17, 4.0))
    rows = [f"{n},{ms},{ms * 0.99},{ms * 1.01}" for n, ms in table]
    Path("t.csv").write_text("\n".join(rows))
    asked = ("profile", vit, "--target", "t4", "--import", "t.csv", "--method", "topk")
    assert "plateau" in tcompile(*asked).out
    assert tcompile(*asked, "--json").json()["claims_plateaus"] is True
    assert "no plateaus" not in tcompile(*asked).out


def test_files_of_trtexec(tcompile: Command, vit: Path) -> None:
    Path("a.json").write_text(json.dumps(trtexec_times()))
    made = tcompile(
        "profile",
        vit,
        "--target",
        "t4",
        "--import",
        "17=a.json",
        "--import",
        "9=a.json",
        "--method",
        "topk",
        "--json",
    )
    assert made.code == 0
    assert made.json()["conditions"]["runtime"] == "TensorRT, trtexec"
    assert made.json()["dense"][3] == 21


def test_held_against_another(tcompile: Command, vit: Path) -> None:
    one = ("profile", vit, "--modelled", "--method", "topk")
    tcompile(*one, "--target", "t4", "-o", "t4.json")
    made = tcompile(*one, "--target", "rtx-4090", "--against", "t4.json")
    assert made.code == 0
    assert "Compared: modelled over modelled" in made.out
    assert "device: GeForce RTX 4090 / " in made.out
    document = tcompile(*one, "--target", "t4", "--against", "t4.json", "--json").json()
    ratios = [row["median_ratio"] for row in document["against"]["parts"]]
    assert ratios == pytest.approx([1.0] * len(ratios), rel=1e-3)
    assert len(ratios) == 6


def test_help_is_true_of_defaults_and_seconds(tcompile: Command) -> None:
    told = " ".join(tcompile("profile", "--help").out.split())
    default = told.split("may be given several times [default: ")[1].split("]")[0]
    assert all(name in default for name in PORTFOLIO)
    assert "the whole command may take" in told
    assert "in any case" in told


def test_it_is_a_function_too(vit: Path) -> None:
    made = package.profile(vit, target="t4", modelled=True, methods=["evit"])
    assert made.profile.kind == "modelled"
    assert made.totals.counts[-1] == 17
    assert made.totals.ms[-1] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--target", "t5"), ("unknown target", "t5")),
        (("--target", "cpu", "--precision", "fp16"), ("--precision", "fp32")),
        (("--target", "t4", "--precision", "fp8"), ("--precision", "fp16")),
        (("--target", "t4", "--plot", "p.pdf"), ("p.pdf", ".svg")),
        (("--target", "t4", "--plot", "no/p.svg"), ("no",)),
        (("--target", "t4", "--method", "nothing"), ("nothing",)),
        (("--target", "t4", "--method", "tomesd"), ("tomesd", "cannot be planned")),
        (("--target", "t4", "--against", "absent.json"), ("absent.json",)),
        (("--target", "t4", "--import", "absent.csv"), ("absent.csv",)),
        (("--target", "t4", "--import", "bad.csv"), ("bad.csv, line 2",)),
        (("--target", "t4", "--import", "17=bad.csv", "--import", "9=bad.csv"), ("bad.csv",)),
        (("--target", "t4", "--import", "17=bad.csv"), ("two token counts",)),
        (("--target", "t4", "--import", "good.csv", "--modelled"), ("--import",)),
        (("--target", "t4", "--import", "good.csv", "--import", "17=a"), ("--import",)),
        (
            (
                "--target",
                "t4",
                "--import",
                "good.csv",
                "--import",
                "evit=steps.csv",
                "--method",
                "topk",
            ),
            ("evit",),
        ),
        (("--target", "t4", "--modelled", "--method", "topk", "-o", "no/p.json"), ("no/p.json",)),
        (("--target", "t4", "--batch", "0"), ("--batch",)),
    ],
)
def test_bad_requests(
    tcompile: Command, vit: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    Path("bad.csv").write_text("17,3\nnine,2\n")
    Path("good.csv").write_text("17,3\n9,2\n")
    Path("steps.csv").write_text("17,9,1\n")
    before = {p.name for p in Path().iterdir()}
    refused(tcompile("profile", vit, *arguments), *words)
    assert {p.name for p in Path().iterdir()} == before


def test_a_model_that_is_none(tcompile: Command, vit: Path) -> None:
    vit.write_bytes(b"no model")
    refused(tcompile("profile", vit, "--target", "t4", "--modelled"), "vit.onnx")
