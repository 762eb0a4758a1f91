"""Drafts from tables of what followed a token, learnt while writing."""
