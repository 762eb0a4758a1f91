"""Verification rules, one a file: which path of a draft tree the target's own decoding would have taken.

Words: an *accepted* token was drafted and is what the target writes; a *recovered* token is the target's own
where the draft was wrong; a *bonus* token is the target's own after a whole path was right.
"""

from hasten.verify.follow import follow

__all__ = ["follow"]
