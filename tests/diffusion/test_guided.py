"""Guided diffusion: an autoregressive model decides how much is written, and never what."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion.exact_laws import JointOracle, random_joint, write
from hasten.core import SamplingParams
from hasten.diffusion.base import Helpers
from hasten.diffusion.parse import parse_strategy
from hasten.errors import ConfigError


class Fixed:
    """Gives every token the same rank."""

    def __init__(self, rank):
        self.rank = rank

    def ranks(self, token_ids, start=0):
        return np.full(len(token_ids) - start, self.rank)


class Chain:
    """The autoregressive model of a joint law, for texts without a prompt."""

    def __init__(self, oracle):
        self.oracle, self.reads = oracle, []

    def ranks(self, token_ids, start=0):
        self.reads.append((token_ids.tolist(), start))
        return np.array([self._rank(token_ids, place) for place in range(start, len(token_ids))])

    def _rank(self, token_ids, place):
        text = np.full(self.oracle.length, self.oracle.num_words)
        text[:place] = token_ids[:place]
        law = self.oracle.law(text, place)
        return int((law > law[token_ids[place]]).sum())


def guided(oracle, guide, text="guided", **options):
    return write(oracle, text, helpers=Helpers(guide=guide), **options)


def test_a_guide_that_always_agrees_lets_everything_be_written_in_one_forward_pass():
    written = guided(random_joint(0, length=6), Fixed(0))
    assert written.stats.num_forwards == 1
    assert written.records[0].positions.tolist() == list(range(6))


def test_a_guide_that_is_the_chain_of_the_proposals_writes_them_in_one_forward_pass():
    oracle = random_joint(1, length=5)
    proposal = write(oracle, "static:5").token_ids

    class Same:
        def ranks(self, token_ids, start=0):
            return np.array([int(token_ids[place] != proposal[place]) for place in range(start, 5)])

    written = guided(oracle, Same())
    assert written.token_ids == proposal
    assert written.stats.num_forwards == 1


def test_a_guide_that_never_agrees_lets_one_token_be_written_at_a_time_from_the_left():
    for seed in range(5):
        oracle = random_joint(seed, length=6)
        written = guided(oracle, Fixed(1))
        assert [record.positions.tolist() for record in written.records] == [[place] for place in range(6)]
        assert written.token_ids == write(oracle, "static:order=left-to-right").token_ids


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=1.0)])
def test_every_token_is_one_that_the_denoiser_proposed(params):
    for seed in range(30):
        oracle = random_joint(seed, length=5)
        guide = Chain(oracle)
        written = guided(oracle, guide, params=params, seed=seed)
        for record, (proposal, start) in zip(written.records, guide.reads, strict=True):
            assert record.token_ids.tolist() == [proposal[place] for place in record.positions]
            assert start == record.positions[0]


def test_it_writes_up_to_and_with_the_first_token_the_guide_would_not_have_written():
    for seed in range(30):
        oracle = random_joint(seed, length=5)
        guide = Chain(oracle)
        for record, (proposal, start) in zip(guided(oracle, guide).records, guide.reads, strict=True):
            ranks = Chain(oracle).ranks(np.array(proposal), start)
            assert (ranks[: len(record.positions) - 1] == 0).all()
            assert len(record.positions) == len(ranks) or ranks[len(record.positions) - 1] > 0
            assert record.positions.tolist() == list(range(start, start + len(record.positions)))


def test_a_wider_guide_writes_no_fewer_tokens():
    for seed in range(20):
        oracle = random_joint(seed, length=5)
        first = [len(guided(oracle, Chain(oracle), f"guided:{k}").records[0].positions) for k in (1, 2, 3)]
        assert first == sorted(first)
        assert first[-1] == 5  # three words: each is among the best three


def test_the_guide_reads_the_prompt_and_no_later_block():
    oracle = random_joint(2, length=4)
    reads = []

    class Recorder(Fixed):
        def ranks(self, token_ids, start=0):
            reads.append((token_ids.tolist(), start))
            return super().ranks(token_ids, start)

    guided(oracle, Recorder(0), "guided+blocks:2", prompt=(7, 8))
    assert [(len(text), start, text[:2]) for text, start in reads] == [(4, 2, [7, 8]), (6, 4, [7, 8])]


def test_behind_an_end_of_text_there_is_nothing_to_judge():
    probs = np.zeros((3, 3, 3, 3))
    probs[1, 0, 2, 1] = 1  # 0 ends a text
    oracle = JointOracle(probs, eos_ids=(0,))
    sizes = [len(record.positions) for record in guided(oracle, Fixed(1), prompt=(0,)).records]
    assert sizes == [1, 1, 2]


def test_without_a_guide_the_error_names_the_option():
    with pytest.raises(ConfigError, match="--guide MODEL"):
        parse_strategy("guided", random_joint(0).spec)


def test_a_guide_without_any_token_is_refused():
    with pytest.raises(ConfigError, match="guided:0"):
        parse_strategy("guided:0", random_joint(0).spec, Helpers(guide=Fixed(0)))


def test_it_promises_nothing():
    strategy = parse_strategy("guided", random_joint(0).spec, Helpers(guide=Fixed(0)))
    assert strategy.guarantee == "approximate"
    assert strategy.selector.top_k == 1
