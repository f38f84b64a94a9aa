"""Generators of files in the repository: schemas and pages of documentation."""
