"""Ranking with fewer pairs: orders, stop rules and certificates."""
