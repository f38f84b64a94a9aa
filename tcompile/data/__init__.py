"""Data as people have it: each kind of source as a stream of images or arrays, with labels."""
