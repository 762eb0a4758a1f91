"""Denoisers without a mask token: every position holds a token and is written again and again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion.exact_laws import write
from diffusion.tables import FunctionDenoiser, uniform_oracle
from hasten.core import SamplingParams
from hasten.diffusion.canvas import DenoiserSpec
from hasten.diffusion.parse import parse_strategy
from hasten.errors import ConfigError

SAMPLED = SamplingParams(temperature=1.0)
SUNDAE = "unroll:0.6+editable+fixed-point:40"
UT5 = "unroll:1+editable+fixed-point:40"
GEMMA = "entropy-bound:0.1+temperature+renoise+stable"
LINES = [SUNDAE, UT5, GEMMA, "renoise+stable:steps=12", "threshold:0.6+renoise+limit:9"]


def best_tokens(denoiser: FunctionDenoiser, token_ids: list[int]) -> list[int]:
    return denoiser.function(np.array(token_ids)).argmax(-1).tolist()


@pytest.mark.parametrize("line", [SUNDAE, UT5])
def test_a_text_that_ends_early_predicts_itself(line: str) -> None:
    num_early = 0
    for seed in range(30):
        denoiser = uniform_oracle(seed)
        text = write(denoiser, line, seed=seed)
        if text.stats.num_forwards < 40:
            num_early += 1
            assert best_tokens(denoiser, text.token_ids) == text.token_ids
    assert num_early >= 28


@pytest.mark.parametrize("params", [SamplingParams(), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("line", LINES)
def test_a_text_is_that_of_its_seed(line: str, params: SamplingParams) -> None:
    for seed in range(4):
        first, second = (write(uniform_oracle(seed), line, params=params, seed=7) for _ in range(2))
        assert first.token_ids == second.token_ids
        assert first.stats.num_forwards == second.stats.num_forwards <= 48


@pytest.mark.parametrize("line", LINES)
def test_the_only_text_is_written_from_any_noise(line: str) -> None:
    probs = np.zeros(3**4)
    probs[50] = 1.0
    denoiser = uniform_oracle(0, probs=probs)
    wanted = list(np.unravel_index(50, (3,) * 4))
    for seed in range(6):
        assert write(denoiser, line, seed=seed, params=SAMPLED).token_ids == wanted


@pytest.mark.parametrize("line", [SUNDAE, UT5, f"{GEMMA}:steps=12"])
def test_unrolled_texts_are_likelier_than_those_of_one_pass(line: str) -> None:
    gained = 0.0
    for seed in range(60):
        denoiser = uniform_oracle(seed, concentration=0.02)
        law = np.random.default_rng(seed).dirichlet(np.full(81, 0.02)) + 1e-9
        shape = law.reshape((3,) * 4)
        once = write(denoiser, "unroll:1+editable+limit:1", seed=seed).token_ids
        unrolled = write(denoiser, line, seed=seed).token_ids
        gained += np.log(shape[tuple(unrolled)]) - np.log(shape[tuple(once)])
    assert gained / 60 > 0.5


def flipping(token_ids: np.ndarray) -> np.ndarray:
    """Never content with what it sees."""
    return 9.0 * np.eye(2)[1 - token_ids]


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("stop", ["fixed-point:{}", "stable:steps={}", "limit:{}"])
def test_a_text_that_never_comes_to_rest_is_ended(stop: str, steps: int) -> None:
    denoiser = FunctionDenoiser(flipping, 2, has_mask=False, length=6)
    text = write(denoiser, f"unroll+editable+{stop.format(steps)}")
    assert text.stats.num_forwards == steps
    assert text.stats.num_tokens == 6


def test_only_a_part_of_the_positions_is_written_in_a_pass() -> None:
    denoiser = FunctionDenoiser(flipping, 2, has_mask=False, length=40)
    text = write(denoiser, "unroll:0.25+whole+editable+fixed-point:60")
    counts = [len(one.positions) for one in text.records[:-1]]
    assert min(counts) >= 1
    assert 0.18 < np.mean(counts) / 40 < 0.32
    for before, after in zip(denoiser.queries, denoiser.queries[1:], strict=False):
        changed = np.flatnonzero(before[0].token_ids != after[0].token_ids)
        record = text.records[denoiser.queries.index(before)]
        assert changed.tolist() == record.positions.tolist()
    tiny = write(denoiser, "unroll:0.001+whole+editable+fixed-point:9")
    assert all(len(one.positions) >= 1 for one in tiny.records)


def test_what_was_accepted_stays_and_the_rest_gets_fresh_noise() -> None:
    logits = np.zeros((30, 50))
    logits[::3, 7] = 20.0
    denoiser = FunctionDenoiser(lambda token_ids: logits, 50, has_mask=False, length=30)
    text = write(denoiser, "threshold:0.9+renoise+limit:5+whole")
    for record, [query] in zip(text.records[:-1], denoiser.queries[1:], strict=True):
        assert record.positions.tolist() == list(range(0, 30, 3))
        assert (query.token_ids[::3] == 7).all()
    canvases = np.array([query.token_ids for [query] in denoiser.queries])
    renoised = np.delete(canvases, np.s_[::3], axis=1)
    assert (renoised[1:] != renoised[:-1]).mean() > 0.9


@pytest.mark.parametrize("patience", [1, 3])
def test_stable_waits_for_guesses_that_stay_and_are_sure(patience: int) -> None:
    logits = np.zeros((6, 3))
    logits[:, 1] = 12.0
    denoiser = FunctionDenoiser(lambda token_ids: logits, 3, has_mask=False, length=6)
    assert write(denoiser, f"renoise+stable:{patience}").stats.num_forwards == patience + 1
    logits[:, 1] = 3.0
    unsure = write(denoiser, f"renoise+stable:{patience},steps=9")
    assert unsure.stats.num_forwards == 9
    easy = write(denoiser, f"renoise+stable:{patience},entropy=1,steps=9")
    assert easy.stats.num_forwards == patience + 1


def test_blocks_come_to_rest_one_after_the_other() -> None:
    logits = np.zeros((6, 3))
    logits[:, 1] = 12.0
    denoiser = FunctionDenoiser(lambda token_ids: logits, 3, has_mask=False, length=6)
    text = write(denoiser, "renoise+stable+blocks:2")
    assert [one.block.start for one in text.records] == [0, 0, 2, 2, 4, 4]
    assert text.token_ids == [1] * 6


def test_noise_that_happens_to_be_an_end_of_text_ends_nothing() -> None:
    logits = np.zeros((6, 3))
    logits[:, 1] = 12.0
    denoiser = FunctionDenoiser(lambda token_ids: logits, 3, eos_ids=(0,), has_mask=False, length=6)
    for seed in range(6):
        text = write(denoiser, "unroll:0.3+editable+fixed-point+eos", seed=seed)
        assert text.token_ids == [1] * 6


def test_the_prompt_is_never_written() -> None:
    for seed in range(5):
        text = write(uniform_oracle(seed), SUNDAE, prompt=[2, 0], seed=seed)
        assert len(text.token_ids) == 4
        assert all(one.positions.min(initial=9) >= 2 for one in text.records)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("static", "reviser"),
        ("unroll+editable", "stop policy"),
        ("unroll+fixed-point", "reviser"),
        ("unroll+editable+prophet", "stop policy that ends it"),
        ("unroll+editable+fixed-point+freedave", "editable"),
        ("unroll:0+editable+fixed-point", "unroll:0"),
        ("unroll:2+editable+fixed-point", "unroll:2"),
    ],
)
def test_what_would_never_end_is_refused(line: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_strategy(line, DenoiserSpec(mask_id=None, noise="uniform"))


def test_a_mask_token_is_no_text_to_unroll() -> None:
    with pytest.raises(ConfigError, match="uniform noise"):
        parse_strategy("unroll", DenoiserSpec(mask_id=3))


def test_parts_name_the_selector_they_come_with() -> None:
    spec = DenoiserSpec(mask_id=None, noise="uniform")
    assert parse_strategy("editable+fixed-point", spec).selector.name == "unroll"
    assert parse_strategy("renoise+stable", spec).selector.name == "entropy-bound"


@pytest.mark.parametrize("line", [SUNDAE, UT5, GEMMA])
def test_a_stock_model_is_unrolled(line: str) -> None:
    """Random weights: what counts is that it ends, and that a text at rest predicts itself."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from hasten.diffusion.denoisers.masked_lm import MaskedLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=24,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        is_causal=False,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    denoiser = MaskedLM(model, DenoiserSpec(mask_id=None, noise="uniform"))
    for seed in range(3):
        first, second = (write(denoiser, line, length=8, prompt=[3, 4], seed=seed) for _ in range(2))
        assert first.token_ids == second.token_ids
        assert first.stats.num_forwards <= 48
        if "fixed-point" in line and first.stats.num_forwards < 40:
            with torch.no_grad():
                logits = model(torch.tensor([[3, 4, *first.token_ids]])).logits[0, 2:]
            assert logits.argmax(-1).tolist() == first.token_ids
