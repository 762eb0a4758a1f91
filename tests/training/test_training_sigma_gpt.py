"""A sigma-GPT learns a joint law in every order."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from transformers import LlamaConfig

from diffusion.exact_laws import random_joint, write
from hasten.core import SamplingParams
from hasten.diffusion.canvas import DenoiserSpec
from hasten.diffusion.denoisers.sigma_gpt import SigmaGPT
from hasten.errors import ConfigError
from hasten.training.sigma_gpt import order_loss, reading_order, train_sigma_gpt

WORDS, LENGTH = 3, 4
SHAPE = LlamaConfig(
    vocab_size=WORDS + 1,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=LENGTH,
    initializer_range=0.1,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)


def new_model():
    return SigmaGPT.new(SHAPE, DenoiserSpec(mask_id=WORDS, attention="any-order"))


def texts_of(oracle, count, seed):
    flat = np.random.default_rng(seed).choice(oracle.probs.size, count, p=oracle.probs.ravel())
    return np.stack(np.unravel_index(flat, oracle.probs.shape), -1)


def test_a_trained_model_writes_the_law_of_its_texts_in_bursts():
    oracle = random_joint(1, num_words=WORDS, length=LENGTH, concentration=0.05)
    model = new_model()
    loss = train_sigma_gpt(model, texts_of(oracle, 4000, 0), steps=150, learning_rate=5e-3)
    chances = oracle.probs[oracle.probs > 0]
    entropy = float(-(chances * np.log(chances)).sum()) / LENGTH
    assert entropy - 0.1 < loss < entropy + 0.15
    assert shared(oracle, new_model().eval()) < 0.4
    assert shared(oracle, model) > 0.6


def shared(oracle, model, count=60):
    """How much of their laws the texts of a model's bursts and of a joint have in common."""
    params = SamplingParams(temperature=1.0)
    written = [write(model, "burst", length=LENGTH, params=params, seed=seed) for seed in range(count)]
    assert sum(one.stats.num_forwards for one in written) <= count * LENGTH
    counts = Counter(tuple(one.token_ids) for one in written)
    return sum(min(number / count, oracle.probs[text]) for text, number in counts.items())


def test_orders_begin_from_left_to_right_and_every_beginning_has_its_chance():
    random = np.random.default_rng(0)
    orders = [reading_order(6, random) for _ in range(300)]
    assert all(sorted(order.tolist()) == list(range(6)) for order in orders)
    rising = [int((np.diff(order) < 0).argmax()) + 1 if (np.diff(order) < 0).any() else 6 for order in orders]
    assert set(rising) >= {1, 2, 3, 4, 6}
    assert len({order[0] for order in orders}) == 6


def test_the_loss_is_that_of_each_text_in_its_own_order():
    model = new_model().eval()
    texts = texts_of(random_joint(0, num_words=WORDS, length=LENGTH), 3, 0)
    orders = [reading_order(LENGTH, np.random.default_rng(seed)) for seed in range(3)]
    alone = [order_loss(model, texts[[i]], [orders[i]]).item() for i in range(3)]
    assert order_loss(model, texts, orders).item() == pytest.approx(np.mean(alone), abs=1e-6)


@pytest.mark.parametrize("texts", [np.zeros((5, 9), np.int64), np.full((5, 4), WORDS), np.zeros(4, np.int64)])
def test_texts_that_do_not_fit_are_refused(texts):
    with pytest.raises(ConfigError, match="cannot be learnt"):
        train_sigma_gpt(new_model(), texts, steps=1)
