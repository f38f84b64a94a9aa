"""Frames of a video, by PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tcompile.core.errors import UsageError
from tcompile.core.files import regular_file
from tcompile.core.packages import require
from tcompile.data.base import ImageItem, Item, Source, Unreadable

SUFFIXES = frozenset({".mp4", ".m4v", ".mkv", ".mov", ".avi", ".webm", ".mpg", ".mpeg", ".ts"})


def video_source(path: Path, every: int = 1) -> Source:
    """Frames of the first video stream, one after another, upright.

    What follows a damaged place is decoded as far as the decoder can; where it gives up, that is
    counted as one frame that cannot be read, and the video ends there.

    Args:
        every: the distance between two frames that are given; 1: all of them.

    Raises:
        UsageError: not a video that PyAV can open, or one without pictures.
        MissingExtraError: PyAV is not installed.
    """
    av = require("av", "data", "reading a video")
    path = regular_file(path)
    with _opened(av, path) as container:
        known = _frames(container)
    count = -(-known // every) if known else None

    def items() -> Iterator[Item]:
        with _opened(av, path) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            i = -1
            try:
                for i, frame in enumerate(container.decode(stream)):
                    if i % every == 0:
                        yield ImageItem(f"{path.name}@{i}", _upright(frame), clip=str(path))
            except av.FFmpegError as error:
                yield Unreadable(f"{path.name}@{i + 1}", f"cannot be decoded: {error}")

    return Source(str(path), items, count)


def _frames(container: Any) -> int:
    """How many frames a video has, by its duration where it does not count them; 0: not known."""
    stream = container.streams.video[0]
    if stream.frames or not container.duration or not stream.average_rate:
        return int(stream.frames)
    return int(container.duration / 1_000_000 * stream.average_rate)


def _opened(av: Any, path: Path) -> Any:
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise UsageError("is not a video that PyAV can read", where=str(path)) from error
    if not container.streams.video:
        container.close()
        raise UsageError("has no pictures", where=str(path))
    return container


def _upright(frame: Any) -> Any:
    """The frame as an image of pillow's, turned as the file says."""
    image = frame.to_image()
    degrees = getattr(frame, "rotation", 0) % 360  # counter-clockwise; from PyAV 14 on
    return image.rotate(degrees, expand=True) if degrees else image
