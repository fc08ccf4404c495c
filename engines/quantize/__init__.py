"""From a BF16 or FP16 checkpoint to an FP4 one: calibration, rounding methods, output, report."""
