"""Makes a smaller model of a larger one: fewer layers, distilled from the larger one's scores."""
