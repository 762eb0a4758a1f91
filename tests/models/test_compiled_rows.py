"""A row of the compiled pass has the same bits whatever is computed beside it, so drafts change no text.

In bfloat16 too, where near ties are common: this is what other ways of running a model do not promise.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from adversaries import ADVERSARIES, Adversary, Oracle, trees
from compiled_models import ALL, accept, all_logits, compiled, decoder, last_logits, text_of, torch_threads
from conftest import VOCAB, each_alone
from coverings import some_of
from hasten.core import SamplingParams
from hasten.models.causal_lm import CausalLM
from hasten.models.draft.draft_lm import load_draft
from hasten.models.sessions.attention import AttentionKinds, TreeMask
from hasten.models.sessions.slot_cache import SlotCache
from hasten.models.sessions.tree_session import TreeSession
from hasten.text.engine import LanguageModel
from hasten.tree import DraftTree

DTYPES = [torch.float32, torch.bfloat16]
FEW = ["llama", "gemma3", "llama-heads-of-24", "llama-many-tiles"]
PROMPTS = [[5], [7, 8, 9, 10, 11, 12, 13, 14, 15], [20, 21, 22]]
GREEDY = SamplingParams(max_new_tokens=32, ignore_eos=True)
SAMPLED = SamplingParams(max_new_tokens=32, ignore_eos=True, temperature=0.7, seed=5)
DRAFTERS = ["suffix", "token-recycling", "lookahead", "draft-chain", "draft-sequoia", "superposed", "auto"]


@pytest.fixture(scope="module")
def forward_of():
    """forward_of(name, dtype) -> its CompiledForward; one for the whole run."""
    made = {}

    def get(name="llama", dtype=torch.float32):
        if (name, dtype) not in made:
            made[name, dtype] = compiled(name, dtype)
        return made[name, dtype]

    return get


@pytest.fixture(scope="module")
def writer_of(forward_of):
    """writer_of(dtype) -> a LanguageModel that runs compiled and has a draft model; and its plain texts."""
    made = {}

    def get(dtype):
        if dtype not in made:
            forward = forward_of("llama", dtype)
            target, draft = CausalLM(forward.model, forward=forward), decoder("llama", dtype)
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for parameter in draft.parameters():
                    parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator).to(dtype))
            draft = load_draft(draft, target=target, target_tokenizer=None)
            made[dtype] = LanguageModel(target, drafter="off", draft=draft)
        return made[dtype]

    return get


def a_tree(rng, vocab=VOCAB):
    count = int(rng.integers(0, 9))
    parents = [int(rng.integers(-1, node)) for node in range(count)]
    return DraftTree(rng.integers(0, vocab, count), parents).sanitised(vocab, 99)


def check_step(forward, session, texts, rows):
    """Each logit of a step against a session that knows nothing but this text."""
    for text, tree, found in zip(texts, rows, session.forward(rows), strict=True):
        for node in range(-1, len(tree)):
            path = [*text, *tree.token_ids[tree.path_to(node)].tolist()]
            assert torch.equal(found[node + 1], last_logits(forward, path))


def walk(forward, session, rng, num_steps, prompts=PROMPTS):
    """Random trees, random acceptances, batches that lose a row."""
    texts = [list(prompt) for prompt in prompts]
    session.prefill(prompts)
    for step in range(num_steps):
        rows = [a_tree(rng) for _ in texts]
        check_step(forward, session, texts, rows)
        nodes = [int(rng.integers(-1, len(tree))) for tree in rows]
        accept(session, texts, rows, nodes, int(rng.integers(0, VOCAB)))
        if step == 1 and len(texts) > 2:
            session.select([0, 2])
            texts = [texts[0], texts[2]]
    return texts


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ALL)
def test_a_row_has_the_same_bits_in_a_pass_of_any_size(forward_of, name, dtype):
    forward = forward_of(name, dtype)
    text = text_of(forward, 48)
    one_by_one = TreeSession(forward)
    one_by_one.prefill([text[:1]])
    expected, written = [], [text[:1]]
    for token in text[1:]:
        expected.append(one_by_one.forward([DraftTree()])[0][0])
        accept(one_by_one, written, [DraftTree()], [-1], token)
    for count in (1, 2, 3, 5, 8, 11, 16, 33):
        start = 46 - count
        found = all_logits(forward, text[:-1], start)[:count]
        assert all(map(torch.equal, found, expected[start:]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ALL)
def test_any_history_leaves_the_bits_of_plain_passes(forward_of, name, dtype):
    forward = forward_of(name, dtype)
    walk(forward, TreeSession(forward, max_holes=8), np.random.default_rng(1), 3)


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32), max_holes=st.sampled_from([0, 3, 1000]), name=st.sampled_from(FEW))
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_random_history_leaves_the_bits_of_plain_passes(forward_of, dtype, seed, max_holes, name):
    forward = forward_of(name, dtype)
    walk(forward, TreeSession(forward, max_holes=max_holes), np.random.default_rng(seed), 3)


@settings(max_examples=20)
@given(tree=trees(max_nodes=20))
@pytest.mark.parametrize("dtype", DTYPES)
def test_siblings_and_neighbours_change_no_bit(forward_of, dtype, tree):
    forward = forward_of("llama", dtype)
    session = TreeSession(forward)
    session.prefill(PROMPTS)
    check_step(forward, session, PROMPTS, [tree.sanitised(VOCAB, 99), DraftTree(), DraftTree.chain([3, 4])])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["gemma3", "llama"])
def test_a_tree_of_200_nodes_and_a_long_text_change_no_bit(forward_of, name, dtype):
    forward, rng = forward_of(name, dtype), np.random.default_rng(0)
    tree = DraftTree(rng.integers(0, VOCAB, 200), [int(rng.integers(-1, node)) for node in range(200)])
    tree, text = tree.sanitised(VOCAB, 99), text_of(forward, 180)
    session = TreeSession(forward)
    session.prefill([text])
    found = session.forward([tree])[0]
    for node in range(-1, len(tree), 9):
        path = [*text, *tree.token_ids[tree.path_to(node)].tolist()]
        assert torch.equal(found[node + 1], last_logits(forward, path))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["gemma2", "llama-many-tiles", "olmo3", "phi"])
def test_threads_change_no_bit(forward_of, name, dtype):
    alone = forward_of(name, dtype)
    text, others = text_of(alone, 40), [text_of(alone, 9, seed=1), text_of(alone, 17, seed=2)]
    for num_threads in (2, 3):
        forward = compiled(name, dtype, num_threads)
        for cached in (39, 35, 20):
            assert torch.equal(all_logits(forward, text, cached), all_logits(alone, text, cached))
        sessions = [TreeSession(forward), TreeSession(alone)]
        tree = DraftTree([1, 2, 3, 4], [-1, 0, 0, -1])
        for session in sessions:
            session.prefill([text, *others])
        for found, expected in zip(
            *(one.forward([tree, DraftTree(), tree]) for one in sessions), strict=True
        ):
            assert torch.equal(found, expected)
        with torch_threads(1):  # those that torch has afterwards do not matter
            assert torch.equal(all_logits(forward, text, 30), all_logits(alone, text, 30))


@torch.inference_mode()
def test_holes_and_slots_after_the_last_are_invisible(forward_of):
    forward = forward_of("gemma3", torch.bfloat16)
    session = TreeSession(forward, max_holes=1000)
    texts = walk(forward, session, np.random.default_rng(3), 6, PROMPTS[:2])
    holes = torch.from_numpy(~session._table.visible)
    assert holes.sum() > 20
    for layer in session._cache.used_layers:
        for states in (layer.keys, layer.values):
            states[holes[:, None, :, None].expand_as(states)] = 1e4
        for buffer in (layer.key_buffer, layer.value_buffer):
            buffer[:, :, layer.width :] = 1e4
    check_step(forward, session, texts, [DraftTree.chain([3, 4])] * 2)


@torch.inference_mode()
def test_this_must_fail_a_visible_slot_is_not_invisible(forward_of):
    forward = forward_of("llama", torch.bfloat16)
    session = TreeSession(forward)
    session.prefill(PROMPTS)
    for layer in session._cache.used_layers:
        layer.values[1, :, 3] += 1
    with pytest.raises(AssertionError):
        check_step(forward, session, PROMPTS, [DraftTree()] * 3)


def test_a_pass_may_ask_for_the_last_logits_only(forward_of):
    forward = forward_of()
    tokens, positions = np.array([text_of(forward, 7), text_of(forward, 7, 1)]), np.tile(np.arange(7), (2, 1))
    mask = TreeMask.causal(AttentionKinds.of(forward.text_config), positions)
    mask.own[1, 4:] = False  # padding
    every = forward(tokens, positions, mask, SlotCache())
    assert every.shape == (2, 7, VOCAB)
    assert not every[1, 4:].any()
    for count in (1, 3, 7):
        last = forward(tokens, positions, mask, SlotCache(), count)
        assert torch.equal(last, every[:, 7 - count :])


@some_of(3, drafter=[*DRAFTERS, *ADVERSARIES], dtype=DTYPES, params=[GREEDY, SAMPLED])
def test_drafts_change_no_token(writer_of, dtype, drafter, params):
    lm = writer_of(dtype)
    expected = [one.token_ids for one in each_alone(lm, PROMPTS, params)]
    drafting = Adversary(ADVERSARIES[drafter]) if drafter in ADVERSARIES else drafter
    for batch_size in (1, 3):
        found = lm.generate(PROMPTS, params, drafter=drafting, num_draft_tokens=24, batch_size=batch_size)
        assert [output.token_ids for output in found] == expected
        assert sum(output.stats.num_draft_tokens for output in found) > 0


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_prompts_that_begin_alike_are_written_as_each_alone(writer_of, dtype, params):
    lm = writer_of(dtype)
    beginning = text_of(lm.target.forward, 140)
    prompts = [[*beginning, 10 + row] for row in range(3)]
    expected = [one.token_ids for one in each_alone(lm, prompts, params)]
    for drafter in ("off", "suffix"):
        found = lm.generate(prompts, params, drafter=drafter, num_draft_tokens=12)
        assert [output.token_ids for output in found] == expected


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_texts_whose_holes_are_compacted_change_no_token(writer_of, dtype, params, monkeypatch):
    moved = []
    gather = TreeSession._compact_if_worth_it
    monkeypatch.setattr(
        TreeSession, "_compact_if_worth_it", lambda *given: moved.append(gather(*given)) or moved[-1]
    )
    lm, params = writer_of(dtype), replace(params, max_new_tokens=200)
    for prompt in PROMPTS[1:]:
        expected = lm.generate(prompt, params, drafter="off").token_ids
        oracle = Oracle([*prompt, *expected], depth=4, error_rate=0.3)
        found = lm.generate(prompt, params, drafter=oracle, num_draft_tokens=20)
        assert found.token_ids == expected
        assert found.stats.mean_acceptance_length > 2
    assert any(moved)
