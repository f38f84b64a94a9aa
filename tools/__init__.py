"""Programs for those who work on tcompile; nothing of it is installed."""
