"""Random trees and random acceptances, every logit compared with plain passes over the same tokens."""

from __future__ import annotations

import numpy as np
import torch

from adversaries import VOCAB
from hasten.core import Acceptance
from hasten.models.sessions.session import CopiesRows
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


BEGINNINGS = [[5], [7, 8, 9, 10, 11, 12, 13, 14, 15], [20, 21, 22], [7, 8, 9, 10, 30, 31], [7, 8]]
MAX_ROWS = 5


class RunningRows:
    """A session, the texts that its rows should hold, and what a row's logits should be."""

    def __init__(self, open_session, plain, tolerance):
        self.open_session, self.plain, self.tolerance = open_session, plain, tolerance
        self.session, self.texts = open_session([]), []
        self.known = {}
        self.num_joined = self.num_forked = self.num_restored = 0

    def join(self, rng):
        prompts = [BEGINNINGS[int(rng.integers(len(BEGINNINGS)))] for _ in range(int(rng.integers(1, 3)))]
        prompts = [[*prompt, *rng.integers(0, VOCAB, rng.integers(0, 3)).tolist()] for prompt in prompts]
        known = None
        if isinstance(self.session, CopiesRows) and rng.random() < 0.5:
            known = [self._known(prompt) for prompt in prompts]
            self.num_restored += sum(one is not None for one in known)
        others = self.open_session(prompts)
        others.prefill(prompts, known=known)
        self.session.join(others)
        self.texts += [list(prompt) for prompt in prompts]
        self.num_joined += 1

    def _known(self, prompt):
        """Of the texts that were cached before, the longest beginning of a prompt, less its last token."""
        best = None
        for text, cached in self.known.items():
            same = next((i for i, (a, b) in enumerate(zip(text, prompt, strict=False)) if a != b), len(text))
            same = min(same, len(prompt) - 1, len(text))
            if same and (best is None or same > len(best.positions)):
                best = cached.between(0, same)
        return best

    def select(self, rng):
        rows = rng.integers(0, len(self.texts), rng.integers(0, min(len(self.texts) + 2, MAX_ROWS))).tolist()
        self.num_forked += len(rows) - len(set(rows))
        self.session.select(rows)
        self.texts = [list(self.texts[row]) for row in rows]

    def step(self, rng):
        trees = [self.session.fit(a_tree(rng)) for _ in self.texts]
        logits = self.session.forward(trees)
        for row, (text, tree, found) in enumerate(zip(self.texts, trees, logits, strict=True)):
            for node in range(-1, len(tree)):
                path = [*text, *tree.token_ids[tree.path_to(node)].tolist()]
                expected = self.plain(path, row)
                torch.testing.assert_close(found[node + 1], expected, rtol=0, atol=self.tolerance)
        acceptances = [an_acceptance(rng, tree) for tree in trees]
        self.session.keep(acceptances)
        for text, acceptance in zip(self.texts, acceptances, strict=True):
            text.extend(acceptance.token_ids)
        if isinstance(self.session, CopiesRows):
            row = int(rng.integers(len(self.texts)))
            self.known[tuple(self.texts[row][:-1])] = self.session.cached(row)

    def wander(self, seed, num_steps=20):
        rng = np.random.default_rng(seed)
        for _ in range(num_steps):
            if not self.texts or (len(self.texts) < MAX_ROWS - 1 and rng.random() < 0.4):
                self.join(rng)
            elif rng.random() < 0.4:
                self.select(rng)
            if self.texts:
                self.step(rng)
        assert self.num_joined > 2
        self.session.close()
        self.session.close()
