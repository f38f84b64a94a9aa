"""Methods as options of the planner: their tables, what a budget allows them, and the outcome."""
