"""Selectors: which open positions are written after a forward pass."""
