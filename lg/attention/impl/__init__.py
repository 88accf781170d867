"""Ways to compute attention under a pattern. Each module has `refusal` (why it cannot, or None) and `run`."""
