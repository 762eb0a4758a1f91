"""Masked diffusion: one loop, and small policies that decide which rows run and which positions are written."""
