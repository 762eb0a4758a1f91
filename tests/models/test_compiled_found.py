"""What the compiled pass finds while it computes is what its logits hold as a whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from compiled_models import compiled, text_of
from hasten.core import SamplingParams
from hasten.logits import Draw, Logits
from hasten.models.sessions.tree_session import TreeSession
from hasten.noise import NoiseKey
from hasten.sampling import Sampler
from hasten.tree import DraftTree

DTYPES = [torch.float32, torch.bfloat16]
TREES = [DraftTree([3, 4, 5, 6, 7], [-1, -1, 1, 1, 3]), DraftTree(), DraftTree.chain([9, 8, 7])]
LENGTHS = (9, 1, 30)


def two_sessions(name: str, dtype: torch.dtype, num_threads: int = 1) -> list[TreeSession]:
    """One to find in, one to read whole logits from; prompts of different length."""
    forward = compiled(name, dtype, num_threads)
    sessions = []
    for _ in range(2):
        session = TreeSession(forward)
        session.prefill([text_of(forward, size, seed=size) for size in LENGTHS])
        sessions.append(session)
    return sessions


def positions_of(tree: DraftTree, length: int) -> NDArray[np.int64]:
    return length + np.concatenate(([0], tree.depths()))


CASES = [
    ("llama-many-tiles", torch.float32, 1),
    ("llama-many-tiles", torch.bfloat16, 3),
    ("qwen3-tied", torch.bfloat16, 1),
    ("gemma2", torch.float32, 2),
    ("gemma2", torch.bfloat16, 2),
    ("granite", torch.float32, 3),
]
"""Every model, dtype and number of threads with every other dtype or number somewhere."""


@pytest.mark.parametrize(("name", "dtype", "num_threads"), CASES)
def test_what_is_found_is_what_whole_logits_hold(name, dtype, num_threads):
    finding, reading = two_sessions(name, dtype, num_threads)
    whole = reading.forward(TREES)
    draws = [
        Draw(positions_of(TREES[0], 9)),
        Draw(positions_of(TREES[1], 1), 0.8, seed=5, sample=1),
        Draw(positions_of(TREES[2], 30), 1.5, seed=2**63, num_best=7),
    ]
    found = finding.find(TREES, draws, top_k=5)
    for one, rows, draw in zip(found, whole, draws, strict=True):
        expected = Logits(rows)
        assert len(one) == len(rows)
        for which in ("token_ids", "scores"):
            assert np.array_equal(getattr(one.best(), which), getattr(expected.best(), which))
            assert np.array_equal(getattr(one.top(8), which), getattr(expected.top(8), which))
        candidates, of_whole = one.candidates(5), expected.candidates(5)
        assert np.array_equal(candidates.token_ids, of_whole.token_ids)
        assert np.array_equal(candidates.probs, of_whole.probs)
        for row, position in enumerate(draw.positions):
            key = NoiseKey(draw.seed, draw.sample, int(position))
            assert one.drawn(row, key, 0.8) == expected.drawn(row, key, 0.8)
    for one, rows in zip(found, whole, strict=True):
        assert torch.equal(one.whole(), rows)  # the head, run once more


@pytest.mark.parametrize("dtype", DTYPES)
def test_whole_logits_that_are_read_again_and_again_are_kept(dtype, monkeypatch):
    finding, reading = two_sessions("llama-many-tiles", dtype)
    plan = finding._forward._plan
    runs = []
    run = plan._run
    monkeypatch.setattr(
        plan, "_run", lambda call, search: runs.append(call.is_only_head) or run(call, search)
    )
    draws = [Draw(positions_of(tree, length)) for tree, length in zip(TREES, LENGTHS, strict=True)]
    whole = reading.forward(TREES)
    runs.clear()
    for _ in range(3):
        assert torch.equal(finding.find(TREES, draws)[2][1], whole[2][1])
        finding._commit([np.empty(0, np.int64)] * 3)
    assert runs == [False, True, False, False]
    finding.find(TREES, draws)
    finding._commit([np.empty(0, np.int64)] * 3)
    finding.find(TREES, draws)
    assert not plan._last.keeps_logits  # nobody read the last ones
    finding._commit([np.empty(0, np.int64)] * 3)
    finding.find(TREES, [None, *draws[1:]])
    assert plan._last.keeps_logits  # somebody is going to


def test_logits_of_an_earlier_pass_are_refused():
    finding, _ = two_sessions("llama-many-tiles", torch.float32)
    draws = [Draw(positions_of(tree, length)) for tree, length in zip(TREES, LENGTHS, strict=True)]
    first = finding.find(TREES, draws, top_k=2)
    finding.find(TREES, draws, top_k=2)
    assert first[0].candidates(2).token_ids.shape == (6, 2)  # what was found stays
    with pytest.raises(RuntimeError, match="before the next pass"):
        first[0].whole()


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.7, top_k=5, top_p=0.9, min_p=0.01),
        SamplingParams(temperature=1.3, top_p=0.9),
        SamplingParams(logits_processors=[lambda ids, scores: -scores]),
    ],
)
def test_samplers_draw_the_same_from_both(params):
    finding, reading = two_sessions("llama-many-tiles", torch.float32, 2)
    samplers = [Sampler(params, seed=3, sample=row) for row in range(3)]
    places = [positions_of(tree, length) for tree, length in zip(TREES, LENGTHS, strict=True)]
    whole = reading.forward(TREES)
    found = finding.find(TREES, [one.foresee(at) for one, at in zip(samplers, places, strict=True)])
    for one, rows, sampler, positions in zip(found, whole, samplers, places, strict=True):
        draw, expected = sampler.draws(one), sampler.draws(rows)
        for row, position in enumerate(positions):
            assert draw(row, [0] * position) == expected(row, [0] * position)


@pytest.mark.parametrize("token", [0, 700, 1000])
def test_a_nan_in_the_head_spoils_the_rows_and_nothing_else(token):
    forward = compiled("llama-many-tiles", torch.float32, 2)
    session = TreeSession(forward)
    session.prefill([[1, 2, 3]])
    tile, lane = divmod(token, 16)
    plan = forward._plan
    plan._model.weights[plan._model.head[0] + tile * 16 * 112 + lane] = np.nan
    [found] = session.find([DraftTree.chain([4])], [Draw(np.array([3, 4]), 1.0)], top_k=3)
    assert np.isnan(found.best().scores).all()
    assert np.isnan(found.candidates(3).probs).all()
    assert np.isnan(found.drawn(1, NoiseKey(0, 0, 4), 1.0)[1])
    assert (found.candidates(3).token_ids < 1001).all()
