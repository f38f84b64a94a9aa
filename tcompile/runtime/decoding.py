"""From images to rows of a model's input, several at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tcompile.core.errors import UsageError
from tcompile.core.machine import usable_cores
from tcompile.core.model_files import TensorInfo
from tcompile.data.base import ArrayItem, ImageItem, Source, Unreadable
from tcompile.models.images import ImageError
from tcompile.runtime.signature import Signature

if TYPE_CHECKING:
    from PIL import Image

Array = npt.NDArray[Any]
#: Threads that decode, and images that they may be ahead by, each.
_THREADS, _AHEAD = 8, 8


@dataclass(frozen=True)
class Unread:
    """A sample that could not be read."""

    id: str
    error: ImageError


def none_readable(source: Source, unread: Sequence[Unread]) -> UsageError:
    """The error about data of which nothing can be read."""
    first = unread[0].error
    if len(unread) == 1:
        return first
    return UsageError(
        f"none of the {len(unread)} images can be read; the first: {first.one_line()}",
        where=source.name,
    )


def decoded(
    model: Signature, source: Source, unread: list[Unread]
) -> Iterator[tuple[ImageItem | ArrayItem, Array]]:
    """A source's items in their order, images with the row [1, …] of the input that they make.

    Images are decoded by a few threads, a little ahead of what is asked for. The second of the pair
    is empty for arrays.

    Args:
        unread: what cannot be read is added to it.

    Raises:
        UsageError: the model takes no images, or does not say how they are prepared.
    """
    threads = min(_THREADS, usable_cores())
    waiting: deque[tuple[ImageItem | ArrayItem, Future[Array] | None]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        try:
            for item in source.items():
                if isinstance(item, Unreadable):
                    unread.append(Unread(item.id, ImageError(item.fault, where=item.id)))
                    continue
                job = None
                if isinstance(item, ImageItem):
                    image_input(model)
                    job = pool.submit(_row, model, item)
                waiting.append((item, job))
                while len(waiting) > threads * _AHEAD or (waiting and waiting[0][1] is None):
                    yield from _done(*waiting.popleft(), unread)
            while waiting:
                yield from _done(*waiting.popleft(), unread)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _done(
    item: ImageItem | ArrayItem, job: Future[Array] | None, unread: list[Unread]
) -> Iterator[tuple[ImageItem | ArrayItem, Array]]:
    try:
        yield item, np.empty(0) if job is None else job.result()
    except ImageError as error:
        # A new one: that which was raised holds what was decoded by its traceback.
        plain = ImageError(error.what, where=error.where, hint=error.hint)
        unread.append(Unread(item.id if isinstance(item, ImageItem) else "", plain))


def _row(model: Signature, item: ImageItem) -> Array:
    try:
        return prepared_image(model, item.image)
    except ImageError as error:
        if isinstance(item.image, Path):
            raise
        raise ImageError(error.what, where=item.id, hint=error.hint) from error


def prepared_image(model: Signature, image: str | Path | bytes | Image.Image) -> Array:
    """An image as one row of the input that images make. Raises as `load_image`."""
    from tcompile.models.preprocess import load_image

    found = load_image(image, model.preprocessing)
    found = found[np.newaxis] if model.packed else found
    return np.rint(found) if image_input(model).dtype == "uint8" else found


def image_input(model: Signature, hint: str = "") -> TensorInfo:
    """The input for images of a model that says how they are prepared.

    Args:
        hint: what to do where it does not say; by default the option of commands.

    Raises:
        UsageError: the model takes no images, or does not say how they are prepared.
    """
    if model.image_input is None:
        raise UsageError("the model takes no images [B, C, H, W]", where=str(model.path))
    if not model.preprocessing:
        raise UsageError(
            "does not say how images are prepared for it",
            where=str(model.path),
            hint=hint
            or "say --preprocess imagenet, clip, siglip, …, or give the input as .npy or .npz",
        )
    return model.image_input
