"""Lowering: precision, attention's form and opset for one target (DESIGN 3)."""

from __future__ import annotations

from tcompile.passes.lower.attention import decompose_attention
from tcompile.passes.lower.for_target import lower
from tcompile.passes.lower.norm import decompose_rms_norm
from tcompile.passes.lower.opset import lower_opset
from tcompile.passes.lower.precision import to_fp16

__all__ = ["decompose_attention", "decompose_rms_norm", "lower", "lower_opset", "to_fp16"]
