"""Masked diffusion: one loop, and small policies that say which rows run and which positions are written."""
