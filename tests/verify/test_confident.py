"""`confident` keeps sure drafts unverified, with a cap on repetition, and otherwise follows the target."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from forks import sequence_of

from hasten.core import Acceptance, SamplingParams
from hasten.errors import ConfigError
from hasten.sampling import Sampler
from hasten.stopping import StopConditions
from hasten.tree import DraftTree
from hasten.verify import confident


def kept(tree, beta, max_repeats=1, text=(1,), params=None):
    sequence = sequence_of(Sampler(params or SamplingParams()), text)
    logits = torch.zeros(len(tree) + 1, 9)
    logits[:, 8] = 1.0  # the target always says 8
    return confident(beta, max_repeats)(tree, logits, sequence).token_ids


def test_confident_keeps_the_best_child_from_beta_on():
    tree = DraftTree([2, 3, 4, 5], [-1, -1, 1, 2], [0.3, 0.6, 0.54, 0.27])
    assert kept(tree, 0.0) == [3, 4, 5, 8]
    assert kept(tree, 0.6) == [3, 4, 8]
    assert kept(tree, 0.61) == [8]
    assert kept(tree, 1.01) == [8]


def test_below_beta_confident_follows_the_target():
    tree = DraftTree([8, 3, 8, 2], [-1, 0, 0, 2], [0.5, 0.4, 0.2, 0.2])
    assert kept(tree, 0.9) == [8, 8, 2, 8]


def test_confident_caps_repetition():
    tree = DraftTree.chain([1, 1, 1])
    assert kept(tree, 0.5) == [8]
    assert kept(tree, 0.5, max_repeats=2) == [1, 8]
    assert kept(tree, 0.5, max_repeats=9) == [1, 1, 1, 8]
    assert kept(DraftTree.chain([2, 2, 3]), 0.5) == [2, 8]


@pytest.mark.parametrize("scores", [[np.nan] * 3, [0.0] * 3, [np.inf] * 3, [-1.0] * 3])
def test_confident_never_keeps_above_beta_1_whatever_the_scores(scores):
    assert kept(DraftTree.chain([2, 3, 4], scores), 1.5) == [8]


def test_confident_ends_at_a_stop():
    sequence = sequence_of(Sampler(SamplingParams()), [1], StopConditions(frozenset([3]), 9, None))
    acceptance = confident(0.0)(DraftTree.chain([2, 3, 4]), torch.zeros(4, 9), sequence)
    assert acceptance == Acceptance([0], [2, 3], "stop")


def test_confident_refuses_what_cannot_work():
    for beta in (-0.1, float("nan")):
        with pytest.raises(ConfigError, match="beta"):
            confident(beta)
    with pytest.raises(ConfigError, match="max_repeats=0"):
        confident(0.5, 0)
