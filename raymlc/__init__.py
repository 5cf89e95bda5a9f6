"""raymlc: hyperparameter search for multi-label image classifiers."""
