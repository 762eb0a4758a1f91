"""Random trees and random acceptances, every logit compared with plain passes over the same tokens."""

from __future__ import annotations

import numpy as np
import torch

from adversaries import VOCAB
from hasten.core import Acceptance
from hasten.tree import DraftTree

PROMPTS = [[5], [7, 8, 9, 10, 11, 12, 13, 14, 15], [20, 21, 22]]
LOOSE = ("gemma2", "gemma3_text", "llama4_text", "mixtral", "deepseek_v3")


def assert_equal(forward, found, expected):
    """float64 throughout leaves 1e-9; models that take a softmax or rotation in float32 leave its noise."""
    is_loose = forward.config.model_type in LOOSE
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4 if is_loose else 1e-9)


def plain_logits(forward, token_ids):
    return forward(np.asarray([token_ids]), np.arange(len(token_ids))[None], None, None)[0][-1]


def a_tree(rng):
    count = int(rng.integers(0, 9))
    parents = [int(rng.integers(-1, node)) for node in range(count)]
    return DraftTree(rng.integers(0, VOCAB, count), parents).sanitised(VOCAB, 99)


def an_acceptance(rng, tree):
    """Any path of the tree, from none to a leaf, and a token after it."""
    path = tree.path_to(int(rng.integers(-1, len(tree))))
    return Acceptance(path, [*tree.token_ids[path].tolist(), int(rng.integers(0, VOCAB))])


def check_step(forward, session, texts, rows):
    logits = session.forward(rows)
    for text, tree, found in zip(texts, rows, logits, strict=True):
        assert found.shape[0] == len(tree) + 1
        for node in range(-1, len(tree)):
            path = [*text, *tree.token_ids[tree.path_to(node)].tolist()]
            assert_equal(forward, found[node + 1], plain_logits(forward, path))


def walk(forward, session, rng, num_steps, prompts=PROMPTS):
    """Random trees, random acceptances; every logit of every step is compared."""
    texts = [list(prompt) for prompt in prompts]
    session.prefill(prompts)
    for _ in range(num_steps):
        rows = [a_tree(rng) for _ in texts]
        check_step(forward, session, texts, rows)
        acceptances = [an_acceptance(rng, tree) for tree in rows]
        session.keep(acceptances)
        for text, acceptance in zip(texts, acceptances, strict=True):
            text.extend(acceptance.token_ids)
    return texts
