"""`residual` with real models: the law of their texts, the guarantee that is reported, seeds."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from conftest import build_model
from hasten.core import Acceptance, SamplingParams
from hasten.errors import ConfigError
from hasten.laws import draw
from hasten.models.causal_lm import CausalLM
from hasten.text.engine import LanguageModel
from hasten.tree import DraftTree
from hasten.verify import VERIFIERS, Verifier, find_verifier, follow, residual

TINY = 5
LENGTH = 2


@pytest.fixture(scope="module")
def tiny():
    model = build_model("llama", vocab_size=TINY)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.6)  # a flatter law accepts more
    return LanguageModel(CausalLM(model), drafter="off")


def exact_texts(lm, prompt):
    """The law of the first tokens in plain sampling."""
    forward, law = lm.target.forward, {}
    prefixes = {(): 1.0}
    for _ in range(LENGTH):
        rows = np.array([[*prompt, *prefix] for prefix in prefixes])
        positions = np.tile(np.arange(rows.shape[1]), (len(rows), 1))
        probs = torch.softmax(forward(rows, positions, None, None)[:, -1].double(), -1).tolist()
        law = {
            (*prefix, token): chance * row[token]
            for (prefix, chance), row in zip(prefixes.items(), probs, strict=True)
            for token in range(TINY)
        }
        prefixes = law
    return law


def excess(lm, expected, drafter, verify, count=1500):
    """How many standard deviations chi-square is above its mean; and tokens a step."""
    params = SamplingParams(max_new_tokens=LENGTH + 2, temperature=1.0, seed=8, n=count, ignore_eos=True)
    outputs = lm.generate(
        [[2, 3, 4]], params, drafter=drafter, verify=verify, num_draft_tokens=6, batch_size=500
    )
    found = Counter(tuple(output.token_ids[:LENGTH]) for output in outputs)
    common = [key for key, chance in expected.items() if chance * count >= 5]
    cells = [(found[key], expected[key] * count) for key in common]
    cells.append((count - sum(cell[0] for cell in cells), count - sum(cell[1] for cell in cells)))
    statistic = sum((seen - mean) ** 2 / mean for seen, mean in cells)
    degrees = len(cells) - 1
    steps = sum(output.stats.num_steps for output in outputs)
    return (statistic - degrees) / np.sqrt(2 * degrees), count * (LENGTH + 2) / steps


@pytest.mark.parametrize("drafter", ["jacobi", "jacobi+token-recycling", "space"])
def test_texts_of_a_model_have_the_law_of_plain_sampling(tiny, drafter):
    expected = exact_texts(tiny, [2, 3, 4])
    deviation, gained = excess(tiny, expected, drafter, "residual")
    assert deviation < 4
    assert gained > 1.15


def test_this_must_fail_recovering_from_the_target_instead_of_what_is_left(tiny, monkeypatch):
    """Accept by min(1, p/q), but draw the recovered token from p: a published bias."""

    def biased(tree, logits, sequence):
        law = sequence.sampler.law(logits[0], sequence.token_ids)
        children = DraftTree(tree.token_ids[:1], tree.parents[:1])
        children.draft_probs = None if tree.draft_probs is None else tree.draft_probs[:1]
        acceptance = residual(children, logits, sequence)
        if len(children) and not acceptance.path:
            token_id = draw(law, sequence.sampler.generator(len(sequence.token_ids), 99))
            return Acceptance([], [token_id], acceptance.finish_reason)
        return acceptance

    expected = exact_texts(tiny, [2, 3, 4])
    assert excess(tiny, expected, "jacobi", Verifier("biased", biased, "distribution"))[0] > 8


def test_the_guarantee_is_named_and_reported(models):
    lm = models()
    params = SamplingParams(max_new_tokens=6)
    assert lm.generate([5, 6], params).guarantee == "exact"
    for name, verifier in VERIFIERS.items():
        assert lm.generate([5, 6], params, drafter="jacobi", verify=name).guarantee == verifier.guarantee
        pieces = list(lm.stream([5, 6], params, drafter="jacobi", verify=verifier))
        assert pieces[-1].output.guarantee == verifier.guarantee
    with pytest.raises(ConfigError, match=f"verify='best' is unknown; choose {', '.join(VERIFIERS)}"):
        lm.generate([5, 6], params, verify="best")
    with pytest.raises(ConfigError, match="unknown"):
        lm.stream([5, 6], params, verify="")
    assert find_verifier("follow").rule is follow


def test_the_same_seed_and_size_write_the_same_text_under_residual(models):
    params = SamplingParams(max_new_tokens=20, temperature=0.9, seed=4)
    runs = [
        models().generate([5, 6], params, drafter="jacobi", verify="residual", num_draft_tokens=6)
        for _ in range(2)
    ]
    assert runs[0].token_ids == runs[1].token_ids
