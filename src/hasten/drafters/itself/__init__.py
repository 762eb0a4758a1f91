"""Drafts the target makes itself."""
