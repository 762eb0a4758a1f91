"""What is hidden, what it costs, and what attention sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from hasten.training.diffusion_certainty import certainty_loss, entropy_where_right, halve, write_greedily
from hasten.training.diffusion_objective import Denoising, block_causal, hide
from hasten.training.diffusion_recipe import DiffusionConfig
from hasten.training.diffusion_rows import Rows

MASK, VOCAB = 1, 11


def config_of(**changes: Any) -> DiffusionConfig:
    return DiffusionConfig(subject="list-tasks", output="out", **changes)


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    shape.is_causal = False
    return LlamaForCausalLM(shape).train(False)


def some_rows(num_rows: int = 4, length: int = 12, prompt: int = 3) -> Rows:
    random = np.random.default_rng(1)
    token_ids = torch.from_numpy(random.integers(2, VOCAB, (num_rows, length)))
    is_canvas = torch.arange(length).expand(num_rows, length) >= prompt
    return Rows(token_ids, is_canvas)


def test_each_row_hides_its_own_share_of_its_canvas() -> None:
    rows = some_rows(num_rows=200, length=400, prompt=100)
    hidden = hide(rows, config_of(), np.random.default_rng(0))
    assert not hidden.is_masked[:, :100].any()
    shares = hidden.is_masked[:, 100:].float().mean(1)
    # Spread evenly over the batch: sorted, they are the diagonal.
    diagonal = (torch.arange(200) + 0.5) / 200
    assert (shares.sort().values - diagonal).abs().max() < 0.12
    assert torch.equal(hidden.weights[:, 0], hidden.weights[:, -1])
    expected = 1 / (hidden.weights[:, 0] * 300 * 200)
    assert (shares - expected).abs().max() < 0.12


def test_the_weighted_loss_is_the_mean_of_each_token_in_expectation(model: LlamaForCausalLM) -> None:
    """With logits that do not depend on the canvas, the bound is the cross-entropy of a canvas token."""
    with torch.no_grad():
        model.lm_head.weight.zero_()
    rows, config = some_rows(), config_of(min_noise=0.05)
    denoising = Denoising(model, MASK)
    losses = [
        denoising.loss(rows, hide(rows, config, np.random.default_rng(seed))).item() for seed in range(150)
    ]
    assert np.mean(losses) == pytest.approx(np.log(VOCAB - 1), rel=0.08)
    even = hide(rows, config_of(weighting="even"), np.random.default_rng(0))
    assert denoising.loss(rows, even).item() == pytest.approx(np.log(VOCAB - 1))


def test_the_mask_is_never_predicted_and_hidden_tokens_are_not_seen(model: LlamaForCausalLM) -> None:
    rows, denoising = some_rows(), Denoising(model, MASK)
    is_masked = hide(rows, config_of(), np.random.default_rng(0)).is_masked
    logits = denoising.hidden_logits(rows.token_ids, is_masked)
    assert logits.shape == (is_masked.sum(), VOCAB)
    assert (logits[:, MASK] == -torch.inf).all()
    others = torch.where(is_masked, (rows.token_ids + 1) % VOCAB, rows.token_ids)
    assert torch.equal(denoising.hidden_logits(others, is_masked), logits)


def test_shifted_logits_are_those_of_the_position_before(model: LlamaForCausalLM) -> None:
    rows = some_rows()
    everywhere = torch.ones_like(rows.is_canvas)
    plain = Denoising(model, MASK).logits(rows.token_ids, everywhere).view(4, 12, VOCAB)
    shifted = Denoising(model, MASK, 1).logits(rows.token_ids, everywhere).view(4, 12, VOCAB)
    assert torch.equal(shifted[:, 1:], plain[:, :-1])
    assert torch.equal(shifted[:, 0], plain[:, 0])


@settings(max_examples=40, deadline=None)
@given(
    block_size=st.integers(1, 7),
    prompts=st.lists(st.integers(0, 10), min_size=1, max_size=6),
    seed=st.integers(0, 99),
)
def test_one_block_of_each_row_is_hidden_and_later_ones_are_absent(
    block_size: int, prompts: list[int], seed: int
) -> None:
    length = 13
    is_canvas = torch.stack([torch.arange(length) >= prompt for prompt in prompts])
    rows = Rows(torch.full((len(prompts), length), 5), is_canvas)
    hidden = hide(rows, config_of(block_size=block_size, min_noise=0.99), np.random.default_rng(seed))
    assert hidden.attention_mask is not None
    blocks = torch.arange(length) // block_size
    for row, prompt in enumerate(prompts):
        seen = hidden.attention_mask[row, 0]
        last = int(blocks[seen.any(0)].max())
        assert (last + 1) * block_size > prompt, "the block holds canvas positions"
        masked = hidden.is_masked[row].nonzero()[:, 0]
        assert all(blocks[place] == last and place >= prompt for place in masked)
        assert torch.equal(seen, block_causal(blocks) & (blocks <= last)[None, :])


def test_every_block_is_hidden_about_equally_often() -> None:
    rows = some_rows(num_rows=3000, length=12, prompt=5)
    hidden = hide(rows, config_of(block_size=4), np.random.default_rng(0))
    assert hidden.attention_mask is not None
    last = hidden.attention_mask[:, 0].any(1).sum(1) // 4 - 1
    counts = torch.bincount(last, minlength=3)
    assert counts[0] == 0
    assert (counts[1:] / 3000 - 0.5).abs().max() < 0.05


def test_block_causal_predictions_equal_those_with_a_cached_prefix(model: LlamaForCausalLM) -> None:
    rows = some_rows(num_rows=1, length=12, prompt=0)
    blocks = torch.arange(12) // 4
    is_masked = (blocks == 1)[None]
    seen = (block_causal(blocks) & (blocks <= 1)[None, :])[None, None]
    trained = Denoising(model, MASK).hidden_logits(rows.token_ids, is_masked, seen)
    cache = DynamicCache(config=model.config)
    model(input_ids=rows.token_ids[:, :4], past_key_values=cache, use_cache=True)
    block = torch.full((1, 4), MASK)
    everything = torch.ones(1, 1, 4, 8, dtype=torch.bool)
    cached = model(
        input_ids=block,
        past_key_values=cache,
        attention_mask=everything,
        position_ids=torch.arange(4, 8)[None],
    ).logits[0]
    cached[:, MASK] = -torch.inf
    torch.testing.assert_close(cached, trained, rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    block_size=st.integers(1, 7),
    prompts=st.lists(st.integers(0, 10), min_size=1, max_size=6),
    seed=st.integers(0, 99),
)
def test_halves_are_one_block_of_the_canvas_and_hide_all_after_it(
    block_size: int, prompts: list[int], seed: int
) -> None:
    length = 13
    is_canvas = torch.stack([torch.arange(length) >= prompt for prompt in prompts])
    halves = halve(is_canvas, block_size, np.random.default_rng(seed))
    assert not (halves.first & halves.second).any()
    for row, prompt in enumerate(prompts):
        inside = (halves.first | halves.second)[row].nonzero()[:, 0]
        start, end = int(inside.min()), int(inside.max()) + 1
        assert len(inside) == end - start
        assert (start - prompt) % block_size == 0
        assert end == min(start + block_size, length)
        assert torch.equal(halves.after[row], torch.arange(length) >= end)


def test_entropy_has_no_gradient_where_the_best_token_is_wrong() -> None:
    logits = torch.tensor([[2.0, -torch.inf, 0.5], [2.0, -torch.inf, 0.5]], requires_grad=True)
    entropy = entropy_where_right(logits, torch.tensor([0, 2]), 0.5)
    entropy.backward()
    assert logits.grad is not None
    assert (logits.grad[1] == 0).all()
    assert logits.grad[0, 0] < 0 < logits.grad[0, 2]  # more of the right one is less entropy
    assert logits.grad[0, 1] == 0
    probs = (torch.tensor([2.0, 0.5]) / 0.5).softmax(0)
    assert entropy.item() == pytest.approx(-(probs * probs.log()).sum().item())


def test_entropy_is_zero_where_nothing_is_right() -> None:
    logits = torch.tensor([[2.0, 0.5]], requires_grad=True)
    entropy = entropy_where_right(logits, torch.tensor([1]), 0.5)
    entropy.backward()
    assert entropy.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_certainty_counts_both_halves_and_the_weighted_entropy(model: LlamaForCausalLM) -> None:
    rows, denoising = some_rows(), Denoising(model, MASK)
    halves = halve(rows.is_canvas, 4, np.random.default_rng(0))
    with torch.no_grad():
        losses = [certainty_loss(denoising, rows, halves, weight, 0.5).item() for weight in (0, 1, 3)]
        expected = 0.0
        for half in (halves.first, halves.second):
            logits = denoising.hidden_logits(rows.token_ids, half | halves.after)[half[half | halves.after]]
            expected += torch.nn.functional.cross_entropy(logits, rows.token_ids[half]).item()
    assert losses[0] == pytest.approx(expected)
    assert losses[2] - losses[0] == pytest.approx(3 * (losses[1] - losses[0]), rel=1e-4)


def test_greedy_writing_takes_the_surest_position_first(model: LlamaForCausalLM) -> None:
    rows, denoising = some_rows(num_rows=3, length=9, prompt=4), Denoising(model, MASK)
    written = write_greedily(denoising, rows)
    assert torch.equal(written.token_ids[:, :4], rows.token_ids[:, :4])
    assert (written.token_ids != MASK).all()
    for row in range(3):
        is_open = rows.is_canvas[row : row + 1].clone()
        tokens = rows.token_ids[row : row + 1].masked_fill(is_open, MASK)
        while is_open.any():
            with torch.no_grad():
                probs = denoising.logits(tokens, is_open).softmax(-1)
            confidences, best = probs.max(-1)
            surest = confidences.argmax()
            place = is_open[0].nonzero()[surest, 0]
            tokens[0, place] = best[surest]
            is_open[0, place] = False
        assert torch.equal(written.token_ids[row], tokens[0])
