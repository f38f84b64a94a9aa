"""What a build checks of its own output: lowered against reduced, reduced against dense, fusion."""
