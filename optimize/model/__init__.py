"""The model as it was given: where it comes from, what it is, and what its logits are."""
