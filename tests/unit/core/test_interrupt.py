"""An interrupt that C++ swallowed is heard at the next safe point."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tcompile.artifact.manifest import Manifest
from tcompile.core import interrupt
from tests.support.artifacts import manifest_for, write_artifact
from tests.support.tiny_vit import save_tiny_vit


def press(number: signal.Signals = signal.SIGINT) -> None:
    """Send a signal, and swallow what it raises as a callback from C++ would."""
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_swallowed_interrupt_is_not_forgotten(number: signal.Signals) -> None:
    with interrupt.listening():
        interrupt.checkpoint()
        press(number)
        assert interrupt.received() == number
        with pytest.raises(KeyboardInterrupt):
            interrupt.checkpoint()


def test_impatience_does_not_break_off_the_tidying_up() -> None:
    with interrupt.listening():
        press()
        os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interrupt.listening():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


def test_nothing_is_put_in_place_after_it(tmp_path: Path) -> None:
    source = save_tiny_vit(tmp_path / "vit.onnx")

    def fill(folder: Path) -> Manifest:
        (folder / "model.onnx").write_bytes(b"whole")
        press()
        return manifest_for(source, source)

    with interrupt.listening(), pytest.raises(KeyboardInterrupt):
        write_artifact(tmp_path / "out", fill)
    assert [p.name for p in tmp_path.iterdir()] == ["vit.onnx"]


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Leave no note for the next test."""
    yield
    interrupt._received = None
