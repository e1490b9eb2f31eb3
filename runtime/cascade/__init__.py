"""Ranking with fewer pairs: in which order candidates are scored, and when it is enough."""
