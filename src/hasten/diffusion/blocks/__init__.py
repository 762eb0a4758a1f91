"""Block policies: which range of positions is written next."""
