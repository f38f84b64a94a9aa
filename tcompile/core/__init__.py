"""What all parts share: errors, graph helpers, files, schedules, parameters, the cache."""
