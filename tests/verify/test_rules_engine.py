"""The rules through the whole engine, with a small draft model's sampled trees; greedy and refused calls."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from forks import NoStop, sequence_of
from sampled_trees import EXACT, grown, rule_of
from test_rounds import excess, five_rows, random_tree

from conftest import build_model
from hasten.core import SamplingParams
from hasten.drafters.plain import NoDrafter
from hasten.errors import ConfigError
from hasten.laws import draw
from hasten.models.causal_lm import CausalLM
from hasten.sampling import Sampler
from hasten.text.engine import LanguageModel
from hasten.tree import DraftTree
from hasten.verify import SYSTEMS, VERIFIERS, follow, typical

TINY = 5
LENGTH = 2
PROMPT = [2, 3, 4]
STREAM = 9
KINDS = {"distinct": "distinct", "independent": "iid", "chosen": "chosen", "coupled": "chosen"}
NAMES = ["residual", "residual-independent", "k-sequential", "block", "traversal", "naive", "point-mass"]


def tiny_model(seed):
    model = build_model("llama", seed=seed, vocab_size=TINY)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.5)  # a flatter law accepts more
    return CausalLM(model)


class Written:
    """A model's law after a text, each asked for once."""

    def __init__(self, target):
        self._target, self._known = target, {}

    def law(self, text):
        key = tuple(text)
        if key not in self._known:
            rows, positions = np.array([key]), np.arange(len(key))[None]
            logits = self._target.forward(rows, positions, None, None)[0, -1]
            self._known[key] = torch.softmax(logits.double(), -1).numpy()
        return self._known[key]

    def texts(self, prompt, length):
        law = {(): 1.0}
        for _ in range(length):
            law = {
                (*text, token): chance * self.law([*prompt, *text])[token]
                for text, chance in law.items()
                for token in range(TINY)
            }
        return law


class SmallDraft(NoDrafter):
    """Trees of a draft model as the rule wants them, drawn with random numbers of its own."""

    name = "small"

    def __init__(self, laws, branching=(2, 2)):
        self._laws, self._branching = laws, branching

    def propose(self, sequence, budget):
        generator = sequence.sampler.generator(len(sequence.token_ids), STREAM)
        kind = KINDS[sequence.proposals]
        text = tuple(sequence.token_ids)
        tree = grown(self._laws, text, kind, self._branching, lambda law: draw(law, generator))
        if tree.draft_probs is not None:
            tree.draft_probs = tree.draft_probs.astype(np.float32)
        assert len(tree) <= budget
        return tree


@pytest.fixture(scope="module")
def tiny():
    """(language model, laws of its texts, a draft)"""
    target = tiny_model(seed=0)
    return LanguageModel(target, drafter="off"), Written(target), SmallDraft(Written(tiny_model(seed=1)))


def sampled(tiny, name, count, batch_size):
    lm, laws, draft = tiny
    params = SamplingParams(max_new_tokens=LENGTH + 2, temperature=1.0, seed=8, n=count, ignore_eos=True)
    outputs = lm.generate(
        [PROMPT], params, drafter=draft, verify=name, num_draft_tokens=6, batch_size=batch_size
    )
    counts = Counter(tuple(output.token_ids[:LENGTH]) for output in outputs)
    steps = sum(output.stats.num_steps for output in outputs)
    return excess(counts, laws.texts(PROMPT, LENGTH)), count * (LENGTH + 2) / steps


@pytest.mark.parametrize("name", NAMES)
def test_texts_drafted_by_a_small_model_have_the_law_of_plain_sampling(tiny, name):
    deviation, gained = sampled(tiny, name, 1500, 500)
    assert deviation < 4
    assert gained > 1.2


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("name", ["k-sequential", "traversal"])
def test_the_size_of_the_batch_changes_no_text(tiny, name, batch_size):
    lm, _, draft = tiny
    params = SamplingParams(max_new_tokens=8, temperature=1.0, seed=3, n=40, ignore_eos=True)
    texts = [
        [
            output.token_ids
            for output in lm.generate(
                [PROMPT], params, drafter=draft, verify=name, num_draft_tokens=6, batch_size=size
            )
        ]
        for size in (batch_size, 40)
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", [*NAMES, "typical"])
def test_greedy_texts_are_those_of_plain_decoding(tiny, name):
    lm, _, draft = tiny
    params = SamplingParams(max_new_tokens=24, ignore_eos=True)
    plain = lm.generate([PROMPT, [1, 4, 4]], params, drafter="off")
    found = lm.generate([PROMPT, [1, 4, 4]], params, drafter=draft, verify=name, num_draft_tokens=6)
    assert [output.token_ids for output in found] == [output.token_ids for output in plain]
    assert found[0].guarantee == VERIFIERS[name].guarantee
    assert found[0].stats.num_steps < 24


@pytest.mark.parametrize("name", [*EXACT, "residual-independent", "typical"])
def test_greedy_rounds_are_those_of_follow(name):
    rng = np.random.default_rng(2)
    for _ in range(60):
        tree = random_tree(rng)
        if len(tree) and rng.random() < 0.3:
            tree.draft_probs = None
        logits = five_rows(tree, None)
        logits[torch.from_numpy(tree.parents + 1), torch.from_numpy(tree.token_ids)] += 2.0
        greedy = Sampler(SamplingParams())
        acceptance = rule_of(name)(tree, logits, sequence_of(greedy, [0], NoStop()))
        expected = follow(tree, logits, sequence_of(greedy, [0], NoStop()))
        if name == "block":  # which looks at first-drawn children only
            assert acceptance.token_ids == expected.token_ids[: len(acceptance.token_ids)]
        else:
            assert acceptance == expected


def test_the_naive_rule_writes_the_text_of_plain_decoding(tiny):
    lm, _, draft = tiny
    params = SamplingParams(max_new_tokens=20, temperature=1.0, seed=5, ignore_eos=True)
    plain = lm.generate(PROMPT, params, drafter="off")
    found = lm.generate(PROMPT, params, drafter=draft, verify="naive", num_draft_tokens=6)
    assert found.token_ids == plain.token_ids


@pytest.mark.parametrize("name", ["residual", "k-sequential", "block", "traversal", "point-mass", "typical"])
def test_a_sampler_without_laws_is_refused(name):
    class Plain:
        def draws(self, logits): ...

        def guess(self, logits, position): ...

        def noisy(self, logits, position): ...

    with pytest.raises(ConfigError, match=f"verify='{name}' needs a sampler that tells its laws, and Plain"):
        rule_of(name)(DraftTree(), torch.zeros(1, 5), sequence_of(Plain()))


def typically(law_rows, tree, epsilon=0.09, delta=0.3, seed=0):
    logits = torch.tensor(law_rows).double().log().float()
    sampler = Sampler(SamplingParams(temperature=1.0), seed)
    return typical(epsilon, delta)(tree, logits, sequence_of(sampler, [0]))


def test_typical_keeps_what_is_likely_enough_for_its_law():
    flat, sharp = [0.25] * 4, [0.97, 0.01, 0.01, 0.01]
    # exp(-entropy) of a flat law of four is 1/4, and 0.3 of it 0.075.
    assert typically([flat, flat], DraftTree([3], [-1])).path == [0]
    assert typically([sharp, flat], DraftTree([3], [-1])).path == []
    assert typically([sharp, flat], DraftTree([0], [-1])).path == [0]
    assert typically([flat, flat], DraftTree([3], [-1]), epsilon=0.3, delta=1.01).path == []
    assert typically([flat, flat], DraftTree([3], [-1]), epsilon=0.3, delta=0.99).path == [0]
    assert typically([flat, flat], DraftTree([3], [-1]), epsilon=0.24, delta=9.0).path == [0]
    assert typically([flat, flat], DraftTree([3], [-1]), epsilon=0.25, delta=9.0).path == []


def test_typical_writes_the_longest_path_and_the_likelier_of_two():
    some = [0.4, 0.3, 0.2, 0.1]
    tree = DraftTree([0, 1, 2, 3], [-1, -1, 1, 1])
    assert typically([some] * 5, tree).path == [1, 2]
    assert typically([some] * 5, DraftTree([3, 2, 1], [-1, -1, -1])).path == [2]
    assert typically([some] * 5, DraftTree([1, 2, 0], [-1, -1, -1])).path == [2]


def test_typical_refuses_what_cannot_work():
    for epsilon in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="epsilon="):
            typical(epsilon)
    for delta in (-0.1, float("nan")):
        with pytest.raises(ConfigError, match="delta="):
            typical(0.09, delta)


def test_systems_are_the_rules_of_their_papers():
    assert {system.arxiv for system in SYSTEMS} == {
        "2305.09781",
        "2310.15141",
        "2401.06706",
        "2401.10774",
        "2403.10444",
        "2505.12398",
    }
    for system in SYSTEMS:
        assert {
            rule.guarantee for name, rule in VERIFIERS.items() if f"verify {name})" in system.summary
        } == {system.guarantee}


def test_each_rule_asks_for_the_drafts_its_paper_judges():
    wanted = {"independent": {"residual-independent", "k-sequential"}, "chosen": {"point-mass", "typical"}}
    wanted["distinct"] = {"residual", "block", "traversal", "naive"}
    for proposals, names in wanted.items():
        assert names == {name for name, rule in VERIFIERS.items() if rule.proposals == proposals}
