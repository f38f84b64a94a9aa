"""From a budget and a profile to a schedule: `tcompile.planning.optimise` fed with a model."""
