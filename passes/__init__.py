"""Graph passes: normalize, reduce, lower. One file a pass."""
