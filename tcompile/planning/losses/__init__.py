"""Losses: of whole schedules on images, or of steps by the attention of one dense pass."""
