"""The fuzz run: thousands of changed models, each refused in one line or right."""
