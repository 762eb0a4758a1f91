"""SpecDec++: when a chain ends, that this is the best moment, and the law of what is drafted."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from laws import law_is_kept
from oracles import MODES, Pair, grow, sequence_of

from conftest import build_model
from hasten.drafters.trees.acceptance_head import AcceptanceHead, load_head, save_head
from hasten.drafters.trees.specdec import SpecDec
from hasten.errors import ConfigError, IncompatibleModels, StoreError
from hasten.models.fingerprint import model_fingerprint


def chances(*rest):
    """Hidden states that say the chance of each token of the chain."""
    return lambda node: torch.tensor(rest[node] if node < len(rest) else rest[-1])


def length_of(shape, hidden_of, budget=99, max_depth=99, proposals="coupled"):
    tree, passes = grow(
        shape, sequence_of(proposals), Pair().draft, budget, max_depth=max_depth, hidden_of=hidden_of
    )
    assert tree.parents.tolist() == list(range(-1, len(tree) - 1))
    assert passes == max(1, len(tree))  # the last token is not read
    return len(tree)


def test_the_chain_ends_when_a_rejection_is_likelier_than_the_threshold():
    shape = SpecDec(float, threshold=0.5)
    # A token is proposed before it is judged: 0.9 * 0.5 is under 0.5 once the third is there.
    assert length_of(shape, chances(0.9, 0.5, 0.9, 0.9)) == 3
    assert length_of(shape, chances(0.9, 0.6, 0.9, 0.9)) == 4
    assert length_of(shape, chances(0.0)) == 2
    assert length_of(shape, chances(1.0)) == 20
    assert length_of(SpecDec(float, threshold=0.5, min_length=4, max_length=7), chances(0.0)) == 4
    assert length_of(SpecDec(float, threshold=0.5, min_length=1, max_length=7), chances(1.0)) == 7
    assert length_of(SpecDec(float, threshold=0.0, min_length=1), chances(0.99)) == 2
    assert length_of(SpecDec(float, threshold=1.0), chances(0.0)) == 20


@pytest.mark.parametrize("proposals", MODES)
def test_budget_and_depth_are_kept_in_every_mode(proposals):
    for budget, max_depth in itertools.product((0, 1, 5), (0, 1, 3, 99)):
        length = length_of(SpecDec(float), chances(1.0), budget, max_depth, proposals)
        assert length == min(budget, max_depth)


def expected(accepted, length):
    """Tokens of a round: the chain's that are accepted, and the target's own."""
    return 1 + sum(np.prod(accepted[:end]) for end in range(1, length + 1))


@pytest.mark.parametrize("draft_ms", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("chance", [0.3, 0.6, 0.8, 0.9])
def test_where_all_tokens_are_alike_a_threshold_costs_no_more_than_the_best_length(chance, draft_ms):
    accepted = [chance] * 20
    costs = [(1 + draft_ms * length) / expected(accepted, length) for length in range(1, 21)]
    best = int(np.argmin(costs))
    # Another pass pays while its token's chance times the time of a token is more than the pass. The last
    # token's own chance and the next one's are not known yet when that is decided.
    threshold = 1 - draft_ms / min(costs) / chance**2
    shape = SpecDec(float, threshold=min(1, max(0, threshold)), min_length=1)
    length = length_of(shape, chances(chance))
    if threshold < 0:  # not even the second token is worth a pass, but the first is not judged before it
        assert length <= 2
    else:
        assert costs[length - 1] == pytest.approx(costs[best], rel=1e-9)


@pytest.mark.parametrize("seed", range(2))
def test_with_easy_and_hard_texts_no_rule_beats_the_threshold(seed):
    """Every round's tokens have one chance, easy or hard: the best lengths of each kind by brute force."""
    rng = np.random.default_rng(seed)
    easy, hard, draft_ms = rng.uniform(0.8, 0.97), rng.uniform(0.2, 0.6), rng.uniform(0.03, 0.1)

    def cost(lengths):
        spent = sum(1 + draft_ms * length for length in lengths)
        gained = sum(
            expected([chance] * 20, length) for chance, length in zip((easy, hard), lengths, strict=True)
        )
        return spent / gained

    every = {lengths: cost(lengths) for lengths in itertools.product(range(2, 21), repeat=2)}
    ruled = []
    for threshold in np.linspace(0, 1, 41):
        shape = SpecDec(float, threshold=float(threshold))
        ruled.append(every[length_of(shape, chances(easy)), length_of(shape, chances(hard))])
    assert min(ruled) == pytest.approx(min(every.values()), rel=0.02)
    fixed = min(every[length, length] for length in range(2, 21))
    assert min(ruled) < fixed


@pytest.mark.parametrize(
    ("seed", "proposals", "verify"),
    [(0, "distinct", "residual"), (1, "distinct", "residual"), (0, "independent", "k-sequential")],
)
def test_the_law_is_kept_whatever_the_head_says(seed, proposals, verify):
    torch.manual_seed(seed)
    head = AcceptanceHead(4)
    torch.nn.init.normal_(head.last.weight, std=3)
    states = torch.randn(9, 4)
    law_is_kept(
        lambda: SpecDec(head.chance, threshold=0.4, min_length=1, max_length=2),
        proposals, verify, budget=4, hidden_of=lambda node: states[node],
    )  # fmt: skip


def test_this_must_fail_a_token_that_is_dropped_for_what_it_is():
    class Dropping(SpecDec):
        def grow(self, tree):
            added = tree.extend(-1, 1)
            if tree.token_ids[added[0]] == 0:
                tree._kept = []
            return iter(())

    with pytest.raises(AssertionError, match="law"):
        law_is_kept(lambda: Dropping(float), "distinct", "residual", budget=4)


def test_a_shape_without_hidden_states_says_so():
    with pytest.raises(ConfigError, match="hidden states"):
        grow(SpecDec(float), sequence_of(), Pair().draft, 4)


def test_an_untrained_head_knows_nothing_and_blocks_are_not_tied():
    head = AcceptanceHead(8, num_blocks=3)
    assert head.chance(torch.randn(8)) == 0.5
    assert len({id(block.weight) for block in head.blocks}) == 3
    assert head(torch.randn(2, 5, 8, dtype=torch.bfloat16)).shape == (2, 5)


def test_a_head_is_saved_for_one_draft(tmp_path):
    model, other = build_model(), build_model(seed=1)
    mark = model_fingerprint(model)
    assert mark == model_fingerprint(build_model(dtype=torch.bfloat16))
    assert mark != model_fingerprint(other)
    head = AcceptanceHead(32, num_blocks=2)
    torch.nn.init.normal_(head.last.weight)
    path = tmp_path / "deep" / "head.safetensors"
    save_head(path, head, mark)
    loaded, state = load_head(path, mark), torch.randn(32)
    assert loaded.chance(state) == head.chance(state)
    with pytest.raises(IncompatibleModels, match="was trained for the draft"):
        load_head(path, model_fingerprint(other))
    with pytest.raises(StoreError, match="no acceptance head"):
        load_head(tmp_path / "none", mark)
    (tmp_path / "bad").write_bytes(b"no")
    with pytest.raises(StoreError, match="not readable"):
        load_head(tmp_path / "bad", mark)
    with pytest.raises(StoreError, match="cannot write"):
        save_head(tmp_path / "bad" / "head", head, mark)


def test_options_that_cannot_work():
    with pytest.raises(ConfigError, match="threshold=2 cannot work"):
        SpecDec(float, threshold=2)
    with pytest.raises(ConfigError, match="min_length=3 and max_length=2"):
        SpecDec(float, min_length=3, max_length=2)
