"""Draft models: smaller ones, parts of the target, and their caches."""
