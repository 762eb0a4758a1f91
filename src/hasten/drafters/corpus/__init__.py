"""Drafts found in a corpus on disk."""
