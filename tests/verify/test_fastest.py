"""Rules that take turns keep the law, whatever coupled drafts saw of noise that is not written yet."""

from __future__ import annotations

import importlib
from collections import Counter

import numpy as np
import pytest
import torch
from forks import Forks, distance, sequence_of
from sampled_trees import Laws, TextSampler, patch_draw, rows_of
from test_rounds import excess

from conftest import build_model
from hasten.core import SamplingParams, VeiledSampler
from hasten.drafters.plain import NoDrafter
from hasten.errors import ConfigError
from hasten.models.causal_lm import CausalLM
from hasten.sampling import Sampler
from hasten.text.engine import LanguageModel
from hasten.tree import DraftTree
from hasten.verify import Fastest

GRAIN = 5
"""Noise of a position is one of so many equally likely numbers, and laws are so many parts."""
LENGTH = 4


class SeenSampler(TextSampler):
    """Draws with noise that forks when it is first looked at, by whomever."""

    guess_end = None

    def __init__(self, forks, language, *, leaks=False):
        super().__init__(forks, language)
        self._noise, self._leaks = {}, leaks

    def _token(self, law, position, *, of_text):
        key = position, of_text
        if key not in self._noise:
            self._noise[key] = self.forks.choose([1 / GRAIN] * GRAIN)
        return int(np.searchsorted(law.cumsum(), (self._noise[key] + 0.5) / GRAIN))

    def draws(self, logits):
        return lambda row, text: self._token(self.law(logits[row], text), len(text), of_text=True)

    def guess(self, law, position):
        is_open = self.guess_end is None or position < self.guess_end
        return self._token(law, position, of_text=is_open or self._leaks)


def in_parts(at):
    return np.array([[0.2, 0.8], [0.6, 0.4], [0.4, 0.6]][at % 3])


def propose(sequence, draft, seen):
    """Three guesses; how many are drafted, here and later, follows the last of them."""
    text, sampler = list(sequence.token_ids), sequence.sampler
    if sequence.proposals == "coupled":
        tokens = [sampler.guess(draft.law([*text, *[0] * at]), len(text) + at) for at in range(3)]
        seen.append(tokens[2])
        return DraftTree.chain(tokens[: 1 + 2 * tokens[2]])
    if seen and seen[-1]:
        return DraftTree()
    if sequence.proposals == "chosen":
        return DraftTree.chain([int(np.argmax(draft.law(text)))])
    law = draft.law(text)
    token = sampler.forks.choose(law.tolist())
    return DraftTree([token], [-1], draft_probs=law[None], draws=np.array([0]))


def law_of_texts(forks, target, draft, **options):
    def run():
        sampler, seen = SeenSampler(forks, target, **options), []
        sequence = sequence_of(sampler)
        sequence.judge = Fastest(sequence)
        while len(sequence.new_token_ids) < LENGTH:
            tree = propose(sequence, draft, seen)
            logits = rows_of(tree, tuple(sequence.token_ids))
            sequence.token_ids += sequence.judge.verify(tree, logits, sequence).token_ids
        return tuple(sequence.new_token_ids[:LENGTH])

    return forks.law_of(run)


@pytest.fixture
def forks(monkeypatch):
    forks = Forks()
    patch_draw(monkeypatch, forks)
    rule = importlib.import_module("hasten.verify.fastest")
    for name, value in (("_VIEW", 1), ("_TRIAL_STEPS", 1), ("_EXPLORE_EVERY", 2)):
        monkeypatch.setattr(rule, name, value)
    return forks


@pytest.mark.parametrize("view", [1, 2])
@pytest.mark.parametrize("draft", [lambda at: np.array([0.5, 0.5]), in_parts])
def test_the_joint_law_is_that_of_plain_sampling(forks, monkeypatch, draft, view):
    monkeypatch.setattr(importlib.import_module("hasten.verify.fastest"), "_VIEW", view)
    target = Laws(2, 0, in_parts)
    law = law_of_texts(forks, target, Laws(2, 0, draft))
    assert sum(law.values()) == pytest.approx(1, abs=1e-12)
    assert distance(law, target.texts([0], LENGTH)) < 1e-12


def test_noise_that_is_not_veiled_biases_the_law(forks):
    target = Laws(2, 0, in_parts)
    law = law_of_texts(forks, target, Laws(2, 0, in_parts), leaks=True)
    assert distance(law, target.texts([0], LENGTH)) > 0.01


def test_guesses_take_the_noise_of_the_text_before_the_veil_only():
    logits = torch.randn(500, generator=torch.Generator().manual_seed(0))
    sampler, open_one = (Sampler(SamplingParams(temperature=1.0), 3) for _ in range(2))
    sampler.guess_end = 10
    assert isinstance(sampler, VeiledSampler)
    for position in range(20):
        is_same = torch.equal(sampler.noisy(logits, position), open_one.noisy(logits, position))
        assert is_same == (position < 10)
        drawn = sampler.draws(logits[None])(0, [0] * position)
        assert drawn == open_one.guess(logits, position)


def test_a_sampler_that_cannot_veil_its_noise_is_refused():
    with pytest.raises(ConfigError, match="can veil its noise, and TextSampler cannot"):
        Fastest(sequence_of(TextSampler(Forks(), Laws(2, 0))))


class Peeking(NoDrafter):
    """Coupled guesses of the target itself; each tree ends at the first token that is not a 2."""

    name = "peeking"

    def __init__(self, target):
        self._target = target

    def propose(self, sequence, budget):
        if sequence.proposals != "coupled":
            return DraftTree()
        tokens = []
        while len(tokens) < budget and tokens[-2:-1] in ([], [2]):
            rows = np.array([[*sequence.token_ids, *tokens]])
            logits = self._target.forward(rows, np.arange(rows.shape[1])[None], None, None)[0, -1]
            tokens.append(sequence.sampler.guess(logits, rows.shape[1]))
        return DraftTree.chain(tokens[:-1])


@pytest.mark.slow
def test_texts_of_the_engine_have_the_law_of_plain_sampling(monkeypatch):
    """As test_rules_engine does for the other rules."""
    from test_rules_engine import TINY, Written

    rule = importlib.import_module("hasten.verify.fastest")
    for name, value in (("_VIEW", 3), ("_TRIAL_STEPS", 1), ("_EXPLORE_EVERY", 2)):
        monkeypatch.setattr(rule, name, value)
    model = build_model("llama", seed=0, vocab_size=TINY)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.3)
    target = CausalLM(model, mode="tree")
    params = SamplingParams(max_new_tokens=6, temperature=1.0, seed=8, n=4000, ignore_eos=True)
    outputs = LanguageModel(target, drafter="off").generate(
        [[2, 3, 4]], params, drafter=Peeking(target), verify="fastest", num_draft_tokens=5, batch_size=500
    )
    counts = Counter(tuple(output.token_ids[2:4]) for output in outputs)
    texts = Counter()
    for text, chance in Written(target).texts([2, 3, 4], 4).items():
        texts[text[2:]] += chance
    assert excess(counts, texts) < 4
