"""The parts of a build: what is emitted, measured and checked, and the attempts at it.

Not called `build`: that is a function of the public API, `tcompile.build`, and a package of that
name would take its place once it is imported.
"""
