"""Token ops as kernels compiled ahead of time, for TensorRT 10.9 and newer: an engine that is built
with them needs neither a library of tcompile nor Python.

`register()` makes them known to TensorRT; its parser then takes them for the calls of the ops, by
name, as it takes plugins. Shapes are static (TensorRT#4849).
"""

from __future__ import annotations

from tcompile.plugins.aot.register import register

__all__ = ["register"]
