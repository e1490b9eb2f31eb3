"""What runs a forward: one file a backend, padded or packed."""
