"""Chain sessions: cropping, snapshots and recomputing all forget rejected tokens completely."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adversaries import VOCAB
from conftest import ARCHITECTURES, finest_dtype
from hasten.core import Acceptance
from hasten.models.probe import SESSIONS
from hasten.models.sessions.chain_session import best_chain
from hasten.tree import DraftTree

CHAIN_MODELS = [name for name, (_, _, mode) in ARCHITECTURES.items() if mode != "tree"]
PROMPTS = [[5], [7, 8, 9, 10, 11, 12, 13, 14, 15], [20, 21, 22]]


def plain_logits(forward, token_ids):
    return forward(np.asarray([token_ids]), np.arange(len(token_ids))[None], None, None)[0][-1]


def check_step(forward, session, texts, rows):
    for text, tree, found in zip(texts, rows, session.forward(rows), strict=True):
        for end in range(len(tree) + 1):
            path = [*text, *tree.token_ids[:end].tolist()]
            torch.testing.assert_close(found[end], plain_logits(forward, path), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [*CHAIN_MODELS, "llama", "gemma3"])
def test_any_history_gives_the_logits_of_a_fresh_pass(targets, name):
    mode = ARCHITECTURES[name][2]
    forward = targets(name, finest_dtype(name)).forward
    session = SESSIONS["chain" if mode == "tree" else mode](forward)
    rng, texts = np.random.default_rng(1), [list(prompt) for prompt in PROMPTS]
    session.prefill(PROMPTS)
    for _ in range(6):
        rows = [session.fit(DraftTree.chain(rng.integers(0, VOCAB, rng.integers(0, 5)))) for _ in texts]
        check_step(forward, session, texts, rows)
        paths = [list(range(int(rng.integers(0, len(tree) + 1)))) for tree in rows]
        steps = [
            Acceptance(path, [*tree.token_ids[path].tolist(), int(rng.integers(0, VOCAB))])
            for path, tree in zip(paths, rows, strict=True)
        ]
        session.keep(steps)
        for text, step in zip(texts, steps, strict=True):
            text.extend(step.token_ids)
    session.select([2, 0])
    check_step(forward, session, [texts[2], texts[0]], [DraftTree(), session.fit(DraftTree.chain([3]))])


@pytest.mark.parametrize("name", CHAIN_MODELS)
def test_prefill_gives_the_candidates_of_every_prompt_position(targets, name, monkeypatch):
    monkeypatch.setattr("hasten.models.sessions.chain_session.PREFILL_CHUNK", 4)
    target = targets(name, finest_dtype(name))
    found = target.open().prefill(PROMPTS, top_k=3)
    assert found[0] is None
    for end in range(1, len(PROMPTS[1])):
        best = plain_logits(target.forward, PROMPTS[1][:end]).topk(3).indices.tolist()
        assert found[1].token_ids[end - 1].tolist() == best


def test_the_best_chain_follows_the_best_score_and_then_the_first():
    tree = DraftTree(
        [3, 4, 5, 6, 7], [-1, -1, 1, 1, 0], [0.4, 0.6, 0.3, 0.3, 0.39], [0, 1, 0, 1, 0], ("a", "b")
    )
    chain = best_chain(tree)
    assert chain.token_ids.tolist() == [4, 5]
    assert chain.parents.tolist() == [-1, 0]
    assert [chain.source_names[source] for source in chain.sources] == ["b", "a"]


def test_a_model_that_cannot_forget_is_given_no_drafts(targets):
    assert len(targets("mamba-recurrent").open().fit(DraftTree.chain([1, 2]))) == 0


def test_this_must_fail_state_that_is_not_restored_shows(targets):
    target = targets("lfm2-hybrid", torch.float64)
    session = target.open()
    session.prefill(PROMPTS[1:2])
    session.forward([DraftTree.chain([3, 4, 5])])
    session._rows[0]._snapshot = None
    session.keep([Acceptance([], [9])])
    with pytest.raises(AssertionError):
        check_step(target.forward, session, [[*PROMPTS[1], 9]], [DraftTree()])
