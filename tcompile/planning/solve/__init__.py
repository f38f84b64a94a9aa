"""The planner: from a request and a profile to a schedule."""
