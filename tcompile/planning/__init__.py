"""Planning: from a budget and a method to a schedule."""
