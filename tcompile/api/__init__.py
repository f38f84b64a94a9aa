"""Commands that call the compiler as a whole: bench, demo, profile, run, verify."""
