"""Samples for a model, what it makes of them, how long it takes."""
