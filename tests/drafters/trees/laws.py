"""Whether texts drafted by a shape have the law of plain sampling: all that can be drawn, enumerated."""

from __future__ import annotations

import importlib

import pytest

from hasten.verify import VERIFIERS
from verify.forks import ForkedSampler, Forks, Language, distance

from oracles import grow, sequence_of  # isort: skip

DRAWING = (
    "hasten.drafters.trees.siblings",
    "hasten.verify.residual",
    "hasten.verify.traversal",
    "hasten.verify.k_sequential",
)


def law_is_kept(make_shape, proposals, verify, *, budget, vocab_size=3, length=2, hidden_of=None, price=0.0):
    """Runs the shape over two rounds and more; AssertionError where the law is another."""
    forks, target, draft = Forks(), Language(vocab_size, 1), Language(vocab_size, 2)

    def run():
        sequence = sequence_of(proposals, token_ids=(0,), sampler=ForkedSampler(forks))
        shape = make_shape()
        while len(sequence.new_token_ids) < length:
            tree, _ = grow(
                shape, sequence, draft.logits, budget, max_depth=2, token_price=price, hidden_of=hidden_of
            )
            rows = target.rows(sequence.token_ids, tree)
            acceptance = VERIFIERS[verify].rule(tree, rows, sequence)
            sequence.token_ids += acceptance.token_ids
            shape.learn(tree, acceptance)
        return tuple(sequence.new_token_ids[:length])

    with pytest.MonkeyPatch.context() as patch:
        for name in DRAWING:
            patch.setattr(
                importlib.import_module(name), "draw", lambda law, _: forks.choose((law / law.sum()).tolist())
            )
        found = forks.law_of(run)
    error = distance(found, target.texts([0], length))
    assert error < 1e-6, f"the law is off by {error}"
