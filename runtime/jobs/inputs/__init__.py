"""Inputs of a job, in whatever form, become parts of whole queries."""
