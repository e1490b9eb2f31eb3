"""Do scores still rank the same: gates, intervals, where rankings differ."""
