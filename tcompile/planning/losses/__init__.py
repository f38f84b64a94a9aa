"""Losses of steps: measured on images, or from the attention of one dense pass."""
