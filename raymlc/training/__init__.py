"""One trial in plain PyTorch: the loop, metrics, evaluation and checkpoints."""
