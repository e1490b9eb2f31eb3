"""Makes variants and judges them: export, quantize, tune, validate."""
