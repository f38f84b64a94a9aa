"""Pages for people: inspection pages, explanations, plots."""
