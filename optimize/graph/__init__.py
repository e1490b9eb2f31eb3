"""ONNX graphs: reading, exact rewrites, INT8."""
