"""Runs an artifact frame by frame, and shows how long each took:

    python camera_loop.py ARTIFACT FOLDER [--frames N] [--runtime NAME] [--cuda-graphs]
    ffmpeg -i /dev/video0 -f rawvideo -pix_fmt rgb24 - \\
        | python camera_loop.py ARTIFACT --raw 640x480

A frame's time is that of preparing it and running the model; reading it is not counted.
"""

import argparse
import itertools
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

import tcompile
from tcompile.core.errors import UsageError

Frame = np.ndarray[Any, np.dtype[np.uint8]]


def from_folder(folder: Path) -> Iterator[Frame]:
    """Images of a folder, by name, again and again."""
    files = sorted(p for p in folder.iterdir() if p.is_file())
    if not files:
        raise UsageError("no images in this folder", where=str(folder))
    for file in itertools.cycle(files):
        try:
            with Image.open(file) as image:
                yield np.asarray(image.convert("RGB"))
        except (UnidentifiedImageError, OSError) as error:
            raise UsageError(f"cannot be read as an image: {error}", where=str(file)) from error


def from_stdin(size: str) -> Iterator[Frame]:
    """Raw frames from standard input, `WIDTHxHEIGHT`, red, green, blue."""
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", size)
    width, height = map(int, found.groups()) if found else (0, 0)
    if not found or max(width, height) > 1 << 15:
        raise UsageError("is not WIDTHxHEIGHT, such as 640x480", where=f"--raw {size}")
    while frame := sys.stdin.buffer.read(width * height * 3):
        if len(frame) < width * height * 3:
            raise UsageError(
                "ends within a frame", where="standard input", hint="is --raw its size?"
            )
        yield np.frombuffer(frame, np.uint8).reshape(height, width, 3)


def show(times: list[float]) -> None:
    """A line for each of some equal steps from the fastest to the 99th percentile, and one for the
    rest."""
    ordered = sorted(times)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    print(
        f"{len(times)} frames: median {at(0.5):.2f} ms, 90 % below {at(0.9):.2f} ms, "
        f"99 % below {at(0.99):.2f} ms, most {ordered[-1]:.2f} ms"
    )
    lines, low = 10, ordered[0]
    step = max((at(0.99) - low) / lines, 1e-6)
    counts = [0] * (lines + 1)
    for each in ordered:
        counts[min(lines, int((each - low) / step))] += 1
    for i, count in enumerate(counts):
        mark = "≥ " if i == lines else "  "
        print(f"{mark}{low + i * step:9.2f} ms {count:7} {'#' * (count * 50 // max(counts))}")


def run(asked: argparse.Namespace) -> None:
    """See the top of this file."""
    if (asked.folder is None) == (asked.raw is None):
        raise UsageError("either a folder of images or --raw WxH", where="camera_loop.py")
    if asked.folder is not None and not asked.folder.is_dir():
        raise UsageError("no such folder", where=str(asked.folder))
    frames = from_stdin(asked.raw) if asked.folder is None else from_folder(asked.folder)
    most = asked.frames or (None if asked.folder is None else 100)
    times: list[float] = []
    graphs = {"cuda_graphs": True} if asked.cuda_graphs else {}
    with tcompile.load(asked.artifact, runtime=asked.runtime, **graphs) as model:
        # The first frame is slower: memory is taken then. It is run, and not counted.
        for i, frame in enumerate(itertools.islice(frames, None if most is None else most + 1)):
            start = time.perf_counter()
            model(frame)
            if i:
                times.append(1000 * (time.perf_counter() - start))
            # Here a program uses the result: result.top(), result["features"], result.tokens(...).
    if not times:
        raise UsageError("fewer than two frames", where=str(asked.folder or "--raw"))
    show(times)


def whole(text: str) -> int:
    """A whole number that an option was given."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number")
    return int(text)


def main() -> None:
    """Read the arguments, and run."""
    parser = argparse.ArgumentParser(prog="camera_loop.py")
    parser.add_argument("artifact")
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--raw", metavar="WIDTHxHEIGHT")
    parser.add_argument("--frames", type=whole, default=0, metavar="N")
    parser.add_argument("--runtime", metavar="NAME")
    parser.add_argument("--cuda-graphs", action="store_true")
    try:
        run(parser.parse_args())
    except tcompile.TcompileError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
