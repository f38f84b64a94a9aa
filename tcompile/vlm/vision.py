"""What a vision encoder gave, brought into the order in which a language model reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tcompile.core.errors import UsageError
from tcompile.deploy.result import Result, Tokens
from tcompile.runtime.token_outputs import is_bookkeeping

#: Of numpy or PyTorch.
Array: TypeAlias = Any
Places = npt.NDArray[np.int64]
#: The start of the names of Qwen3-VL's features for its first layers of text (`tcompile export`).
_DEEP = "deepstack_"


@dataclass(frozen=True)
class Vision:
    """The features of one or more images, and which of the dense encoder's tokens they are.

    `hand_off` makes it of what `tcompile.load`'s model gives; make it yourself of arrays from
    elsewhere (a server, a C++ program), or where the defaults do not fit.

    Attributes:
        features: [images, K, D].
        tokens: which tokens of the dense encoder its rows are; None: all of them, in order.
        deepstack: of Qwen3-VL, for each of the first layers of text: features [images, K', D], and
            which tokens these are.
        prefix: tokens at the front of the dense encoder's that the language model does not read
            (CLS, registers).
        projected: whether the features have gone through the model's projector; None: told by
            their width.
    """

    features: Array
    tokens: Tokens | None = None
    deepstack: Sequence[tuple[Array, Tokens | None]] = ()
    prefix: int = 0
    projected: bool | None = None

    @classmethod
    def of(
        cls,
        result: Result,
        output: str | None = None,
        *,
        prefix: int = 0,
        projected: bool | None = None,
    ) -> Vision:
        """What `tcompile.load`'s model gave.

        Args:
            output: which of its outputs holds the features; by default the first with rows of
                tokens.

        Raises:
            UsageError: there is no such output.
        """
        found = [n for n in result if not is_bookkeeping(n) and result[n].ndim == 3]
        features = [n for n in found if not n.startswith(_DEEP)]
        name = output or (features[0] if features else "")
        if name not in result:
            raise UsageError(
                f"no output '{output}'" if output else "no output has features of tokens",
                where="vision",
                hint=f"it has {result!r}",
            )
        deep = [(result[n], result.tokens(n)) for n in found if n.startswith(_DEEP)]
        return cls(result[name], result.tokens(name), deep, prefix, projected)


#: What an encoder gave, for all images at once or in parts.
Given: TypeAlias = "Result | Vision | Sequence[Result | Vision]"


@dataclass(frozen=True)
class Image:
    """One image.

    Attributes:
        features: [K, D], in the order of places.
        places: [K], ascending: where each row stands among the dense encoder's patch tokens.
        deepstack: [K, D] each, of the same tokens.
        dense: how many patch tokens the dense encoder gives, where that is known.
        projected: see `Vision`.
    """

    features: Array
    places: Places
    deepstack: tuple[Array, ...]
    dense: int | None
    projected: bool | None


def images_of(given: Given) -> list[Image]:
    """Every image of what was given, in the same order.

    Raises:
        UsageError: features and indices that do not belong together.
    """
    parts = [given] if isinstance(given, (Result, Vision)) else list(given)
    for part in parts:
        if not isinstance(part, (Result, Vision)):
            raise UsageError(
                f"{type(part).__name__} does not say which tokens it holds",
                where="vision",
                hint="give what tcompile.load's model gave, or Vision(features, Tokens(index))",
            )
    return [image for part in parts for image in _images(part)]


def _images(part: Result | Vision) -> Iterator[Image]:
    vision = Vision.of(part) if isinstance(part, Result) else part
    for features, tokens in ((vision.features, vision.tokens), *vision.deepstack):
        _check_shapes(features, tokens)
    for row in range(len(vision.features)):
        tokens, prefix = vision.tokens, vision.prefix
        count = vision.features.shape[1]
        index = _index(tokens, row, count)
        order = np.argsort(index, kind="stable")
        order = order[index[order] >= prefix]
        index = index[order]
        if tokens is None:
            dense: int | None = count
        else:
            dense = None if tokens.owner is None else tokens.owner.shape[1]
        deep = (
            features[row][_rows(other, row, features.shape[1], index)]
            for features, other in vision.deepstack
        )
        yield Image(
            vision.features[row][order],
            index - prefix,
            tuple(deep),
            None if dense is None else dense - prefix,
            vision.projected,
        )


def _check_shapes(features: Array, tokens: Tokens | None) -> None:
    shape = tuple(features.shape)
    if len(shape) != 3:
        raise UsageError(f"features {list(shape)} are not [images, K, D]", where="vision")
    if tokens is not None and tuple(tokens.index.shape) != shape[:2]:
        raise UsageError(
            f"features {list(shape)} and token index {list(tokens.index.shape)} do not belong "
            "together",
            where="vision",
        )


def _index(tokens: Tokens | None, row: int, count: int) -> Places:
    """The token of the dense encoder that each row is; of a fused row the first that it stands for:
    by its owner map, else all that no row is."""
    if tokens is None:
        return np.arange(count)
    index = np.array(tokens.index[row], np.int64)
    owner = None if tokens.owner is None else np.asarray(tokens.owner[row])
    free = np.setdiff1d(np.arange(count + 1), index)  # of so many, more than enough are free
    for number, fused in enumerate(np.flatnonzero(index < 0)):
        owned = free[number:] if owner is None else np.flatnonzero(owner == fused)
        if not len(owned):
            raise UsageError(f"nothing is owned by row {fused} of image {row}", where="vision")
        index[fused] = owned[0]
    if len(np.unique(index)) < len(index):
        raise UsageError(f"the index of image {row} has a token twice", where="vision")
    return index


def _rows(tokens: Tokens | None, row: int, count: int, wanted: Places) -> Places:
    """The row of features that stands for each wanted token of the dense encoder."""
    if tokens is not None and tokens.owner is not None:
        held = np.asarray(tokens.owner[row], np.int64)
    else:
        index = _index(tokens, row, count)
        held = np.full(index.max(initial=-1) + 1, -1)
        held[index] = np.arange(count)
    rows = np.where(wanted < len(held), held[np.minimum(wanted, len(held) - 1)], -1)
    if (rows < 0).any():
        raise UsageError(
            f"the deepstack features of image {row} lack tokens that its features have",
            where="vision",
        )
    return rows
