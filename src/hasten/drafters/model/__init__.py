"""Drafts of a smaller model."""
