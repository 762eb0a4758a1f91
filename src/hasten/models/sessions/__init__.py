"""What a batch of texts has cached, and the passes over it: one kind of cache a file."""
