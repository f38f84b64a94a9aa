"""Methods as data: presets, schedulers, and what a preset needs of a model."""
