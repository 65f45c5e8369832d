"""The sampler's loop compiled for a CPU: same numbers as the readable loop, up to rounding."""
