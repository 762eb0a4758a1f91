"""Near ties are excused in bfloat16, nothing else, and nothing at all in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import hasten
from hasten.bench.agreement import LogitsAfter, Verdict, compare, is_exact, replay
from hasten.bench.models import open_model
from hasten.core import SamplingParams
from hasten.sampling import Sampler

PLAIN, OTHER = [5, 6, 7, 8], [5, 6, 9, 8]


def fixed(**scores: float) -> LogitsAfter:
    """Always the same logits: token 7, token 9, and -5 for all others."""
    logits = torch.full((12,), -5.0)
    for name, score in scores.items():
        logits[int(name[1:])] = score
    return lambda prompt_ids, written: logits


def verdict(
    ways: list[LogitsAfter],
    *,
    token_ids: list[int] | None = None,
    temperature: float = 0.0,
    least_noise: float = 0.0,
    is_exact: bool = False,
) -> Verdict:
    params = SamplingParams(temperature=temperature)
    return compare(
        [1, 2],
        PLAIN,
        OTHER if token_ids is None else token_ids,
        ways=ways,
        params=params,
        seed=3,
        least_noise=least_noise,
        is_exact=is_exact,
    ).verdict


def test_equal_texts_are_the_same() -> None:
    assert verdict([], token_ids=PLAIN, is_exact=True) == "same"


def test_a_tie_within_the_noise_is_excused() -> None:
    assert verdict([fixed(t7=1.0, t9=0.9), fixed(t7=0.9, t9=1.05)]) == "near tie"


def test_a_gap_beyond_the_noise_is_not() -> None:
    assert verdict([fixed(t7=1.0, t9=0.8), fixed(t7=0.95, t9=0.85)]) == "different"


def test_the_least_noise_counts() -> None:
    ways = [fixed(t7=1.0, t9=0.8)]
    assert verdict(ways, least_noise=0.1) == "different"
    assert verdict(ways, least_noise=0.25) == "near tie"


def test_passes_are_replayed_until_the_noise_is_enough() -> None:
    asked: list[str] = []

    def noted(name: str, way: LogitsAfter) -> LogitsAfter:
        return lambda prompt_ids, written: asked.append(name) or way(prompt_ids, written)  # type: ignore

    plain, close = noted("plain", fixed(t7=1.0, t9=0.9)), noted("close", fixed(t7=1.0, t9=0.95))
    far, last = noted("far", fixed(t7=0.9, t9=1.0)), noted("last", fixed())
    assert verdict([plain, close, far, last]) == "near tie"
    assert asked == ["plain", "close", "far"]
    asked.clear()
    assert verdict([plain, far], least_noise=0.2) == "near tie"
    assert asked == ["plain"]


def test_the_noise_is_between_any_two_passes() -> None:
    """Neither of the others is far enough from plain decoding's pass, but they are from each other."""
    ways = [fixed(t7=1.0, t9=0.75), fixed(t7=1.15, t9=0.75), fixed(t7=1.0, t9=0.9)]
    assert verdict(ways) == "near tie"
    assert verdict(ways[:2]) == verdict(ways[::2]) == "different"


def test_nothing_is_excused_in_float32() -> None:
    assert verdict([fixed(t7=1.0, t9=1.0), fixed(t7=0.0, t9=1.0)], is_exact=True) == "different"
    assert is_exact(torch.float32)
    assert is_exact(torch.float64)
    assert not is_exact(torch.bfloat16)
    assert not is_exact(torch.float16)


def test_a_text_that_ends_early_is_different() -> None:
    assert verdict([fixed(), fixed()], token_ids=PLAIN[:2]) == "different"
    assert verdict([fixed(), fixed()], token_ids=[*PLAIN, 1]) == "different"


def test_sampled_scores_hold_the_noise_of_their_position() -> None:
    """With equal logits the tokens are apart by their Gumbel noise, which rounding cannot bridge."""
    even = fixed(t7=1.0, t9=1.0)
    assert verdict([even, even], temperature=1.0) == "different"
    sampler = Sampler(SamplingParams(temperature=1.0), 3, 0)
    noise = sampler.scores(torch.zeros(12), [1, 2, 5, 6])
    level = fixed(t7=1.0, t9=1.0 + float(noise[7] - noise[9]))
    assert verdict([level, level], temperature=1.0, least_noise=1e-4) == "near tie"


def test_temperature_scales_the_noise() -> None:
    sampler = Sampler(SamplingParams(temperature=0.5), 3, 0)
    noise = sampler.scores(torch.zeros(12), [1, 2, 5, 6])
    level = fixed(t7=1.0, t9=1.0 + 0.5 * float(noise[7] - noise[9]) + 0.15)  # a gap of 0.3 in the scores
    assert verdict([level], temperature=0.5, least_noise=0.1) == "different"
    assert verdict([level], temperature=0.5, least_noise=0.2) == "near tie"


def test_replays_agree_with_a_plain_pass(demo: Any) -> None:
    prompt_ids = demo.encode("User: I want to book a table.\nAssistant:")
    written = demo.generate(prompt_ids, SamplingParams(max_new_tokens=9), drafter="off").token_ids
    input_ids = torch.tensor([[*prompt_ids, *written]])
    with torch.inference_mode():
        expected = demo.target.forward.model(input_ids).logits[0, -1]
    for num_rows in (1, 4, 24):
        found = replay(demo.target, num_rows)(prompt_ids, written)
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


@pytest.fixture(scope="module")
def half() -> Any:
    return open_model("demo", dtype="bfloat16", device="cpu", forward="stock").language_model


def test_a_forged_text_is_caught_in_bfloat16(half: Any) -> None:
    params = SamplingParams(max_new_tokens=12)
    plain = half.generate("User: I want to book a table.\nAssistant:", params)
    forged = list(plain.token_ids)
    forged[6] = (forged[6] + 1) % half.target.vocab_size
    found = compare(
        plain.prompt_ids,
        plain.token_ids,
        forged,
        ways=[replay(half.target, 1), replay(half.target, 8)],
        params=params,
        seed=plain.seed,
        least_noise=half.target.probe.noise,
        is_exact=False,
    )
    assert found.verdict == "different"
    assert found.position == 6
    assert found.gap > found.noise


def test_plain_decoding_is_its_own_first_way(half: Any) -> None:
    """The reference really writes plain decoding's token at every position."""
    output = half.generate("Once upon a time", hasten.SamplingParams(max_new_tokens=6))
    way = replay(half.target, 1)
    for end, token_id in enumerate(output.token_ids):
        assert int(way(output.prompt_ids, output.token_ids[:end]).argmax()) == token_id
