"""The model that a user gives: where it comes from, what it is, and what its logits are."""
