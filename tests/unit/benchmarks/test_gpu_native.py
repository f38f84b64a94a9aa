"""Kernels that a step adds to native engines stay within what was counted, on every compute
capability that TensorRT-RTX builds for. All of it with TCOMPILE_MATRIX=all in the environment.
"""

from __future__ import annotations

import json
import os

import pytest

from tools.token_ops import NATIVE, page

pytest.importorskip("tensorrt_rtx")
from benchmarks.gpu import native

DATA = json.loads(NATIVE.read_text(encoding="utf-8"))
ROWS = {row["method"]: row for row in DATA["rows"]}
#: Methods whose steps have all the token ops there are; the first on every capability.
FEW = {"topk": native.CAPABILITIES, "evit": ("86",), "tome": ("75", "89"), "bypass": ("120",)}
WHOLE = bool(os.environ.get("TCOMPILE_MATRIX"))
CHOSEN = dict.fromkeys(ROWS, native.CAPABILITIES) if WHOLE else FEW


def test_the_table_is_whole() -> None:
    assert list(ROWS) == list(native.methods())
    assert DATA["capabilities"] == list(native.CAPABILITIES)
    assert DATA["about"] == native.ABOUT
    for row in DATA["rows"]:
        assert set(row["added"]) == set(native.CAPABILITIES)
        assert row["bound"] == max(row["added"].values())
        assert f"| `{row['method']}` | " in page()


@pytest.mark.heavy
@pytest.mark.parametrize("method", CHOSEN)
def test_a_step_adds_no_more(method: str) -> None:
    from tcompile.targets.backends import rtx

    if DATA["runtime"] != f"TensorRT-RTX {rtx.version()}":
        pytest.skip(f"counted with {DATA['runtime']}")
    capabilities = CHOSEN[method]
    schedule = native.first_step(method)
    assert len(schedule.reductions) == 1
    found = native.count(schedule, capabilities)
    for capability in capabilities:
        assert found[capability] - DATA["dense"][capability] <= ROWS[method]["bound"]
