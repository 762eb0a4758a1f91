"""Sampled texts of the drop-in: of the model's law, and the same whatever is drafted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
)

import hasten
from accelerated import (
    BATCH,
    SINGLE,
    accelerated,
    allowed_after,
    texts_of,
)
from adversaries import Oracle
from conftest import DRAFTING, VOCAB
from hasten.core import NoisySampler
from hasten.drafters import NoDrafter
from hasten.dropin import rows
from hasten.dropin.rows import Row
from hasten.models.bundled_models import bundled_path
from hasten.noise import BLOCK, fill_noise_of
from hasten.tree import DraftTree

SAMPLED = {
    "temperature": {"temperature": 0.8, "top_k": 0},
    "truncated": {"top_k": 20, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.95},
    "cut": {"epsilon_cutoff": 1e-3, "eta_cutoff": 1e-3, "temperature": 1.4},
    "processed": {"repetition_penalty": 1.3, "prefix_allowed_tokens_fn": allowed_after},
}


@pytest.mark.parametrize("name", DRAFTING)
def test_sampled_texts_do_not_depend_on_the_drafter(name):
    model = accelerated(name)
    inputs = SINGLE if name == "rwkv" else BATCH
    for options in SAMPLED.values():
        sampled = {**inputs, "max_new_tokens": 16, "do_sample": True, "num_return_sequences": 2, **options}
        torch.manual_seed(3)
        plain = model.generate(**sampled, drafter="off")
        torch.manual_seed(3)
        drafted = model.generate(
            **sampled, drafter=[Oracle(text) for text in texts_of(inputs, plain)], num_draft_tokens=12
        )
        assert drafted.tolist() == plain.tolist()
        assert sum(stats.num_accepted_tokens for stats in model.generate.stats) > 0
        assert plain[0].tolist() != plain[1].tolist()
        assert model.generate(**sampled, drafter="off").tolist() != plain.tolist()


CUT = [
    {"top_k": 5},
    {"temperature": 1.7, "top_k": 20, "top_p": 0.9},
    {"temperature": 0.7, "top_k": 50, "min_p": 0.05, "top_p": 0.8},
]


@pytest.mark.parametrize("options", CUT)
def test_drawing_among_the_best_gives_the_tokens_of_whole_logits(monkeypatch, options):
    model, foreseen = accelerated(), []
    foresee = Row.foresee
    monkeypatch.setattr(Row, "foresee", lambda *row: foreseen.append(foresee(*row)) or foreseen[-1])

    def texts(most: int) -> list[list[int]]:
        monkeypatch.setattr(rows, "MOST_BEST", most)
        torch.manual_seed(3)
        return model.generate(**BATCH, **options, do_sample=True, max_new_tokens=30).tolist()

    assert texts(256) == texts(0)
    assert {None if draw is None else draw.num_best for draw in foreseen} == {options["top_k"], None}


def test_sampling_follows_the_distribution_generate_samples_from():
    """First tokens of many samples against their probabilities."""
    model = accelerated()
    options = {"do_sample": True, "temperature": 0.9, "top_k": 5, "max_new_tokens": 1}
    keep = {"return_dict_in_generate": True, "output_scores": True}
    torch.manual_seed(0)
    found = model.generate(**SINGLE, **options, **keep, num_return_sequences=4000, drafter="off")
    probs = found.scores[0][0].softmax(-1)
    counts = torch.bincount(found.sequences[:, -1], minlength=VOCAB)
    assert (counts[probs == 0] == 0).all()
    expected = probs * 4000
    seen = expected > 5
    assert seen.sum() > 2
    assert float(((counts - expected)[seen] ** 2 / expected[seen]).sum()) < 20


def test_drafts_of_sampled_texts_are_drawn_with_the_noise_of_the_text(monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(bundled_path("demo"), dtype=torch.float32)
    hasten.accelerate(model.eval(), num_draft_tokens=8)
    prompts = torch.tensor([[5, 9, 13, 22] * 4] * 4)
    options = {"do_sample": True, "temperature": 0.7, "max_new_tokens": 64, "eos_token_id": None}

    def text_and_steps(drafter):
        torch.manual_seed(3)
        model.generate.language_model.forget()
        text = model.generate(
            prompts, attention_mask=torch.ones_like(prompts), pad_token_id=0, drafter=drafter, **options
        )
        return text.tolist(), sum(stats.num_steps for stats in model.generate.stats)

    plain, _ = text_and_steps("off")
    coupled, steps = text_and_steps("auto")
    monkeypatch.setattr(Row, "temperature", 0.0)
    likeliest, more_steps = text_and_steps("auto")
    assert coupled == likeliest == plain
    assert steps < 0.95 * more_steps  # 130 and 150


def test_the_noise_of_a_row_is_told_as_it_is_drawn():
    model = accelerated()
    told = []

    class Asks(NoDrafter):
        """Keeps what the sampler tells of its noise, which is that of its guesses."""

        def propose(self, sequence, budget):
            row, position = sequence.sampler, len(sequence.token_ids)
            guess = row.noisy(torch.zeros(VOCAB), position)
            noise = np.empty(VOCAB, np.float32)
            tokens = np.arange(VOCAB)
            fill_noise_of(row.noise_words(position), np.empty(BLOCK, np.uint32), tokens, noise)
            told.append((isinstance(row, NoisySampler), row.temperature))
            np.testing.assert_allclose(noise, guess.numpy(), atol=1e-6)
            return DraftTree()

    sampled = {"do_sample": True, "max_new_tokens": 3, "num_draft_tokens": 2}
    model.generate(**BATCH, **sampled, temperature=0.5, drafter=Asks())
    model.generate(**SINGLE, **sampled, drafter=Asks())
    assert set(told) == {(True, 0.5), (True, 1.0)}
