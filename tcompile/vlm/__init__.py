"""Hand what a reduced vision encoder gives to a vision-language model of transformers."""

from tcompile.vlm.merge import Merged, check, hand_off, merge
from tcompile.vlm.vision import Vision

__all__ = ["Merged", "Vision", "check", "hand_off", "merge"]
