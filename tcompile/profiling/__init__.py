"""Latency against token count: measured on a target's own runtime, or modelled from its data."""
