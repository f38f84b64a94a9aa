"""The outputs of a loaded model: arrays by name, what tells of their tokens, classes by rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tcompile.core.errors import UsageError
from tcompile.runtime.metrics import holds_classes
from tcompile.runtime.token_outputs import INDEX, OWNER, SIZE, is_bookkeeping

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TopClass:
    """A class, the model's raw output for it, and its softmax share; `label` is empty where the
    model's file has no name for it."""

    index: int
    label: str
    logit: float
    probability: float


@dataclass(frozen=True)
class Tokens:
    """The tokens that the rows of an output are.

    Attributes:
        index: [B, K] int64, the position of each row among the N tokens that the dense model gives;
            -1: a token that several were fused into.
        owner: [B, N] int64, the row that stands for each token of the dense model, -1 for none;
            None where nothing is merged.
        size: [B, K] float32, how many tokens of the dense model a row stands for; None where
            nothing is merged.
    """

    index: Array
    owner: Array | None = None
    size: Array | None = None


class Result(Mapping[str, Array]):
    """Every output of a run by name, samples first.

    `result["logits"]` and `result.logits` are the same; a name that is also one of a method of this
    class is had by the brackets alone.
    """

    def __init__(
        self,
        outputs: Mapping[str, Array],
        labels: Sequence[str] = (),
        token_index: Mapping[str, str] | None = None,
    ) -> None:
        self._outputs = dict(outputs)
        self._labels = tuple(labels)
        self._token_index = dict(token_index or {})

    def __getitem__(self, name: str) -> Array:
        try:
            return self._outputs[name]
        except KeyError:
            raise KeyError(f"no output '{name}', there are {', '.join(self._outputs)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._outputs)

    def __len__(self) -> int:
        return len(self._outputs)

    def __getattr__(self, name: str) -> Array:
        # Not through `self`: copy and pickle ask before there is anything.
        try:
            return self.__dict__["_outputs"][name]  # type: ignore[no-any-return]
        except KeyError:
            raise AttributeError(f"the model has no output '{name}'") from None

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(n for n in self._outputs if n.isidentifier())]

    def __repr__(self) -> str:
        shown = (f"{name} {array.dtype}{list(array.shape)}" for name, array in self.items())
        return f"<Result: {', '.join(shown)}>"

    def tokens(self, output: str) -> Tokens | None:
        """Which tokens of the dense model the rows of an output are; None where it has them all.

        Raises:
            KeyError: there is no such output.
        """
        _ = self[output]
        name = self._token_index.get(output, "")
        if name not in self._outputs:
            return None
        suffix = name.removeprefix(INDEX)
        more = (self._outputs.get(f"{kind}{suffix}") for kind in (OWNER, SIZE))
        return Tokens(self._outputs[name], *more)

    def top(self, count: int = 5, output: str | None = None) -> list[tuple[TopClass, ...]]:
        """The best classes of each sample, best first; classes that are NaN or Inf have no rank.

        Args:
            count: classes of a sample, at most.
            output: which holds the classes; by default the first that does, by shape and name.

        Raises:
            UsageError: no output holds classes, or this one does not.
        """
        if output is None:
            known = (n for n in self if not is_bookkeeping(n) and holds_classes(n, self[n]))
            output = next(known, None)
        array = None if output is None else self[output]
        if array is None or array.ndim != 2 or array.dtype.kind != "f":
            raise UsageError(
                "holds no classes [B, classes]" if output else "no output holds classes",
                where=f"output '{output}'" if output else "",
                hint=f"it has {self!r}",
            )
        return [ranked(row, count, self._labels) for row in array]


def ranked(row: Array, count: int, labels: Sequence[str] = ()) -> tuple[TopClass, ...]:
    """The best classes of a row of logits, best first; labels are used where there is one for
    each class."""
    names = labels if len(labels) == len(row) else ()
    finite = np.isfinite(row)  # what is not has no rank
    above = row.astype(np.float64) - row.max(where=finite, initial=-np.inf)
    shares = np.exp(above, where=finite, out=np.zeros_like(above))
    shares /= shares.sum(where=finite) or 1.0  # of none that is finite nothing is given
    order = [i for i in np.argsort(-row, kind="stable") if finite[i]][: max(count, 0)]
    return tuple(
        TopClass(int(i), names[i] if names else "", float(row[i]), float(shares[i])) for i in order
    )
