"""Checks of a model: lowered against reduced, reduced against dense, fused attention."""
