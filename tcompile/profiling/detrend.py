"""Times without what the machine's own pace does to them.

A machine that others share runs a tenth slower or faster from one second to the next, and medians
of parts that were timed at different moments then differ by as much. But all parts are run in
turn, so each tells how the machine was when its neighbours ran: a time is taken to be its part's
own, times the pace of the moment (median polish, Tukey, Exploratory Data Analysis, 1977, ch. 11,
with a moving median in place of that of a row).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np
import numpy.typing as npt

K = TypeVar("K", bound=Hashable)
Floats = npt.NDArray[np.float64]

#: Runs, one after another, whose median is the pace of the one in the middle. More follow the
#: machine less closely; with fewer, the pace takes up what the runs themselves vary.
_WINDOW = 15
_SWEEPS = 4


def detrended(
    times: Mapping[K, Sequence[float]], when: Mapping[K, Sequence[float]]
) -> dict[K, list[float]]:
    """The times as they would be had the machine kept its median pace.

    Args:
        times: of each part, in ms, above 0.
        when: each was taken; any clock.
    """
    keys = [k for k in times if len(times[k])]
    if len(keys) < 2:
        return {k: list(times[k]) for k in times}
    logs = np.log(np.maximum(np.concatenate([np.asarray(times[k]) for k in keys]), 1e-9))
    order = np.argsort(np.concatenate([np.asarray(when[k]) for k in keys]))
    bounds = np.cumsum([0, *(len(times[k]) for k in keys)])
    pace = np.zeros_like(logs)
    for _ in range(_SWEEPS):
        rest = logs.copy()
        for low, high in pairwise(bounds):
            rest[low:high] -= np.median(logs[low:high] - pace[low:high])
        pace[order] = _moving_median(rest[order])
        pace -= np.median(pace)
    steady = np.exp(logs - pace)
    found = {k: steady[a:b].tolist() for k, (a, b) in zip(keys, pairwise(bounds), strict=True)}
    return {k: found.get(k, []) for k in times}


def _moving_median(values: Floats) -> Floats:
    """The median of each value's window; windows at the ends are shorter on the one side."""
    half = min(_WINDOW, len(values)) // 2
    padded = np.pad(values, half, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    found: Floats = np.nanmedian(windows, axis=1)
    return found
