"""Unrolled denoising: a small model learns it, and the diffusion loop writes with it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from diffusion.exact_laws import write
from hasten.core import SamplingParams
from hasten.diffusion.canvas import DenoiserSpec
from hasten.diffusion.denoisers.masked_lm import MaskedLM
from hasten.errors import ConfigError
from hasten.training.diffusion_rows import Rows
from hasten.training.unrolled import corrupted, unrolled_loss

VOCAB = 12
TEXTS = torch.tensor([[0, 4, 5, 6, 7, 8, 9], [1, 9, 9, 4, 4, 10, 10], [2, 11, 4, 11, 4, 11, 4]])
ROWS = Rows(TEXTS.repeat(8, 1), (torch.arange(7) > 0).expand(24, 7))


def new_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        is_causal=False,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def denoiser() -> MaskedLM:
    model = new_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(100):
        loss = unrolled_loss(model, ROWS, np.random.default_rng(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return MaskedLM(model.eval(), DenoiserSpec(mask_id=None, noise="uniform"))


@pytest.mark.parametrize(
    "line",
    ["unroll:1+editable+fixed-point", "unroll:0.6+editable+fixed-point:30", "temperature+renoise+stable"],
)
@pytest.mark.parametrize("temperature", [0.0, 0.3])
def test_a_trained_model_finds_its_texts_in_noise(denoiser: MaskedLM, line: str, temperature: float) -> None:
    params = SamplingParams(temperature=temperature)
    for text in TEXTS.tolist():
        for seed in range(2):
            written = write(denoiser, line, length=6, prompt=text[:1], seed=seed, params=params)
            assert written.token_ids == text[1:]


def test_noise_falls_on_the_canvas_only_and_at_every_rate() -> None:
    rows = Rows(torch.zeros(400, 20, dtype=torch.long), (torch.arange(20) >= 5).expand(400, 20))
    noisy = corrupted(rows, 1000, np.random.default_rng(0))
    assert (noisy[:, :5] == 0).all()
    parts = (noisy[:, 5:] != 0).float().mean(1)
    assert abs(parts.mean() - 0.5) < 0.05
    assert parts.min() < 0.1
    assert parts.max() > 0.9


def test_the_second_unroll_reads_what_the_first_one_drew() -> None:
    model = new_model()
    seen = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    with torch.no_grad():
        model.lm_head.weight[:] = 0
        unrolled_loss(model, ROWS, np.random.default_rng(0), num_unrolls=3)
    assert len(seen) == 3
    assert all((one[:, 0] == ROWS.token_ids[:, 0]).all() for one in seen)
    assert all(
        (later[:, 1:] != earlier[:, 1:]).float().mean() > 0.8 for earlier, later in itertools.pairwise(seen)
    )


def test_no_gradient_flows_through_what_was_drawn() -> None:
    model = new_model()
    loss = unrolled_loss(model, ROWS, np.random.default_rng(0), num_unrolls=1)
    loss.backward()
    alone = model.lm_head.weight.grad.clone()
    assert torch.isfinite(alone).all()
    assert loss.item() == pytest.approx(np.log(VOCAB), abs=0.3)


def test_without_an_unroll_nothing_is_learned() -> None:
    with pytest.raises(ConfigError, match="num_unrolls=0"):
        unrolled_loss(new_model(), ROWS, np.random.default_rng(0), num_unrolls=0)
