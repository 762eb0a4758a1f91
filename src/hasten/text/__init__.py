"""Autoregressive text: from a request to what it wrote, over a batch that texts join and leave."""
