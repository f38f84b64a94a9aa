"""The task's own measure, dense and reduced on the same samples: `tcompile evaluate`."""
