"""Candidates in Daft become ranked candidates."""
