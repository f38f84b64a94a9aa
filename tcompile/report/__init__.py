"""What is shown to a person: inspection pages, explanations, plots."""
