"""Scores, reducers and presets of other packages: the documented example, and packages gone wrong.

Packages are "installed" by a folder with their metadata on sys.path, which is all that an entry
point is found by.
"""

from __future__ import annotations

import configparser
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import tcompile
from tcompile.core.errors import UsageError
from tcompile.targets.backends.ort import OrtRunner
from tests.support.command import Command
from tests.support.onnx_models import to_onnx
from tests.support.tiny_vit import VitSpec, save_tiny_vit

EXAMPLE = Path(__file__).parents[2] / "examples" / "extension"
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a package on sys.path: its modules' text, and entry points by group."""
    names: set[str] = set()

    def put(package: str, points: dict[str, dict[str, str]], **modules: str) -> None:
        folder = tmp_path / package
        info = folder / f"{package}-0.1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1\n")
        lines: list[str] = []
        for group, named in points.items():
            lines += [f"[{group}]", *(f"{name} = {value}" for name, value in named.items())]
        (info / "entry_points.txt").write_text("\n".join(lines))
        for name, text in modules.items():
            (folder / f"{name}.py").write_text(text)
        names.update(modules)
        monkeypatch.syspath_prepend(str(folder))
        importlib.invalidate_caches()

    yield put
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def example(install: Install) -> None:
    """examples/extension, installed with the entry points of its pyproject.toml."""
    # The part of TOML that this file needs is also INI; tomllib came with Python 3.11.
    project = configparser.ConfigParser(interpolation=None)
    project.read(EXAMPLE / "pyproject.toml")
    prefix = "project.entry-points."
    points = {
        section.removeprefix(prefix).strip('"'): {k: v.strip('"') for k, v in named.items()}
        for section, named in project.items()
        if section.startswith(prefix)
    }
    assert points.keys() == {"tcompile.scores", "tcompile.reducers", "tcompile.presets"}
    (module,) = EXAMPLE.glob("*.py")
    install("tcompile_contrast_example", points, **{module.stem: module.read_text()})


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    """16 patches and a CLS, three blocks; all tokens are the output."""
    return save_tiny_vit(tmp_path / "vit.onnx", VitSpec(pool="none"), batch=None)


@pytest.fixture
def tcompile_(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


def schedule(vit: Path, score: dict[str, Any], reducer: dict[str, Any]) -> dict[str, Any]:
    """Seven tokens left at the output."""
    found = tcompile.plan(vit, method="topk:site=output", keep="0.4").to_json()
    found["reductions"][0].update(score=score, reducer=reducer)
    return found


@pytest.mark.usefixtures("example")
def test_the_example_does_what_it_says(vit: Path, tmp_path: Path) -> None:
    made = tcompile.reduce(
        vit,
        target="cpu",
        schedule=schedule(vit, {"name": "contrast"}, {"name": "lift", "alpha": 0.25}),
    )
    onnx.save(to_onnx(made.graph), tmp_path / "reduced.onnx")
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    (dense,) = OrtRunner(vit).run({"image": images}).values()
    outputs = OrtRunner(tmp_path / "reduced.onnx").run({"image": images})
    index = outputs.pop("token_index")[:, 1:] - 1
    (reduced,) = outputs.values()
    patches = dense[:, 1:]
    best = np.argsort(-np.ptp(patches, axis=2), axis=1)[:, :7]
    assert np.array_equal(index, np.sort(best, 1))
    rows = np.take_along_axis(patches, np.sort(best, 1)[..., None], 1)
    expected = np.concatenate([dense[:, :1], rows + 0.25 * patches.mean(1, keepdims=True)], 1)
    np.testing.assert_allclose(reduced, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("example")
def test_the_example_on_the_command_line(tcompile_: Command, vit: Path, tmp_path: Path) -> None:
    assert "lifted" in tcompile_("methods").out
    assert "alpha" in tcompile_("methods", "lifted").out
    planned = tcompile_(
        "plan", vit, "--target", "cpu", "--keep", "0.5", "--json", "--method", "lifted:alpha=0.2"
    )
    assert planned.code == 0, planned.err
    (reduction,) = planned.json()["reductions"]
    assert reduction["score"] == {"name": "contrast"}
    assert reduction["reducer"] == {"name": "lift", "alpha": 0.2}
    assert reduction["keep"] == 8
    built = tcompile_(
        "build",
        vit,
        "--target",
        "cpu",
        "--keep",
        "0.5",
        "--method",
        "lifted",
        "--force",
        "-o",
        tmp_path / "built",
    )
    assert built.code == 0, built.err


@pytest.mark.usefixtures("example")
@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("lifted:alpha=2", "alpha=2 is more than 1"),
        ("lifted:beta=2", "'beta=2' is not a parameter of lifted"),
        ("lfted", "did you mean 'lifted'"),
    ],
)
def test_its_parameters_are_checked_as_ours(
    tcompile_: Command, vit: Path, method: str, message: str
) -> None:
    fails(tcompile_, vit, method, message)


def fails(command: Command, vit: Path, method: str, *messages: str) -> None:
    """`plan` with this method is refused on one line that says so."""
    shown = command("plan", vit, "--target", "cpu", "--keep", "0.5", "--method", method)
    assert (shown.code, shown.out) == (2, "")
    assert shown.err.count("\n") == 1
    for message in messages:
        assert message in shown.err, shown.err


BROKEN = {
    "import": ("import nothing_of_that_name", "ModuleNotFoundError", "uninstall broken"),
    "raises": ("1 / 0", "ZeroDivisionError: division by zero", "uninstall broken"),
    "syntax": ("def (", "SyntaxError", "uninstall broken"),
    "missing": ("", "AttributeError", "uninstall broken"),
    "type": ("THING = 'a string'", "is not a Preset of that name", "uninstall broken"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_preset_that_cannot_be_loaded_is_named(
    tcompile_: Command, vit: Path, install: Install, fault: str
) -> None:
    text, *messages = BROKEN[fault]
    install("broken", {"tcompile.presets": {"mine": "broken_module:THING"}}, broken_module=text)
    fails(tcompile_, vit, "mine", "'mine' of broken", *messages)
    # What has nothing to do with it goes on; a list of everything does not.
    assert tcompile_("plan", vit, "--target", "cpu", "--keep", "0.5", "--method", "topk").code == 0
    listed = tcompile_("methods")
    assert (listed.code, listed.err.count("\n")) == (2, 1)


@pytest.mark.parametrize("fault", ["raises", "type"])
@pytest.mark.parametrize("group", ["score", "reducer"])
def test_a_score_or_reducer_that_cannot_be_loaded_is_named(
    vit: Path, install: Install, fault: str, group: str
) -> None:
    text, *messages = BROKEN[fault]
    install("broken", {f"tcompile.{group}s": {"mine": "broken_module:THING"}}, broken_module=text)
    chosen = {"score": {"name": "norm"}, "reducer": {"name": "topk"}, group: {"name": "mine"}}
    with pytest.raises(UsageError) as error:
        tcompile.reduce(vit, target="cpu", schedule=schedule(vit, **chosen))
    for message in messages:
        assert message.replace("Preset", group.capitalize()) in str(error.value)


FAILING = """
from tcompile import algebra
def run(inputs):
    raise ValueError("no such luck")
THING = algebra.Score("mine", run)
"""


def test_a_score_that_fails_is_its_authors_to_mend(vit: Path, install: Install) -> None:
    install("broken", {"tcompile.scores": {"mine": "broken_module:THING"}}, broken_module=FAILING)
    chosen = schedule(vit, {"name": "mine"}, {"name": "topk"})
    with pytest.raises(UsageError, match="'mine' of broken failed: ValueError: no such luck"):
        tcompile.reduce(vit, target="cpu", schedule=chosen)


NORM_BACKWARDS = """
from tcompile import algebra
def run(inputs):
    return inputs.builder.op("Neg", inputs.score(algebra.Spec("norm")))
SCORE = algebra.Score({!r}, run)
"""


def test_a_name_of_ours_means_ours(vit: Path, install: Install) -> None:
    args = ({"name": "norm"}, {"name": "topk"})
    before = tcompile.reduce(vit, target="cpu", schedule=schedule(vit, *args))
    install(
        "clash",
        {"tcompile.scores": {"norm": "clash_module:SCORE"}},
        clash_module=NORM_BACKWARDS.format("norm"),
    )
    after = tcompile.reduce(vit, target="cpu", schedule=schedule(vit, *args))
    assert [n.op for n in after.graph.nodes] == [n.op for n in before.graph.nodes]


def test_two_packages_with_one_name_are_both_named(vit: Path, install: Install) -> None:
    for package in ("one", "two"):
        install(
            package,
            {"tcompile.scores": {"mine": f"{package}_module:SCORE"}},
            **{f"{package}_module": NORM_BACKWARDS.format("mine")},
        )
    with pytest.raises(UsageError, match="one and two both have a 'mine'"):
        tcompile.reduce(
            vit, target="cpu", schedule=schedule(vit, {"name": "mine"}, {"name": "topk"})
        )


def test_one_package_found_twice_is_one(vit: Path, install: Install) -> None:
    for package in ("one", "two"):
        install(
            package,
            {"tcompile.scores": {"mine": "shared:SCORE"}},
            shared=NORM_BACKWARDS.format("mine"),
        )
    made = tcompile.reduce(
        vit, target="cpu", schedule=schedule(vit, {"name": "mine"}, {"name": "topk"})
    )
    assert json.dumps(made.schedule.to_json()).count("mine") == 1


def test_the_page_shows_the_example() -> None:
    """Line by line, so that what readers copy is what runs."""
    page = (EXAMPLE.parents[1] / "docs" / "extending.md").read_text()
    (module,) = EXAMPLE.glob("*.py")
    lines = {
        *module.read_text().splitlines(),
        *(EXAMPLE / "pyproject.toml").read_text().split("\n"),
    }
    blocks = [
        b.partition("```")[0] for kind in ("python", "toml") for b in page.split(f"```{kind}\n")[1:]
    ]
    assert len(blocks) == 4
    for block in blocks:
        assert set(block.splitlines()) <= lines
    assert len([line for line in blocks[0].splitlines() if line]) <= 10
