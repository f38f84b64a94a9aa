"""What a build does after planning: emit, check, measure, and plan again where asked."""
