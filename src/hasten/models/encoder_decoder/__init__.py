"""Targets that write about what an encoder read."""
