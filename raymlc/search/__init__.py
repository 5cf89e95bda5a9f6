"""The search space and the Optuna study. No Ray."""
