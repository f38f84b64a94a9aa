"""Running what a build wrote: `tcompile.load`, and the checks before anything is opened."""
