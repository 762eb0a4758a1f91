"""Models that denoise: which checkpoint runs on which module."""
