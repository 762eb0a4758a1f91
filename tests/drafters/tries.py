"""What the tests of the token trie and of what Lookahead keeps in it share: every path and its count."""

from __future__ import annotations

from collections import Counter

from hasten.drafters.lookup.token_trie import TokenTrie

Path = tuple[int, ...]


def counted(trie: TokenTrie) -> dict[Path, int]:
    """Every path of the trie with its count."""
    arrays = trie.arrays()
    found: list[Path] = []
    for token, parent in zip(arrays["token_ids"].tolist(), arrays["parents"].tolist(), strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    assert len(set(found)) == len(found)
    return dict(zip(found, arrays["counts"].tolist(), strict=True))


def windows(text: list[int], window: int) -> Counter[Path]:
    """How often every path of at most ``window`` tokens occurs."""
    return Counter(
        tuple(text[start:end])
        for start in range(len(text))
        for end in range(start + 1, min(len(text), start + window) + 1)
    )
