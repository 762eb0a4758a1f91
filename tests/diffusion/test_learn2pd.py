"""Learn2PD: what a filter accepts is written, and what a perfect one could save."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from diffusion.exact_laws import ScriptedOracle, list_task, random_chain, random_joint, write
from hasten.core import SamplingParams
from hasten.diffusion.base import Helpers
from hasten.diffusion.blocks.fixed import FixedBlocks
from hasten.diffusion.canvas import Canvas, DenoiserSpec
from hasten.diffusion.confidence_filter import ConfidenceFilter, load_filter, save_filter
from hasten.diffusion.defaults import REFERENCE
from hasten.diffusion.parse import parse_strategy
from hasten.diffusion.selectors.oracle import Oracle
from hasten.errors import ConfigError, IncompatibleModels, StoreError

SAMPLED = SamplingParams(temperature=1.0)


def constant_filter(block_size, chance=None, sees=None):
    """A filter that accepts every position, or those where ``sees`` says so, with the same chance."""

    class Constant(ConfidenceFilter):
        def chances(self, confidences):
            seen.append(confidences.copy())
            if sees is not None:
                return sees(confidences)
            return np.full(self.block_size, chance)

    seen = []
    made = Constant(block_size)
    return made, seen


def helped(made):
    return Helpers(filter=made)


@pytest.mark.parametrize("params", [SamplingParams(), SAMPLED], ids=["greedy", "sampled"])
def test_the_oracle_writes_the_text_of_the_reference_in_no_more_forwards(params):
    saved = 0
    makers = [
        random_joint,
        lambda seed: random_chain(seed, length=12),
        lambda seed: list_task("sort", 8, seed),
    ]
    for make in makers:
        for seed in range(25):
            oracle = make(seed)
            plain = write(oracle, "static", params=params, seed=seed)
            chosen = replace(REFERENCE, selector=Oracle(answer=np.array(plain.token_ids)))
            fast = write(oracle, chosen, params=params, seed=seed)
            assert fast.token_ids == plain.token_ids
            assert fast.stats.num_forwards <= plain.stats.num_forwards
            saved += plain.stats.num_forwards - fast.stats.num_forwards
    assert saved > 0


def test_the_oracle_writes_a_whole_answer_at_once_where_only_one_is_right():
    oracle = list_task("reverse", 9)
    answer = write(oracle, "static").token_ids
    assert write(oracle, replace(REFERENCE, selector=Oracle(answer=np.array(answer)))).stats.num_forwards == 1


def test_the_oracle_leaves_the_surest_candidate_where_it_is_wrong():
    logits = np.zeros((2, 3, 2))
    logits[0] = [[9, 0], [3, 0], [0, 3]]
    logits[1] = [[0, 9], [9, 0], [0, 9]]
    answer = np.array([1, 0, 1])
    first, second = write(ScriptedOracle(logits), replace(REFERENCE, selector=Oracle(answer=answer))).records
    assert first.positions.tolist() == [1, 2]
    assert second.positions.tolist() == [0]


def test_the_oracle_goes_on_where_no_candidate_is_right():
    oracle = random_joint(3, length=4)
    likeliest = write(oracle, "static").token_ids
    never = [(token_id + 1) % oracle.num_words for token_id in likeliest]
    assert write(oracle, replace(REFERENCE, selector=Oracle(answer=np.array(never)))).token_ids == never


@pytest.mark.parametrize("params", [SamplingParams(), SAMPLED], ids=["greedy", "sampled"])
def test_a_chance_of_1_is_never_enough_and_leaves_the_reference_schedule(params):
    made, _ = constant_filter(5, chance=1.0)
    for seed in range(40):
        oracle = random_joint(seed)
        plain = write(oracle, "static", params=params, seed=seed)
        filtered = write(oracle, "learn2pd:1.0", params=params, seed=seed, helpers=helped(made))
        assert filtered.token_ids == plain.token_ids
        assert filtered.stats.num_forwards == plain.stats.num_forwards


def test_a_filter_that_accepts_nothing_leaves_the_surest_candidate():
    made, _ = constant_filter(5, chance=0.5)
    oracle = random_joint(7)
    filtered = write(oracle, "learn2pd", helpers=helped(made))
    assert [record.token_ids.size for record in filtered.records] == [1] * 5
    assert filtered.token_ids == write(oracle, "static").token_ids


def test_a_filter_that_accepts_everything_writes_a_block_in_one_forward():
    made, _ = constant_filter(4, chance=0.99)
    assert write(random_chain(1, length=12), "learn2pd", helpers=helped(made)).stats.num_forwards == 3


def test_only_what_is_accepted_is_written_beside_the_surest():
    made, seen = constant_filter(8, sees=lambda confidences: np.arange(8) / 8)
    filtered = write(random_chain(5, length=8), "learn2pd:0.7", helpers=helped(made))
    first = filtered.records[0]
    surest = int(seen[0].argmax())
    assert set(first.positions.tolist()) == {6, 7, surest}


def test_a_filter_sees_a_whole_block_and_how_sure_written_positions_are():
    made, seen = constant_filter(6, chance=0.0)
    oracle = random_chain(2, length=6)
    write(oracle, "learn2pd", helpers=helped(made), prompt=[0, 1])
    assert len(seen) == 6
    laws = np.exp(oracle._logits(np.full(6, oracle.num_words)).numpy())
    np.testing.assert_allclose(seen[0], laws.max(-1))
    assert all(confidences.shape == (6,) for confidences in seen)


def test_positions_that_a_short_block_lacks_count_as_written():
    made, seen = constant_filter(8, chance=0.0)
    oracle = random_chain(2, length=12)
    canvas = Canvas.with_gaps(np.array([0, *[oracle.num_words] * 10, 1]), np.arange(12) % 11 != 0)
    write(oracle, "learn2pd", helpers=helped(made), canvas=canvas)
    # The first block begins at position 1; the second has three positions, the last of them given.
    assert all((confidences[3:] == 1).all() for confidences in seen[8:])
    assert any((confidences[3:] < 1).any() for confidences in seen[:8])


def test_blocks_have_the_size_of_the_filter_and_no_other():
    made, _ = constant_filter(4, chance=0.5)
    spec = DenoiserSpec(mask_id=3)
    assert parse_strategy("learn2pd", spec, helped(made)).blocks == FixedBlocks(4)
    assert parse_strategy("learn2pd+blocks:4", spec, helped(made)).blocks == FixedBlocks(4)
    for other in ("blocks:8", "blocks", "whole"):
        with pytest.raises(ConfigError, match="blocks of 4 positions; choose 'blocks:4'"):
            parse_strategy(f"learn2pd+{other}", spec, helped(made))
    causal = DenoiserSpec(mask_id=3, attention="block-causal", block_size=8)
    with pytest.raises(ConfigError, match="blocks of 4 positions"):
        parse_strategy("learn2pd/blocks", causal, helped(made))


def test_a_canvas_that_the_blocks_do_not_divide_is_refused():
    made, _ = constant_filter(4, chance=0.5)
    with pytest.raises(ConfigError, match="blocks:4 does not divide"):
        write(random_chain(1, length=10), "learn2pd", helpers=helped(made))


@pytest.mark.parametrize("accept", ["-0.1", "1.5"])
def test_an_impossible_chance_is_refused(accept):
    with pytest.raises(ConfigError, match="it is a chance, from 0 to 1"):
        parse_strategy(f"learn2pd:{accept}", DenoiserSpec(mask_id=3), helped(ConfidenceFilter(4)))


def test_without_a_filter_the_way_to_one_is_named():
    with pytest.raises(ConfigError, match=r"--filter FILE.*hasten train filter"):
        parse_strategy("learn2pd", DenoiserSpec(mask_id=3))


def test_the_published_size_has_about_two_thousand_parameters():
    assert sum(one.numel() for one in ConfidenceFilter(32).parameters()) == 2112


def test_a_saved_filter_is_the_same_filter(tmp_path):
    torch.manual_seed(1)
    made = ConfidenceFilter(8, 16)
    save_filter(tmp_path / "f.safetensors", made, "this")
    loaded = load_filter(tmp_path / "f.safetensors", "this")
    assert (loaded.block_size, loaded.hidden_size) == (8, 16)
    confidences = np.random.default_rng(0).random(8)
    assert (loaded.chances(confidences) == made.chances(confidences)).all()
    assert not any(one.requires_grad for one in loaded.parameters())


def test_a_filter_that_does_not_fit_is_refused(tmp_path):
    file = tmp_path / "f.safetensors"
    with pytest.raises(StoreError, match=r"no confidence filter at .*hasten train filter"):
        load_filter(file, "this")
    save_filter(file, ConfidenceFilter(8), "this")
    with pytest.raises(IncompatibleModels, match="trained for the model 'this', this one is 'that'"):
        load_filter(file, "that")
    file.write_bytes(b"nothing")
    with pytest.raises(StoreError, match="is not readable"):
        load_filter(file, "this")


def test_a_file_of_another_kind_is_refused(tmp_path):
    from safetensors.torch import save_file

    file = tmp_path / "f.safetensors"
    save_file({"a": torch.zeros(1)}, file, {"format": "other"})
    with pytest.raises(StoreError, match="its format is 'other'"):
        load_filter(file, "this")
    notes = {
        "format": "hasten-confidence-filter-1",
        "denoiser": "this",
        "block_size": "8",
        "hidden_size": "2",
    }
    save_file({"first.weight": torch.zeros(2, 9)}, file, notes)
    with pytest.raises(StoreError, match="does not hold a confidence filter"):
        load_filter(file, "this")
