"""An artifact is written whole or not at all, and never over something that is not ours."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx_graphsurgeon as gs
import pytest

from tcompile.artifact import directory as artifact
from tcompile.artifact.directory import check_destination, load_artifact, new_artifact
from tcompile.artifact.manifest import Manifest
from tcompile.core import drafts
from tcompile.core.errors import ModelError, UsageError
from tcompile.core.save import save
from tests.support import kill_points
from tests.support.artifacts import make_artifact, manifest_for, write_artifact
from tests.support.tiny_vit import save_tiny_vit


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_tiny_vit(tmp_path / "vit.onnx")


def filler(source: Path, text: str = "engine") -> Callable[[Path], Manifest]:
    def fill(folder: Path) -> Manifest:
        (folder / "engine").mkdir()
        (folder / "engine" / "a.engine").write_text(text)
        (folder / "model.onnx").write_bytes(source.read_bytes())
        return manifest_for(source, source)

    return fill


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def test_what_is_written_is_what_is_loaded(tmp_path: Path, source: Path) -> None:
    out = write_artifact(tmp_path / "made" / "out", filler(source))
    assert names(out) == ["engine", "engine/a.engine", "manifest.json", "model.onnx", "report.md"]
    loaded = load_artifact(out)
    listed = [f.path for f in loaded.manifest.files]
    assert listed == ["engine/a.engine", "model.onnx", "report.md"]
    assert loaded.changed_files() == []
    assert "tokens into attention" in (out / "report.md").read_text()


def test_same_input_gives_the_same_bytes(tmp_path: Path, source: Path) -> None:
    first = write_artifact(tmp_path / "a", filler(source))
    second = write_artifact(tmp_path / "b", filler(source))
    for name in ("manifest.json", "report.md"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_failure_leaves_nothing(tmp_path: Path, source: Path, error: type[BaseException]) -> None:
    def fill(folder: Path) -> Manifest:
        (folder / "model.onnx").write_text("half")
        raise error

    with pytest.raises(error):
        write_artifact(tmp_path / "new" / "deep" / "out", fill)
    assert names(tmp_path) == ["vit.onnx"]


def test_a_second_attempt_begins_with_nothing(tmp_path: Path, source: Path) -> None:
    with new_artifact(tmp_path / "out") as draft:
        assert names(tmp_path) == ["vit.onnx"], "written before anything was asked to be"
        for text in ("first", "second"):
            folder = draft.empty()
            assert names(folder) == []
            manifest = filler(source, text)(folder)
        draft.finish(manifest)
    assert (tmp_path / "out" / "engine" / "a.engine").read_text() == "second"
    assert load_artifact(tmp_path / "out").changed_files() == []


def test_what_comes_in_between_is_left_alone(tmp_path: Path) -> None:
    """Planning takes a while; the destination was free when it began."""
    with new_artifact(tmp_path / "out") as draft:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("years of work")
        with pytest.raises(UsageError, match="not a tcompile artifact"):
            draft.empty()
    assert names(tmp_path) == ["out", "out/thesis.tex"]


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("at", ["while it is built", "after the last check", "in place of ours"])
def test_what_comes_while_it_is_built_is_left_alone(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, at: str, exchange: bool
) -> None:
    out = tmp_path / "out"
    if at == "in place of ours":
        write_artifact(out, filler(source))
    if not exchange:
        monkeypatch.setattr(drafts, "_exchange", lambda one, other: False)
    replace = drafts._replace

    def come() -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        (out / "thesis.tex").write_text("years of work")

    def late(*given: Any) -> None:
        come()
        replace(*given)

    def fill(folder: Path) -> Manifest:
        if at == "while it is built":
            come()
        else:
            monkeypatch.setattr(drafts, "_replace", late)
        return filler(source)(folder)

    with pytest.raises(UsageError, match="not a tcompile artifact"):
        write_artifact(out, fill, force=True)
    assert names(tmp_path) == ["out", "out/thesis.tex", "vit.onnx"]


def test_only_what_cannot_be_written_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), new_artifact(tmp_path / "out"):
        raise FileNotFoundError("calibration images")


def test_failure_while_replacing_keeps_the_old_one(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = write_artifact(tmp_path / "out", filler(source, "old"))
    rename, calls = Path.rename, []

    def second_fails(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(drafts, "_exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(KeyboardInterrupt):
        write_artifact(out, filler(source, "new"))
    assert (out / "engine" / "a.engine").read_text() == "old"
    assert load_artifact(out).changed_files() == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "vit.onnx"]


def test_an_artifact_of_ours_is_replaced(tmp_path: Path, source: Path) -> None:
    out = write_artifact(tmp_path / "out", filler(source, "old"))
    write_artifact(out, filler(source, "new"))
    assert (out / "engine" / "a.engine").read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "vit.onnx"]


def test_a_changed_artifact_needs_force(tmp_path: Path, source: Path) -> None:
    out = write_artifact(tmp_path / "out", filler(source))
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"notes\.txt.*--force"):
        write_artifact(out, filler(source))
    assert (out / "notes.txt").exists()
    write_artifact(out, filler(source), force=True)
    assert not (out / "notes.txt").exists()


@pytest.mark.parametrize("force", [False, True])
def test_a_foreign_directory_is_left_alone(tmp_path: Path, source: Path, force: bool) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="not a tcompile artifact"):
        write_artifact(home, filler(source), force=force)
    (home / "manifest.json").write_text('{"name": "a web extension"}')
    with pytest.raises(UsageError, match="not a tcompile artifact"):
        write_artifact(home, filler(source), force=force)
    assert names(home) == ["manifest.json", "thesis.tex"]


def test_a_file_in_the_way(tmp_path: Path, source: Path) -> None:
    with pytest.raises(UsageError, match="not a directory"):
        check_destination(source)
    with pytest.raises(UsageError, match="cannot write"):
        write_artifact(source / "below", filler(source))


def test_the_current_directory_is_left_in_place(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell that stands in it would be left in a removed one."""
    out = write_artifact(tmp_path / "out", filler(source))
    for inside in (out, out / "engine"):
        monkeypatch.chdir(inside)
        for given in (out, Path(os.path.relpath(out))):
            with pytest.raises(UsageError, match=r"current directory is there.*another folder"):
                check_destination(given, force=True)
    assert check_destination("new") == out / "engine" / "new"
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(UsageError, match=r"^\.: the current directory is there.*\(-o NAME\)"):
        check_destination(".")
    monkeypatch.chdir(tmp_path)
    assert check_destination("out") == out


def test_where_no_folder_can_be_put_is_known_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "out")
        with pytest.raises(UsageError, match=r"out: is a mount point.*\(-o .*/out/NAME\)"):
            check_destination(tmp_path / "out")
        assert check_destination(tmp_path / "out" / "x")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    for name in ("out", "new", "a/b/c"):
        with pytest.raises(UsageError, match=rf"{name}: .* '{tmp_path}' cannot be written to"):
            check_destination(tmp_path / name)
    assert check_destination(tmp_path / "out" / "x")


def test_an_empty_directory_is_used(tmp_path: Path, source: Path) -> None:
    (tmp_path / "out").mkdir()
    assert load_artifact(write_artifact(tmp_path / "out", filler(source))).changed_files() == []


def test_changes_are_found(tmp_path: Path, source: Path) -> None:
    out = make_artifact(tmp_path / "out", source)
    model = out / "model.onnx"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    (out / "report.md").unlink()
    assert load_artifact(out).changed_files() == ["model.onnx", "report.md"]


def test_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such directory"):
        load_artifact(tmp_path / "nothing")
    with pytest.raises(UsageError, match="not a tcompile artifact"):
        load_artifact(tmp_path)


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


def test_manifests_that_are_no_documents(tmp_path: Path, source: Path) -> None:
    path = make_artifact(tmp_path / "out", source) / artifact.MANIFEST
    text = path.read_text()
    for damage in ("[" * 99_999, text.replace("2000000", "9" * 10_000), text + "\0", "\ufeff"):
        path.write_text(damage)
        with pytest.raises(ModelError, match="damaged manifest"):
            load_artifact(path.parent)
    path.write_bytes(text.encode().replace(b"cpu", b"\xff\xff\xff"))
    with pytest.raises((ModelError, UsageError), match="UTF-8"):
        load_artifact(path.parent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema="tcompile.artifact.manifest/99"), "not a tcompile.manifest/1"),
        (lambda d: d.pop("flops"), "flops: missing"),
        (lambda d: d["flops"].update(dense="many"), r"flops\.dense: expected int, found 'many'"),
        (lambda d: d["files"][0].update(path="../../etc/passwd"), "leaves the artifact"),
        (lambda d: d.update(precision="fp12"), "precision: expected one of bf16, fp16, fp32"),
        (lambda d: d.update(extra=1), "extra: unknown field"),
        (lambda d: d["flops"].update(dense=1 << 70), "64 bits"),
        (lambda d: d["flops"].update(dense=float("inf")), "not a finite number"),
        (lambda d: d["schedule"].update(method=nested(99)), "nested deeper"),
    ],
)
def test_damaged_manifest(
    tmp_path: Path, source: Path, change: Callable[[dict[str, object]], object], message: str
) -> None:
    path = make_artifact(tmp_path / "out", source) / artifact.MANIFEST
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ModelError, match=message):
        load_artifact(path.parent)


@pytest.mark.parametrize("exchange", [True, False])
def test_a_build_that_is_killed_leaves_the_old_artifact_or_the_new(
    tmp_path: Path, source: Path, exchange: bool
) -> None:
    """All situations: `python -m tests.support.kill_points`."""
    with nullcontext() if exchange else kill_points.no_exchange():
        seen = kill_points.calls(tmp_path, source, kill_points.Situation(exchange))
        if not exchange:
            kill_points.between_renames(tmp_path, source, 4)
    assert ("tcompile.exchange" in seen) == exchange
    assert seen.count("os.rename") == (0 if exchange else 2)
    assert len(seen) > 12


def test_what_a_live_build_writes_is_left_alone(tmp_path: Path, source: Path) -> None:
    with new_artifact(tmp_path / "out") as one, new_artifact(tmp_path / "out") as other:
        first, second = one.empty(), other.empty()
        assert first.exists()
        (first / "x").write_text("x")
        manifest = filler(source)(second)
        other.finish(manifest)
        assert (first / "x").exists()
    assert names(tmp_path)[:2] == ["out", "out/engine"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "vit.onnx"]


def test_folders_of_others_with_such_names_are_left_alone(tmp_path: Path, source: Path) -> None:
    mine = [".out.0123.draft", ".out.01234567.drafts", ".output.01234567.draft", "out.01234567.old"]
    for name in mine:
        (tmp_path / name).mkdir()
    (tmp_path / ".out.89abcdef.draft").write_text("a file")
    (tmp_path / ".out.76543210.old").symlink_to(tmp_path / "out")
    before = sorted(p.name for p in tmp_path.iterdir())
    write_artifact(tmp_path / "out", filler(source))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*before, "out"])


def test_a_full_folder_of_temporary_files_is_named(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    full = OSError(errno.ENOSPC, "No space left on device")

    def fill(folder: Path) -> Manifest:
        raise full

    def out_of_room(rooms: dict[Path, int]) -> Callable[[Path], Any]:
        return lambda path: SimpleNamespace(free=rooms.get(Path(path), 1 << 30))

    for rooms, words in (
        ({temporary: 0}, rf"{temporary}: cannot write temporary files: No space .* TMPDIR"),
        ({tmp_path: 0}, rf"{tmp_path}/out: cannot write the artifact: No space"),
    ):
        monkeypatch.setattr(shutil, "disk_usage", out_of_room(rooms))
        with pytest.raises(UsageError, match=words):
            write_artifact(tmp_path / "out", fill)
    full.filename = str(temporary / "x" / "model.onnx")
    with pytest.raises(UsageError, match="temporary files"):
        write_artifact(tmp_path / "out", fill)


def test_what_is_written_says_where_there_is_no_room() -> None:
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        save(gs.Graph(), "/dev/full")


def test_links_in_a_circle_are_no_place_to_write(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for path in (tmp_path / "a", tmp_path / "a" / "out"):
        with pytest.raises(UsageError, match="link that leads back to itself"):
            check_destination(path)
    with pytest.raises(UsageError, match="no such directory"):
        load_artifact(tmp_path / "a")
