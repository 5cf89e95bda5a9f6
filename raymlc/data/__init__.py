"""The table of images: reading, decoding once, augmenting, batching."""
