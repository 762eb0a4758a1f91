"""Blocks that end at delimiters."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from diffusion.exact_laws import write
from diffusion.tables import FunctionDenoiser, table_denoiser
from hasten.core import SamplingParams
from hasten.diffusion.base import Helpers
from hasten.diffusion.parse import parse_strategy
from hasten.errors import ConfigError

DELIMITER = 3
HELPERS = Helpers(delimiter_ids=(DELIMITER,))
LENGTH = 8
LINES = ["adablock:tau=0.4,size=2,reach=0.5", "adablock:0.2,size=3,reach=0.6", "adablock:0.5,size=2+static"]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("selector", ["threshold:0.5", "static"])
def test_without_a_sure_delimiter_blocks_have_the_usual_size(selector: str, seed: int) -> None:
    denoiser = table_denoiser(seed, length=LENGTH)
    fixed = write(denoiser, f"{selector}+blocks:2")
    adaptive = write(denoiser, f"{selector}+adablock:inf,size=2,reach=0.5", helpers=HELPERS)
    assert adaptive.token_ids == fixed.token_ids
    assert [one.block for one in adaptive.records] == [one.block for one in fixed.records]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("line", LINES)
def test_a_block_of_another_size_ends_where_a_delimiter_was_predicted(line: str, temperature: float) -> None:
    num_adapted = 0
    for seed in range(20):
        denoiser = table_denoiser(seed, length=LENGTH + 1)
        params = SamplingParams(temperature=temperature)
        text = write(denoiser, line, length=LENGTH, prompt=[0], params=params, seed=seed, helpers=HELPERS)
        first_of_block = {one.block: one for one in reversed(text.records)}
        blocks = sorted(first_of_block)
        assert blocks[0].start == 1
        assert blocks[-1].end == LENGTH + 1
        assert all(before.end == after.start for before, after in itertools.pairwise(blocks))
        usual = 3 if "size=3" in line else 2
        for block in blocks:
            if block.size != min(usual, LENGTH + 1 - block.start):
                num_adapted += 1
                assert first_of_block[block].canvas_ids[block.end - 1] == DELIMITER
    assert num_adapted > 5


def test_the_surest_delimiter_within_reach_ends_the_block() -> None:
    logits = np.zeros((LENGTH, 4))
    logits[[1, 3, 6], DELIMITER] = 2.0, 3.0, 9.0
    denoiser = FunctionDenoiser(lambda token_ids: logits, 4, length=LENGTH)
    within = write(denoiser, "adablock:0.3,size=2,reach=0.5+static", helpers=HELPERS)
    assert within.records[0].block == (0, 4)
    everywhere = write(denoiser, "adablock:0.3,size=2,reach=1+static", helpers=HELPERS)
    assert everywhere.records[0].block == (0, 7)
    surer = write(denoiser, "adablock:0.9,size=2,reach=0.5+static", helpers=HELPERS)
    assert surer.records[0].block == (0, 2)


def test_a_delimiter_out_of_reach_ends_no_block() -> None:
    logits = np.zeros((LENGTH, 4))
    logits[3, DELIMITER] = 9.0
    denoiser = FunctionDenoiser(lambda token_ids: logits, 4, length=LENGTH)
    near = write(denoiser, "adablock:0.3,size=6,reach=0.5+static", helpers=HELPERS)
    assert near.records[0].block == (0, 4)
    far = write(denoiser, "adablock:0.3,size=6,reach=0.4+static", helpers=HELPERS)
    assert far.records[0].block == (0, 6)


def test_delimiters_are_missed_by_name() -> None:
    with pytest.raises(ConfigError, match="delimiter_ids"):
        parse_strategy("adablock", table_denoiser(0).spec)


@pytest.mark.parametrize("values", ["size=0", "reach=0", "reach=1.5"])
def test_values_that_cannot_work_are_refused(values: str) -> None:
    with pytest.raises(ConfigError, match="cannot work"):
        parse_strategy(f"adablock:{values}", table_denoiser(0).spec, HELPERS)


def test_block_causal_denoisers_have_blocks_of_their_own() -> None:
    spec = replace(table_denoiser(0).spec, attention="block-causal", block_size=4)
    with pytest.raises(ConfigError, match=r"adablock.*blocks:size=4,aligned=1"):
        parse_strategy("adablock", spec, HELPERS)
    spec = replace(spec, attention="encoder-decoder")
    with pytest.raises(ConfigError, match=r"adablock.*blocks:4"):
        parse_strategy("adablock", spec, HELPERS)
