"""Speculators: which canvases are predicted ahead, in the forward pass of the present one."""
