"""Pure functions on frames: what records say, with intervals."""
