"""The shared parts: errors, graph helpers, files, schedules, parameters, the cache."""
