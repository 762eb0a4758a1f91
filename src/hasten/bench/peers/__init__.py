"""Other programs that run the same weights: one a file, imported only where it is asked for."""
