"""The command line itself: help, exit codes, streams, interruption."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tcompile import __version__
from tcompile.cli import COMMANDS
from tcompile.cli.exit import explain
from tests.support.command import Command

ROOT = Path(__file__).parents[3]


def python(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        **options,
    )


def test_version(tcompile: Command) -> None:
    assert tcompile("--version").out.strip() == f"tcompile, version {__version__}"


@pytest.mark.parametrize("command", [c.name for c in COMMANDS])
def test_every_command_has_help_with_an_example(tcompile: Command, command: str) -> None:
    shown = tcompile(command, "--help")
    assert shown.code == 0
    assert "Example" in shown.out
    assert f"tcompile {command}" in shown.out or command == "methods"


def test_help_lists_the_commands_whole(tcompile: Command) -> None:
    shown = tcompile("--help").out.partition("Commands:")[2]
    assert "..." not in shown
    for command in COMMANDS:
        assert f"\n  {command.name} " in shown


def test_nothing_heavy_is_imported_for_help() -> None:
    code = (
        "import sys, tcompile, tcompile.cli\n"
        "try: tcompile.cli.tcompile(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({m.split('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    loaded = python("-c", code).stderr
    for module in ("numpy", "onnx", "onnx_graphsurgeon", "polygraphy", "torch", "onnxruntime"):
        assert f"'{module}'" not in loaded


def test_keep_is_documented(tcompile: Command) -> None:
    shown = " ".join(tcompile("build", "--help").out.split())
    assert "ceil(R x patch tokens), exact on the decimal you typed" in shown
    assert "Prefix tokens (CLS, registers) always stay" in shown
    assert "more, by a tenth at most, only where they are free on a plateau of the target" in shown
    assert "exactly ceil(R x patch tokens), even where more are free" in shown


def test_unknown_command(tcompile: Command) -> None:
    found = tcompile("compile")
    assert (found.code, found.out) == (2, "")
    assert found.err.count("\n") == 1


def test_a_bug_is_one_line_and_a_traceback_only_on_request(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert explain(KeyError("axis"), debug=False) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "bug in tcompile: KeyError: 'axis'" in line
    explain(KeyError("axis"), debug=True)
    assert "KeyError: 'axis'\ntcompile: error:" in capsys.readouterr().err


def test_debug_shows_where(tcompile: Command) -> None:
    shown = tcompile("--debug", "targets", "no-such-device").err
    assert shown.startswith("Traceback")
    assert tcompile("targets", "no-such-device", "--debug").err.startswith("Traceback")
    assert tcompile("targets", "no-such-device").err.count("\n") == 1


def test_a_full_disk_is_not_our_bug(capsys: pytest.CaptureFixture[str]) -> None:
    import errno

    assert explain(OSError(errno.ENOSPC, "x", "out/model.onnx"), debug=False) == 2
    assert "out/model.onnx: No space left" in capsys.readouterr().err


def test_a_closed_pipe_is_quiet() -> None:
    command = f"{sys.executable} -m tcompile targets --json | head -c 1"
    shell = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert shell.stderr == ""
    # 1 would be a bound that was missed, or our fault.
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        process = subprocess.run(
            [sys.executable, "-m", "tcompile", "targets", "--json"],
            stdout=gone,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            check=False,
        )
    assert (process.returncode, process.stderr) == (128 + 13, b"")


def test_targets_and_methods(tcompile: Command) -> None:
    listed = tcompile("targets", "--json").json()
    assert {"cpu", "rtx-4090", "jetson-agx-orin"} <= {t["name"] for t in listed}
    one = tcompile("targets", "jetson-orin", "--json").json()
    assert one["name"] == "jetson-agx-orin"
    assert "memory_bandwidth" in tcompile("targets", "rtx-4090").out
    assert {m["name"] for m in tcompile("methods", "--json").json()} >= {"topk", "evit", "tome"}


INTERRUPTED = """
import sys, time, types
from tcompile.artifact.directory import new_artifact
from tcompile.cli import main

def build(model, *, output, **rest):
    with new_artifact(output) as draft:
        (draft.empty() / "model.onnx").write_text("half")
        print("started", flush=True)
        time.sleep(30)

sys.modules["tcompile.pipeline"] = types.SimpleNamespace(build=build)
sys.exit(main(["build", "m.onnx", "--target", "cpu", "--keep", "0.5", "-o", sys.argv[1]]))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interruption_leaves_nothing(tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path / "new" / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err.lstrip()) == (code, "tcompile: interrupted\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("group", [(), ("plugins",), ("-v",)])
def test_a_group_without_a_command_shows_help(tcompile: Command, group: tuple[str, ...]) -> None:
    shown, name = tcompile(*group), " plugins" if "plugins" in group else ""
    assert shown.code == 0
    assert shown.out.startswith(f"Usage: tcompile{name} [OPTIONS] COMMAND [ARGS]...")
    assert "\nCommands:\n" in shown.out
    assert shown.err == ""


def test_folders_for_temporary_files_are_named(
    tcompile: Command, vit: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "x" / "model.onnx"))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "x"))
    monkeypatch.setattr("tcompile.pipeline.inspect", full)
    shown = tcompile("inspect", vit)
    assert shown.code == 2
    words = "model.onnx: No space left on device (set TMPDIR to a folder with more room)\n"
    assert shown.err.endswith(words)
