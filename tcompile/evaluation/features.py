"""Dense features, token by token, and maps, place by place: error and correlation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tcompile.evaluation.collector import NO_DENSE, Batch, Column
from tcompile.evaluation.findings import Damage, Measure, OutputFindings
from tcompile.evaluation.intervals import mean
from tcompile.evaluation.worst import Worst
from tcompile.runtime.metrics import correlation, cosine, without_equal_nonfinite
from tcompile.runtime.token_outputs import aligned

Array = npt.NDArray[Any]


class Features:
    """Collects what an output of features or of a map says.

    - `correlation`: Pearson's, of all values of an image; images whose dense output is constant do
      not count.
    - `cosine`: of each token or place, the mean of an image's (not of maps with one channel).
    - `error`: of each token or place, the length of the difference over the root mean square length
      of the dense model's in this image; the mean of an image's.
    - `error_p95`: the error that 5 % of an image's tokens or places exceed.

    An image whose reduced output has NaN or Inf of its own has a correlation and a cosine of 0, and
    no error. Tokens for which the reduced model has nothing (`token_owner` −1, fused ones) do not
    count.

    Args:
        towers: see `tower_of_outputs`.
        channels: the axis of them, in maps [B, C, H, W]; None: the last one, of tokens [B, N, C];
            0: each value stands for itself.
    """

    def __init__(
        self,
        output: str,
        worst: int,
        seed: int,
        towers: Mapping[str, str],
        channels: int | None = None,
    ) -> None:
        self.output, self._seed, self._towers, self._channels = output, seed, towers, channels
        self._worst = Worst(worst)
        self._compared, self._alone, self._not_finite = "all", False, 0
        self._columns = {name: Column() for name in ("correlation", "cosine", "error", "error_p95")}

    def add(self, batch: Batch) -> None:
        """Take the outputs of some samples."""
        if batch.alone:
            self._alone = True
            return
        pair = aligned(
            self.output,
            batch.dense[self.output],
            batch.reduced[self.output],
            batch.reduced,
            self._towers,
        )
        if pair is None:
            return
        self._compared, want, have = pair
        want, have = (x.astype(np.float64) for x in without_equal_nonfinite(want, have))
        related = correlation(want, have)
        self._columns["correlation"].add(related)
        rows = [self._places(want[i], have[i]) for i in range(len(want))]
        for name in ("cosine", "error", "error_p95"):
            self._columns[name].add(np.asarray([row[name] for row in rows]))
        for i, name in enumerate(batch.ids):
            if np.isnan(related[i]):
                damage, what = rows[i]["error"], ("error", 0.0)
            else:
                damage, what = 1 - float(related[i]), ("correlation to dense", 1.0)
            value = damage if what[0] == "error" else float(related[i])
            if np.isfinite(damage):
                self._worst.add(damage, Damage(name, *what, value))

    def _places(self, want: Array, have: Array) -> dict[str, float]:
        """Figures of one image, [N, C], [C, H, W] or any other shape."""
        if self._channels == 0 and self._compared == "all":
            want, have = want.reshape(-1, 1), have.reshape(-1, 1)
        elif self._channels is not None and self._compared == "all":
            want, have = (
                np.moveaxis(x, self._channels - 1, -1).reshape(-1, x.shape[self._channels - 1])
                for x in (want, have)
            )
        else:
            want, have = (x.reshape(-1, x.shape[-1]) for x in (want, have))
        if self._compared != "all":
            there = (want != 0).any(axis=1) | (have != 0).any(axis=1)
            want, have = want[there], have[there]
        if not np.isfinite(have).all() and np.isfinite(want).all():
            self._not_finite += 1
            cosines = 0.0 if want.shape[1] > 1 else np.nan
            return {"cosine": cosines, "error": np.nan, "error_p95": np.nan}
        if not want.size or not np.isfinite(want).all():
            return {"cosine": np.nan, "error": np.nan, "error_p95": np.nan}
        size = float(np.sqrt((want**2).sum(axis=1).mean()))
        apart = np.linalg.norm(have - want, axis=1)
        apart = apart / size if size > 0 else np.where(apart > 0, np.nan, 0.0)
        near = float(cosine(want, have).mean()) if want.shape[1] > 1 else np.nan
        return {
            "cosine": near,
            "error": float(apart.mean()),
            "error_p95": float(np.quantile(apart, 0.95)),
        }

    def found(self) -> OutputFindings:
        """The figures of all samples so far."""
        measures: list[Measure] = []
        remarks = []
        for name, column in self._columns.items():
            better = not name.startswith("error")
            measure = mean(name, column.values, seed=self._seed, higher_is_better=better)
            if measure is not None:
                measures.append(measure)
        values = self._columns["error"].values
        if bad := int((~np.isfinite(values)).sum()):
            remarks.append(f"NaN, Inf or nothing to compare in {bad} of {len(values)} images")
        if self._alone:
            remarks.append(NO_DENSE)
        elif not len(values):
            remarks.append("cannot be compared with the dense model's: other shapes")
        return OutputFindings(
            self.output,
            "features",
            self._compared,
            tuple(measures),
            worst=self._worst.found(),
            remarks=tuple(remarks),
            not_finite=self._not_finite,
        )


class Numbers:
    """Collects one number an image: `absolute_error`, the mean of |reduced − dense|."""

    def __init__(self, output: str, worst: int, seed: int) -> None:
        self.output, self._seed = output, seed
        self._worst, self._error, self._alone = Worst(worst), Column(), False
        self._not_finite = 0

    def add(self, batch: Batch) -> None:
        """Take the numbers of some samples."""
        if batch.alone:
            self._alone = True
            return
        pair = (batch.dense[self.output], batch.reduced[self.output])
        want, have = (x.reshape(len(x), -1)[:, 0].astype(np.float64) for x in pair)
        want, have = without_equal_nonfinite(want, have)
        error = np.abs(have - want)
        self._not_finite += int((np.isfinite(want) & ~np.isfinite(have)).sum())
        self._error.add(error)
        for name, x, y, e in zip(batch.ids, want, have, error, strict=True):
            if np.isfinite(e):
                self._worst.add(float(e), Damage(name, "value", float(x), float(y)))

    def found(self) -> OutputFindings:
        """The figures of all samples so far."""
        values = self._error.values
        measure = mean("absolute_error", values, seed=self._seed, higher_is_better=False)
        measures = () if measure is None else (measure,)
        remarks = (NO_DENSE,) if self._alone else ()
        if bad := int((~np.isfinite(values)).sum()):
            remarks = (f"NaN or Inf in {bad} of {len(values)} images",)
        worst, lacking = self._worst.found(), self._not_finite
        return OutputFindings(self.output, "number", "all", measures, (), worst, remarks, lacking)
