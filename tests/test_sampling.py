"""Noise keyed by (seed, sample, position), warpers that agree with transformers, lazy processors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hasten.core import SamplingParams
from hasten.errors import ModelError
from hasten.logits import Logits, top_candidates
from hasten.noise import gumbel_noise
from hasten.sampling import Sampler, keyed_generator, warp

VOCAB = 400


def logits_of(seed=0, rows=1, vocab=VOCAB):
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3


def test_noise_is_a_function_of_its_key_alone():
    again = [gumbel_noise(3, 1, 7, 50) for _ in range(2)]
    assert np.array_equal(*again)
    others = [gumbel_noise(*key, 50) for key in ((4, 1, 7), (3, 2, 7), (3, 1, 8), (2**64 - 1, 0, 2**40))]
    for one in others:
        assert not np.array_equal(again[0], one)


def test_the_generator_of_a_position_is_philox_with_words_of_their_own():
    """Texts of a seed are written again by later versions, so where each number goes is kept."""
    key, counter = np.array([5, 6], np.uint64), np.array([0, 7, 8, 0], np.uint64)
    expected = np.random.Generator(np.random.Philox(key=key, counter=counter)).random(4)
    assert keyed_generator(seed=5, sample=6, position=8, stream=7).random(4).tolist() == expected.tolist()


def test_noise_of_neighbouring_positions_shares_no_numbers():
    first, second = (set(gumbel_noise(0, 0, position, 5000).tolist()) for position in (0, 1))
    assert len(first & second) < 50  # float32 values may coincide, streams may not


def test_noise_is_gumbel():
    noise = gumbel_noise(0, 0, 0, 200_000)
    assert np.isfinite(noise).all()
    assert noise.mean() == pytest.approx(0.5772, abs=0.02)
    assert noise.var() == pytest.approx(np.pi**2 / 6, abs=0.05)


def test_the_drawn_tokens_follow_the_models_distribution():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -5.0])
    sampler = Sampler(SamplingParams(temperature=0.7), seed=5)
    drawn = [int(sampler.scores(logits, [0] * position).argmax()) for position in range(1, 6001)]
    frequencies = np.bincount(drawn, minlength=5) / len(drawn)
    expected = torch.softmax(logits / 0.7, -1).numpy()
    assert 0.5 * np.abs(frequencies - expected).sum() < 0.02


@given(
    seed=st.integers(0, 50),
    temperature=st.floats(0.2, 2.0),
    top_k=st.none() | st.integers(1, VOCAB + 5),
    top_p=st.floats(0.05, 1.0),
    min_p=st.floats(0.0, 0.5),
)
def test_warping_is_that_of_transformers(seed, temperature, top_k, top_p, min_p):
    logits = logits_of(seed)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k is not None:
        warpers.append(TopKLogitsWarper(top_k))
    warpers += [TopPLogitsWarper(top_p), MinPLogitsWarper(min_p)]
    theirs = warpers(torch.zeros(1, 1, dtype=torch.long), logits.clone())[0]
    ours = warp(logits[0], params)
    assert torch.equal(ours.isfinite(), theirs.isfinite())
    assert torch.allclose(ours[ours.isfinite()], theirs[theirs.isfinite()])


CUTS = {"top_k": 5, "top_p": 0.6, "min_p": 0.1, "typical_p": 0.5}


@pytest.mark.parametrize("cuts", [*({name: value} for name, value in CUTS.items()), CUTS], ids="+".join)
def test_rows_are_warped_as_each_alone(cuts):
    rows = logits_of(rows=6)
    params = SamplingParams(temperature=0.8, **cuts)
    alone = torch.stack([warp(row, params) for row in rows])
    assert torch.equal(warp(rows, params), alone)
    assert torch.equal(warp(rows.reshape(2, 3, -1), params), alone.reshape(2, 3, -1))


def test_a_nucleus_wider_than_the_first_look_is_found():
    logits = torch.zeros(1000)
    kept = warp(torch.linspace(0, 0.01, 1000), SamplingParams(temperature=1.0, top_p=0.9)).isfinite().sum()
    assert 890 <= kept <= 910
    assert warp(logits, SamplingParams(temperature=1.0, top_p=0.5)).isfinite().all()  # ties are kept


def test_candidates_are_the_best_tokens_with_plain_softmax():
    logits = logits_of(rows=3)
    found = top_candidates(logits, 5)
    probs = torch.softmax(logits, -1)
    assert np.array_equal(found.token_ids, probs.topk(5).indices.numpy())
    assert np.allclose(found.probs, probs.topk(5).values.numpy(), atol=1e-6)
    assert found.probs.dtype == np.float32
    assert top_candidates(logits, VOCAB + 9).token_ids.shape == (3, VOCAB)


class Counting:
    """Depends on how often it was called: forbids the token it has counted to."""

    def __init__(self):
        self.prefixes = []

    def __call__(self, input_ids, scores):
        self.prefixes.append(input_ids[0].tolist())
        scores[:, len(self.prefixes)] = -torch.inf
        return scores


def test_rows_are_processed_only_when_they_are_drawn():
    sampler = Sampler(SamplingParams(logits_processors=[Counting()]))
    draw = sampler.draws(logits_of(rows=4))
    assert sampler.processors[0].prefixes == []
    draw(2, [7, 8])
    draw(0, [7, 8, 9])
    assert sampler.processors[0].prefixes == [[7, 8], [7, 8, 9]]


def test_processors_are_copied_for_every_sequence():
    processor = Counting()
    params = SamplingParams(logits_processors=[processor])
    for _ in range(2):
        Sampler(params).draws(logits_of())(0, [1])
    assert processor.prefixes == []


def test_a_fork_goes_on_with_the_same_sample_or_another():
    sampler = Sampler(SamplingParams(temperature=1.0, logits_processors=[TopKLogitsWarper(3)]), 1, sample=2)
    assert [sampler.fork().sample, sampler.fork(5).sample, sampler.sample] == [2, 5, 2]
    assert sampler.fork().processors[0] is not sampler.processors[0]
    plain = Sampler(SamplingParams(temperature=1.0), 1, sample=2)
    assert [plain.fork().sample, plain.fork(5).sample, plain.sample] == [2, 5, 2]


def test_processors_leave_the_models_logits_alone():
    logits = logits_of()
    before = logits.clone()
    Sampler(SamplingParams(logits_processors=[Counting()], temperature=1.0)).draws(logits)(0, [1])
    assert torch.equal(logits, before)


def test_a_processor_of_transformers_acts_on_the_whole_prefix():
    logits = logits_of()
    best, second = logits[0].topk(2).indices.tolist()
    sampler = Sampler(SamplingParams(logits_processors=[RepetitionPenaltyLogitsProcessor(50.0)]))
    assert sampler.draws(logits)(0, [5, best]) == second
    assert sampler.draws(logits)(0, [5, 6]) == best


def test_greedy_ties_go_to_the_same_token_with_and_without_processors():
    logits = torch.zeros(3, VOCAB)
    logits[:, [17, 200, 399]] = 2.0
    plain = Sampler(SamplingParams()).draws(logits)
    processed = Sampler(SamplingParams(logits_processors=[lambda ids, scores: scores])).draws(logits)
    alone = Sampler(SamplingParams()).draws(logits[1:2])
    assert plain(1, [0]) == processed(1, [0]) == alone(0, [0])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_unusable_logits_are_an_error_that_names_the_position(temperature, value):
    logits = logits_of(rows=2)
    logits[1, 33] = value
    draw = Sampler(SamplingParams(temperature=temperature)).draws(logits)
    draw(0, [1, 2])
    with pytest.raises(ModelError, match=r"position 3.*float32"):
        draw(1, [1, 2, 3])


def test_a_processor_that_forbids_everything_is_an_error():
    sampler = Sampler(SamplingParams(logits_processors=[lambda ids, scores: scores - torch.inf]))
    with pytest.raises(ModelError, match="processors"):
        sampler.draws(logits_of())(0, [1])


def test_this_must_fail_noise_keyed_by_step_would_change_the_text():
    """The property the key buys: however the positions are grouped in steps, the draws are the same."""
    logits = logits_of(rows=6)
    sampler = Sampler(SamplingParams(temperature=1.5), seed=9)
    one_by_one = [sampler.draws(logits[row : row + 1])(0, [0] * (row + 1)) for row in range(6)]
    draw = sampler.draws(logits)
    assert one_by_one == [draw(row, [0] * (row + 1)) for row in range(6)]
    by_step = [
        int((logits[row] / 1.5 + torch.from_numpy(gumbel_noise(9, 0, 0, VOCAB))).argmax()) for row in range(6)
    ]
    assert by_step != one_by_one


LOOKING = [
    SamplingParams(),
    SamplingParams(temperature=0.7, seed=3),
    SamplingParams(temperature=1.3, top_k=20, seed=4),
    SamplingParams(temperature=1.0, min_p=0.05, seed=5),
]


def drawn_ahead(sampler, logits, positions):
    """Logits that know how they will be drawn, as a pass gives them."""
    asked = Logits(logits)
    asked.ask(sampler.foresee(np.asarray(positions)))
    return asked


@pytest.mark.parametrize("params", LOOKING)
def test_rows_drawn_ahead_are_those_drawn_one_by_one(params):
    logits, text = logits_of(1, rows=9), [5, 6, 7]
    depths = np.array([0, 1, 1, 2, 2, 2, 3, 1, 4])
    sampler = Sampler(params, seed=9, sample=1)
    draw = sampler.draws(drawn_ahead(sampler, logits, len(text) + depths))
    expected = sampler.draws(logits)
    for row, depth in enumerate(depths):
        prefix = text + [0] * int(depth)
        assert draw(row, prefix) == expected(row, prefix)


def test_a_draw_at_another_position_than_foreseen_has_its_own_noise():
    sampler, logits = Sampler(SamplingParams(temperature=3.0), seed=9), logits_of(1, rows=20)
    ahead, expected = sampler.draws(drawn_ahead(sampler, logits, [3] * 20)), sampler.draws(logits)
    drawn = [[draw(row, [0] * size) for row in range(20)] for draw in (ahead, expected) for size in (3, 4)]
    assert drawn[:2] == drawn[2:]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0, top_p=0.5, seed=1),
        SamplingParams(temperature=1.0, min_p=0.5, seed=1),
        SamplingParams(temperature=1.0, top_k=300, seed=1),
        SamplingParams(temperature=1.0, seed=1, logits_processors=[RepetitionPenaltyLogitsProcessor(2.0)]),
    ],
)
def test_what_takes_the_logits_as_a_whole_is_not_foreseen(params):
    assert Sampler(params, seed=1).foresee(np.array([3])) is None


@pytest.mark.parametrize("top_k", [1, 2, 20, 256])
@pytest.mark.parametrize("rest", [{}, {"top_p": 0.9}, {"min_p": 0.1}, {"top_p": 0.8, "min_p": 0.05}])
def test_drawing_among_the_best_is_drawing_from_the_cut_law(top_k, rest):
    """Two ways to the same token: the list of the best, and the cut of all logits."""
    params = SamplingParams(temperature=1.3, top_k=top_k, **rest)
    logits = logits_of(5, rows=40)
    logits[20:] = (2 * logits[20:]).round() / 2  # many are equal, also at the cut
    sampler = Sampler(params, seed=3)
    draw = sampler.draws(logits)
    for row in range(40):
        noisy = warp(logits[row], params) + torch.from_numpy(gumbel_noise(3, 0, row, VOCAB))
        assert draw(row, [0] * row) == int(noisy.argmax())


@pytest.mark.parametrize("params", LOOKING)
def test_nan_in_rows_drawn_ahead_is_an_error_where_it_is_written(params):
    logits = logits_of(1, rows=2)
    logits[1, 5] = torch.nan
    sampler = Sampler(params, seed=9)
    draw = sampler.draws(drawn_ahead(sampler, logits, [2, 3]))
    draw(0, [1, 2])
    with pytest.raises(ModelError, match="position 3"):
        draw(1, [1, 2, 3])
