"""INT8: what calibration sees, and the products that are made of it."""
