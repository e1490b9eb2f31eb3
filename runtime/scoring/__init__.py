"""Pairs in, scores out: tokenising, planning and running forwards."""
