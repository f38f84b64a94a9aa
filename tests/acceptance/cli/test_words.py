"""Words that must be true: commands in the documentation, options in messages, defaults in help."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import click
import pytest

from tcompile import pipeline
from tcompile.api.bench import bench
from tcompile.api.demo import KEEP, demo
from tcompile.api.profile import profile
from tcompile.api.run import run
from tcompile.api.verify import verify
from tcompile.cli import COMMANDS
from tcompile.cli import progress as on_stderr
from tcompile.cli import tcompile as group
from tcompile.cli.tables import print_table
from tcompile.core.errors import UsageError
from tcompile.core.progress import Progress
from tcompile.models import export
from tcompile.pipeline import building
from tests.support.command import Command
from tests.support.trtexec import Flags

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = ("tcompile", "passes", "plugins", "targets", "models")
#: In commands that are not meant to be typed as they stand.
_OPEN = re.compile(r"…|\.\.\.|[\[\]|]")


def shown(text: str) -> Iterator[str]:
    """Commands of tcompile in Markdown: lines of shell blocks, and whole pieces of code in text."""
    for block in re.findall(r"```(?:sh|console)\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|;|\|| > |\$\(", line.partition("  #")[0]):
                if re.match(r"\s*tcompile\s", part):
                    yield part.strip()
    outside = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    yield from (" ".join(c.split()) for c in re.findall(r"`(tcompile\s[^`]+)`", outside))


#: Placeholder → a value that it may stand for.
_VALUES = {"R": "0.5", "T": "cpu", "FORM": "native", "MS": "6", "D": "0.01", "N": "1"}


def parse(line: str) -> None:
    """Parse a command as the command line does, without running it; raises `click.UsageError`."""
    words = [_VALUES.get(word, word) for word in shlex.split(line.partition(" > ")[0])[1:]]
    command, context = group, click.Context(group, info_name="tcompile")
    while isinstance(command, click.Group) and words:
        if words[0].startswith("-"):
            return  # --help, --version
        _, found, words = command.resolve_command(context, words)
        assert found is not None
        if not words:
            return  # Names a command: `tcompile build`.
        command, context = found, found.make_context(str(found.name), list(words), parent=context)


@cache
def commands() -> list[Any]:
    found = {line: page.name for page in PAGES for line in shown(page.read_text(encoding="utf-8"))}
    for name in _all_commands():
        help_text = inspect.cleandoc(name.help or "")
        found |= {
            line.strip(): f"{name.name} --help"
            for line in help_text.splitlines()
            if line.strip().startswith("tcompile ")
        }
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for text in strings(path, "`tcompile "):
                for line in re.findall(r"`(tcompile [^`]+)`", text):
                    found[" ".join(line.split())] = path.name
    return [
        pytest.param(re.split(r" {2,}", line)[0], id=f"{where}: {line}"[:90])
        for line, where in found.items()
        if not _OPEN.search(line)
    ]


def strings(path: Path, part: str) -> Iterator[str]:
    """Yield the strings of a file of Python which has that part somewhere; parsing takes long."""
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)) if part in text else ():
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _all_commands() -> Iterator[click.Command]:
    for command in COMMANDS:
        yield command
        if isinstance(command, click.Group):
            yield from command.commands.values()


@pytest.mark.parametrize("line", commands())
def test_commands_that_are_shown_parse(line: str) -> None:
    try:
        parse(line)
    except (click.MissingParameter, click.BadOptionUsage):
        # `tcompile profile --modelled` in a sentence names a way, not a whole command.
        if len(line.split()) > 4:
            raise


def test_the_pages_show_every_command() -> None:
    assert len(commands()) > 60


@pytest.mark.parametrize("command", list(_all_commands()), ids=lambda c: str(c.name))
def test_every_command_has_json(command: click.Command) -> None:
    assert isinstance(command, click.Group) or "--json" in options(command)


def options(command: click.Command) -> set[str]:
    return {o for p in command.params for o in (*p.opts, *p.secondary_opts) if o.startswith("--")}


def test_messages_name_options_that_there_are() -> None:
    """`--data` in a string of the package is an option of some command (or of another program)."""
    known = set().union(*(options(c) for c in _all_commands())) | {"--help", "--version"}
    foreign = {
        *Flags().names,  # of trtexec: held against its versions in test_trtexec_lines.py
        *("--rm", "--gpus"),  # of docker: test_containers.py
        *("--force-reinstall", "--upgrade", "--build", "--fresh"),
        *("--parallel", "--query-gpu", "--format", "--data-loader-script"),
        *("--expt-relaxed-constexpr", "--exclude-libs", "--write"),
        # polygraphy's, in the lines of polygraphy.sh; Triton's; venv's.
        *("--onnxrt", "--trt", "--model-type", "--plugins", "--onnx-outputs", "--save-outputs"),
        *("--load-outputs", "--postprocess-func-script", "--compare-func-script", "--compare"),
        *("--check-error-stat", "--atol", "--rtol", "--cosine-similarity-threshold"),
        "--which",  # check.py's, of a bundle
        *("--l2-tolerance", "--graph-optimization-level", "--load-runtime"),
        *("--model-repository", "--backend-config", "--system-site-packages"),
    }
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "argparse" in path.read_text(encoding="utf-8"):
                continue  # A tool with a command line of its own.
            for text in strings(path, "--"):
                for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", text):
                    assert option in known | foreign, f"{path}: {option}"


#: Command → ways to use it wrongly; each error must name no option that the command lacks.
WRONG: dict[str, tuple[tuple[str, ...], ...]] = {
    "run": (("vit.onnx", "--input", "nosuch"), ("nosuch", "--input", "x.npz")),
    "init-app": (("vit.onnx", "-o", "app"), ("nosuch", "--cpp", "-o", "app")),
    "methods": (("tom",), ("evitt",)),
    "verify": (("nosuch",), ("vit.onnx",), ("out", "--data", "nosuch"), ("out", "--against", "no")),
    "bench": (("nosuch",), ("out", "--against", "nosuch"), ("out", "--rounds", "1")),
    "inspect": (
        ("nosuch",),
        ("vit.onnx", "--why", "nosuch"),
        ("vit.onnx", "--tower", "left"),
        ("vit.onnx", "--prefix", "99"),
        ("vit.onnx", "--shape", "x=1,2"),
    ),
    "plan": (
        ("vit.onnx", "--target", "cpu"),
        ("vit.onnx", "--target", "gpu", "--keep", "0.5"),
        ("vit.onnx", "--target", "cpu", "--keep", "2"),
        (
            *("vit.onnx", "--target", "cpu", "--keep", "0.5", "--method", "fitprune"),
            *("--calibration", "none"),
        ),
        ("vit.onnx", "--target", "cpu", "--keep", "0.5", "--method", "tom"),
        ("vit.onnx", "--target", "cpu", "--max-drop", "0.01"),
        ("vit.onnx", "--target", "cpu", "--keep", "0.5", "--schedule", "s.json"),
    ),
    "profile": (
        ("vit.onnx", "--target", "gpu"),
        ("vit.onnx", "--target", "cpu", "--method", "tom"),
        ("vit.onnx", "--target", "cpu", "--method", "bypass", "--modelled"),
        ("vit.onnx", "--target", "cpu", "--method", "fitprune:alpha=x", "--modelled"),
        ("vit.onnx", "--target", "cpu", "--import", "nosuch.csv"),
        ("vit.onnx", "--target", "cpu", "--against", "nosuch.json"),
        ("vit.onnx", "--target", "cpu", "--precision", "fp16"),
    ),
    "demo": (
        ("--method", "tom"),
        ("--method", "fitprune"),
        ("--keep", "0.5", "--method", "tome:r=13"),
        ("--keep", "2"),
        ("-o", "out"),
    ),
    "export": (("odd", "-o", "x.onnx"),),
    "targets": (("gpu",),),
}


@pytest.mark.parametrize(
    ("name", "arguments"), [(name, one) for name, many in WRONG.items() for one in many]
)
@pytest.mark.usefixtures("vit")
def test_an_error_names_options_of_its_own_command(
    tcompile: Command, name: str, arguments: tuple[str, ...]
) -> None:
    Path("out").mkdir()
    Path("out/file").touch()
    command = next(c for c in COMMANDS if c.name == name)
    said = tcompile(name, *arguments)
    assert said.code == 2, said
    assert said.err.count("\n") == 1
    # `tcompile other --option` names another command, and says so.
    own = re.sub(
        r"`tcompile build` takes --calibration|`tcompile [^`]*`|pip install '[^']*'", "", said.err
    )
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", own))
    assert named <= options(command) | {"--help"}, said.err


#: Command → the function that it calls.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "build": pipeline.build,
    "plan": pipeline.price,
    "inspect": pipeline.inspect,
    "profile": profile,
    "verify": verify,
    "bench": bench,
    "run": run,
    "demo": demo,
    "export": export,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_defaults_are_those_of_the_functions(name: str) -> None:
    command = next(c for c in COMMANDS if c.name == name)
    accepted = inspect.signature(FUNCTIONS[name]).parameters
    for option in command.params:
        function = accepted.get(str(option.name))
        if function is None or function.default is inspect.Parameter.empty or option.required:
            continue
        default = option.get_default(click.Context(command))
        if "UNSET" in repr(default):  # click 8.3 says so for None
            default = None
        both = (default, function.default)
        assert str(default) == str(function.default) or not any(both), (option.name, both)


def test_defaults_in_the_texts_of_help(tcompile: Command) -> None:
    from tcompile.methods.portfolio import PORTFOLIO
    from tcompile.targets.backends.base import Batch

    told = " ".join(tcompile("profile", "--help").out.split())
    assert f"[default: {', '.join(PORTFOLIO[:-1])} and {PORTFOLIO[-1]}, where" in told
    told = " ".join(tcompile("build", "--help").out.split())
    assert f"[default: {Batch().largest}, or --batch]" in told
    assert f"[default: {Batch().smallest}]" in told
    told = " ".join(tcompile("demo", "--help").out.split())
    assert f"[default: {float(KEEP):g}, or what --method says itself]" in told


@pytest.mark.parametrize(
    ("module", "extra", "arguments"),
    [
        ("tensorrt_rtx", "rtx", ("build", "vit.onnx", "--target", "l4", "--keep", "0.5")),
        ("onnxruntime", "cpu", ("build", "vit.onnx", "--target", "cpu", "--keep", "0.5")),
        (
            "matplotlib",
            "plot",
            ("plan", "vit.onnx", "--target", "cpu", "--latency", "9", "--plot", "a.png"),
        ),
        ("matplotlib", "plot", ("profile", "vit.onnx", "--target", "cpu", "--plot", "a.svg")),
        ("PIL", "cpu", ("demo",)),
    ],
)
@pytest.mark.usefixtures("vit")
def test_a_missing_package_is_told_before_the_work(
    tcompile: Command,
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    extra: str,
    arguments: tuple[str, ...],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for name in ("read", "price"):
        monkeypatch.setattr(pipeline, name, lambda *_, **__: pytest.fail("it has begun"))
    monkeypatch.setattr(building, "_build_best", lambda *_: pytest.fail("it has begun"))
    said = tcompile(*arguments)
    assert said.code == 2
    assert f"pip install 'tcompile[{extra}]'" in said.err
    assert said.err.count("\n") == 1


@pytest.mark.usefixtures("vit")
def test_a_share_in_percent_is_told_as_a_fraction(tcompile: Command) -> None:
    said = tcompile("plan", "vit.onnx", "--target", "cpu", "--keep", "60")
    assert said.err.endswith("(it is the fraction of patch tokens that are kept: 0.6 for 60 %)\n")


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
def test_names_are_never_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """Whatever the terminal's width: a name that was cut could not be typed."""
    names = ["jetson-orin-nano", "rtx-a2000", "jetson-agx-orin:32gb"]
    texts = ["GeForce RTX 4090 Laptop GPU, with fans", "tensorrt-rtx", "/a/path/of/no/end" * 4]
    rows = [(name, *texts, "cpu, jetson-orin-nano:original", 8.6) for name in names]
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    print_table(("target", "device", "runs on", "path", "also called", "capability"), rows)
    shown = capsys.readouterr().out
    words = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", shown).split()
    for word in (*names, "tensorrt-rtx", "jetson-orin-nano:original", "GeForce", "8.6"):
        assert word in words, shown
    tables = [line for line in shown.splitlines() if "──" in line]
    assert all(len(re.sub(r"\x1b\[[\d;]*m", "", line)) <= width for line in tables)


def test_bold_headings_stay_on_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What makes them bold has no width."""
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    print_table(("image", "by", "dense", "reduced"), [("a.png", "cosine", 0.5, 0.25)], title="Some")
    title, head, _, row = capsys.readouterr().out.splitlines()[:4]
    assert "\x1b[1m" in head
    assert re.sub(r"\x1b\[\d*m", "", head).split() == ["image", "by", "dense", "reduced"]
    assert (title, row.split()) == ("Some", ["a.png", "cosine", "0.5", "0.25"])


def test_a_log_has_a_line_a_stage(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And more where one takes long."""
    monkeypatch.setattr(on_stderr, "REPEAT", 3600)
    with on_stderr.progress() as say:
        say("reading \x1b[31mvit.onnx")
        for share in range(30):
            say(f"calibrating on 8 scenes (as for ImageNet: not known): {share}% (tome)")
        for number in range(3):
            say(f"trying {number}.5 ms with tome")
            say(f"running 32 images at {number} tokens")
            say("building the engine: tactics, 3 of 7")
    told = capsys.readouterr()
    assert told.out == ""
    assert [line.partition("] ")[2] for line in told.err.splitlines()] == [
        "reading \\x1b[31mvit.onnx",
        "calibrating on 8 scenes (as for ImageNet: not known)",
        "trying 0.5 ms with tome",
        "running 32 images at 0 tokens",
        "building the engine",
        "done",
    ]
    assert told.err.startswith("[ ")
    monkeypatch.setattr(on_stderr, "REPEAT", 0.1)
    with on_stderr.progress() as say:
        say("evaluating photos: 32 of 5,000 images, 2 min left")
        time.sleep(0.35)
    first, *others, last = capsys.readouterr().err.splitlines()
    assert first.endswith("] evaluating photos")
    assert last.endswith("] done")
    assert 1 <= len(others) <= 8
    assert all(line.endswith("32 of 5,000 images, 2 min left") for line in others), others
    with pytest.raises(UsageError), on_stderr.progress() as say:
        _fail(say)
    assert "done" not in capsys.readouterr().err


def _fail(say: Progress) -> None:
    say("reading")
    raise UsageError("damaged")


def test_output_that_is_not_utf_8(vit: Path) -> None:
    """A pipe on Windows: text loses a sign, JSON is still JSON."""
    environment = {**os.environ, "PYTHONIOENCODING": "cp437", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tcompile"]
    run_there = partial(subprocess.run, capture_output=True, env=environment, check=False)
    told = run_there([*command, "inspect", str(vit), "--json"])
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout.decode("ascii"))
    shown = run_there([*command, "methods", "tome"])
    assert shown.returncode == 0, shown.stderr
