"""Transforms: what changes a prediction before anything is decided."""
