"""The directory that a build writes: its manifest, its files, its page."""
