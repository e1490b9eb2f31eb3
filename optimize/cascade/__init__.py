"""Finds cascades: fits orders, tries rules, and certifies what is lost."""
