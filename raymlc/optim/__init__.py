"""AdamP with gradient centralization, parameter groups and the learning-rate schedule."""
