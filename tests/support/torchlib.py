"""The dynamo exporter's table of ONNX functions, made once a process.

`torch.onnx.export` parses the source of 500 functions at every call, a good part of the time that
the export of a small model takes.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

_MODULE = "torch.onnx._internal.exporter._registration"


def remember_torchlib() -> None:
    """Keep the table of each opset from now on, once the exporter is imported; each export gets a
    copy, to which it may add its own functions."""
    registry = getattr(sys.modules.get(_MODULE), "ONNXRegistry", None)
    if registry is None or not hasattr(registry, "from_torchlib") or hasattr(registry, "kept"):
        return
    registry.kept = lru_cache(registry.from_torchlib)

    def from_torchlib(*args: Any, **kwargs: Any) -> Any:
        found, made = registry.kept(*args, **kwargs), registry()
        vars(made).update(vars(found))
        made.functions = {name: list(each) for name, each in found.functions.items()}
        return made

    registry.from_torchlib = staticmethod(from_torchlib)
