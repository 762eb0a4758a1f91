"""Stop policies: when a text ends before everything was written a block at a time."""
