"""Drafts found in the text itself and in earlier ones."""
