"""ONNX graphs: reading, and exact rewrites."""
