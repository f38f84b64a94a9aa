"""The coverage table of docs/coverage.md: `python -m tests.coverage` measures and writes it."""
