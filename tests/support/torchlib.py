"""What the exporters of PyTorch work out anew at every export, worked out once a process.

An export of a small model by `torch.onnx.export(dynamo=True)` takes a second, a fifth of it for
tables that are the same at every export. Nothing of what is exported changes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

_REGISTRATION = "torch.onnx._internal.exporter._registration"
_EXPORT = "torch._export.utils"
#: The modules in which something is remembered already.
_DONE: set[str] = set()


def remember_tables() -> None:
    """Keep these tables from now on, of what is imported by now. A PyTorch that has its tables in
    other places goes on as it would."""
    for name, remember in (
        (_REGISTRATION, _torchlib),
        (_EXPORT, _composite_ops),
        ("torch._ops", _annotations),
    ):
        module = sys.modules.get(name)
        if module is not None and name not in _DONE:
            _DONE.add(name)
            remember(module)


def _torchlib(module: Any) -> None:
    """The table of ONNX functions, for which the source of 500 functions is parsed; each export
    gets a copy, to which it may add its own functions."""
    registry = getattr(module, "ONNXRegistry", None)
    if registry is None or not hasattr(registry, "from_torchlib"):
        return
    sources = getattr(module, "onnxscript_apis", None)
    if sources is not None and hasattr(sources, "get_torchlib_ops"):
        # The same functions for every opset; which of them it has is decided after.
        sources.get_torchlib_ops = lru_cache(sources.get_torchlib_ops)
    kept = lru_cache(registry.from_torchlib)

    def from_torchlib(*args: Any, **kwargs: Any) -> Any:
        found, made = kept(*args, **kwargs), registry()
        vars(made).update(vars(found))
        made.functions = {name: list(each) for name, each in found.functions.items()}
        return made

    registry.from_torchlib = staticmethod(from_torchlib)


def _composite_ops(module: Any) -> None:
    """Which operators are composed of others: PyTorch looks each of 700 up, thirty times an export,
    so that all of them are attributes of `torch.ops`. They stay that once they are."""
    look_up = getattr(module, "_materialize_cpp_cia_ops", None)
    if look_up is None:
        return
    import torch

    known: set[str] = set()

    def look_up_new() -> None:
        names = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
        if not known.issuperset(names):
            look_up()
            known.update(names)

    module._materialize_cpp_cia_ops = look_up_new


class _Kept(type):
    """`Callable`, whose `Callable[P, T]` is made once for each P and T."""

    _of = staticmethod(lru_cache(lambda of: Callable[of]))

    def __getitem__(cls, of: Any) -> Any:
        arguments = of[0] if isinstance(of, tuple) else of
        return Callable[of] if isinstance(arguments, list) else cls._of(of)

    def __instancecheck__(cls, one: Any) -> bool:
        return callable(one)


def _annotations(module: Any) -> None:
    """The annotation `Callable[P, T]` of a function that is defined anew for each override of an
    operator, of which there are several thousand at every export."""
    if getattr(module, "Callable", None) is Callable:
        module.Callable = _Kept("Callable", (), {})
