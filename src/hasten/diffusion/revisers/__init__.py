"""Revisers: what is taken back or replaced after a commit."""
