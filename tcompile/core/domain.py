"""The ONNX domain of the token ops, in its own file: they run where there is only numpy."""

from __future__ import annotations

DOMAIN = "tcompile"

#: Names of nodes and tensors that the reduce pass writes begin with this. A pass returns which they
#: are; only a reader of a file, or of a part of a graph, has to go by the name.
WRITTEN = "tcompile/"
