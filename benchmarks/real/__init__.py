"""Models with trained weights and photos: what every figure about accuracy should be made on."""

from benchmarks.real.fetch import default_cache, stamps
from benchmarks.real.models import CLS, PATCHES, SALIENCY, features_model, photos, saliency_model

__all__ = [
    "CLS",
    "PATCHES",
    "SALIENCY",
    "default_cache",
    "features_model",
    "photos",
    "saliency_model",
    "stamps",
]
