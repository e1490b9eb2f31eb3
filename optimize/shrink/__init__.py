"""Makes smaller models: fewer layers, distilled from a model's own scores."""
