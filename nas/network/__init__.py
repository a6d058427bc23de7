"""Networks made of layers: run, counted, calibrated for int8, and taken apart for timing."""
