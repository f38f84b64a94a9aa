"""How alike the outputs of two models are, from their definitions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tests.oracles.report.reading import Table
from tests.oracles.report.shown import ROUNDING, Array, Check, near, not_all


@dataclass(frozen=True)
class Likeness:
    """How alike an output is on each sample."""

    name: str
    cosine: Array
    error: Array
    correlation: Array | None = None
    tokens: Array | None = None
    same: float | None = None

    @property
    def main(self) -> Array:
        """The figure that says most of it: correlation where there is one."""
        return self.cosine if self.correlation is None else self.correlation

    def checks(self, where: str, table: Table, names: Sequence[str]) -> Iterator[Check]:
        """Hold a row of the table of fidelity against this."""
        cells = table.row(self.name)

        def cell(title: str, worst: bool = False) -> str:
            return cells[table.head.index(title) + worst]

        yield near(f"{where}, cosine", cell("cosine"), float(self.cosine.mean()), ".5f", ROUNDING)
        yield near(
            f"{where}, worst cosine",
            cell("cosine", True),
            float(self.cosine.min()),
            ".5f",
            ROUNDING,
        )
        yield near(
            f"{where}, relative error",
            cell("relative error"),
            float(self.error.mean()),
            ".3g",
            ROUNDING,
        )
        yield near(
            f"{where}, worst error",
            cell("relative error", True),
            float(self.error.max()),
            ".3g",
            ROUNDING,
        )
        if self.correlation is not None:
            yield near(
                f"{where}, correlation",
                cell("correlation"),
                float(self.correlation.mean()),
                ".4f",
                ROUNDING,
            )
            yield near(
                f"{where}, worst correlation",
                cell("correlation", True),
                float(self.correlation.min()),
                ".4f",
                ROUNDING,
            )
        if self.tokens is not None:
            yield near(
                f"{where}, 5 % of tokens",
                cell("5 % of tokens below"),
                float(np.percentile(self.tokens, 5)),
                ".4f",
                ROUNDING,
            )
        if self.same is not None:
            yield near(f"{where}, top-1", cell("top-1 the same"), not_all(self.same, 0.999), ".1%")
        yield Check(f"{where}, worst sample", cell("worst sample"), names[int(self.main.argmin())])


def likenesses(dense: Mapping[str, Array], reduced: Mapping[str, Array]) -> dict[str, Likeness]:
    found = {}
    for name, want in dense.items():
        a, b, tokens = want.astype(np.float64), reduced[name].astype(np.float64), None
        if want.shape[1:] != b.shape[1:] or (want.ndim == 3 and "token_owner" in reduced):
            # Each of the dense model's tokens against the one that stands for it.
            b = np.stack([rows[o] for rows, o in zip(b, reduced["token_owner"], strict=True)])
            tokens = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
        x, y = a.reshape(len(a), -1), b.reshape(len(b), -1)
        cosine = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
        error = np.linalg.norm(x - y, axis=1) / np.linalg.norm(x, axis=1)
        pairs = zip(x, y, strict=True)
        alike = None if a.ndim == 2 else np.array([np.corrcoef(p, q)[0, 1] for p, q in pairs])
        same = same_class(dense, reduced) if name == "logits" else None
        found[name] = Likeness(name, cosine, error, alike, tokens, same)
    return found


def same_class(dense: Mapping[str, Array], reduced: Mapping[str, Array]) -> float | None:
    if "logits" not in dense:
        return None
    return float((dense["logits"].argmax(1) == reduced["logits"].argmax(1)).mean())


def planning_loss(dense: Mapping[str, Array], reduced: Mapping[str, Array]) -> Array:
    """Half of what class probabilities differ by; of a model without classes 1 - correlation."""
    if "logits" in dense:
        pairs = zip(dense["logits"], reduced["logits"], strict=True)
        return np.array([np.abs(softmax(p) - softmax(q)).sum() / 2 for p, q in pairs])
    return np.asarray(np.mean([1 - f.main for f in likenesses(dense, reduced).values()], axis=0))


def softmax(logits: Array) -> Array:
    shares = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(shares / shares.sum())
