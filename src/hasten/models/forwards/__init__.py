"""Ways to run one pass of a transformers model: its own layers, packed, recorded, compiled."""
