"""The ONNX domain of the token ops, in its own file: they run where there is only numpy."""

from __future__ import annotations

DOMAIN = "tcompile"
