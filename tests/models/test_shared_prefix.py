# ruff: noqa: PLR0917
"""Shared prefixes: merged attention is attention, the prefix is cached once, every text is the plain one."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from adversaries import VOCAB, Adversary, Oracle, random_tree
from conftest import ARCHITECTURES, build_model, finest_dtype
from hasten.core import Acceptance, SamplingParams
from hasten.errors import ConfigError, ModelError
from hasten.models.causal_lm import CausalLM
from hasten.models.sessions import prefix_attention, shared_prefix
from hasten.models.sessions.prefix_attention import Prefix, attend, attending_to, merge
from hasten.models.sessions.shared_prefix import SharedPrefixSession, can_share_prefixes, common_length
from hasten.models.sessions.tree_session import TreeSession
from hasten.text.engine import LanguageModel
from hasten.tree import DraftTree
from histories import a_tree, plain_logits

SHARING = ["llama", "qwen2", "qwen3", "gpt2", "gpt-neox", "phi3", "olmo2", "mixtral-moe"]
NOT_SHARING = ["gemma2", "gemma3", "mistral-sliding", "falcon", "deepseek-mla", "llama4-chunked"]
COMMON = np.random.default_rng(7).integers(0, VOCAB, 90).tolist()
PROMPTS = [[*COMMON, *after] for after in ([], [5], [6, 7, 8], [9] * 12, [10, 11])]
GREEDY = SamplingParams(max_new_tokens=20, ignore_eos=True)
SAMPLES = SamplingParams(max_new_tokens=20, ignore_eos=True, temperature=0.9, seed=3, n=4)


def session_of(forward):
    return SharedPrefixSession(forward, lambda: True)


# attention ------------------------------------------------------------------------------------------------


def monolithic(query, key, value, mask, prefix, scale):
    """Plain attention with the prefix copied into every row and every head."""
    batch, heads = query.shape[:2]
    key, value = (
        torch.cat((common.expand(batch, -1, -1, -1), own), dim=2).repeat_interleave(
            heads // own.shape[1], dim=1
        )
        for common, own in zip(prefix, (key, value), strict=True)
    )
    seen = torch.zeros(batch, 1, query.shape[2], prefix[0].shape[2], dtype=mask.dtype)
    scores = query @ key.transpose(2, 3) * scale + torch.cat((seen, mask), dim=3)
    return (scores.softmax(-1) @ value).transpose(1, 2)


def a_case(seed, batch, kv_heads, group, tokens, slots, length, channels=8, value_channels=8):
    draw = torch.Generator().manual_seed(seed)

    def states(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    query = states(batch, kv_heads * group, tokens, channels)
    key, value = states(batch, kv_heads, slots, channels), states(batch, kv_heads, slots, value_channels)
    mask = torch.where(states(batch, 1, tokens, slots) > 0, 0.0, torch.finfo(torch.float32).min).double()
    prefix = states(1, kv_heads, length, channels), states(1, kv_heads, length, value_channels)
    return query, key, value, mask, prefix


@settings(max_examples=60)
@given(
    seed=st.integers(0, 99),
    batch=st.integers(1, 4),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    tokens=st.integers(1, 5),
    slots=st.integers(1, 9),
    length=st.integers(1, 40),
    value_channels=st.sampled_from([8, 4]),
)
def test_merged_attention_is_monolithic_attention(
    seed, batch, kv_heads, group, tokens, slots, length, value_channels
):
    """Other channels for values than for keys take the plain matrix products, equal ones torch's kernel."""
    case = a_case(seed, batch, kv_heads, group, tokens, slots, length, 8, value_channels)
    found = prefix_attention.prefix_attention(*case, 0.3)
    torch.testing.assert_close(found, monolithic(*case, 0.3), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_attention_in_fewer_bits(dtype):
    query, key, value, mask, prefix = a_case(0, 3, 2, 2, 4, 6, 30)
    expected = monolithic(query, key, value, mask, prefix, 0.3)
    found = prefix_attention.prefix_attention(
        *(states.to(dtype) for states in (query, key, value, mask)), tuple(s.to(dtype) for s in prefix), 0.3
    )
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.double(), expected, rtol=0, atol=0.02 if dtype == torch.bfloat16 else 1e-6
    )


def test_merged_parts_can_be_merged_again():
    query, key, value, _, _ = a_case(3, 2, 2, 1, 3, 9, 4)
    parts = [attend(query, key[:, :, part], value[:, :, part], None, 0.3) for part in (slice(4), slice(4, 9))]
    for found, expected in zip(merge(*parts), attend(query, key, value, None, 0.3), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_an_empty_part_has_no_weight():
    query, key, value, _, _ = a_case(1, 2, 1, 1, 3, 5, 4)
    empty = attend(query, key[:, :, :0], value[:, :, :0], None, 0.3)
    assert empty[1].eq(-torch.inf).all()
    some = attend(query, key, value, None, 0.3)
    for output, lse in (merge(some, empty), merge(empty, some)):
        assert torch.equal(output, some[0])
        assert torch.equal(lse, some[1])
    output, lse = merge(empty, empty)
    assert output.eq(0).all()
    assert lse.eq(-torch.inf).all()


def test_a_part_whose_keys_are_all_hidden_has_no_weight():
    query, key, value, mask, prefix = a_case(2, 2, 2, 2, 3, 5, 4)
    hidden = torch.full_like(mask, torch.finfo(torch.float32).min)
    found = prefix_attention.prefix_attention(query, key, value, hidden, prefix, 0.3)
    output, _ = attend(
        query, *(states.repeat_interleave(2, dim=1).expand(2, -1, -1, -1) for states in prefix), None, 0.3
    )
    torch.testing.assert_close(found, output.transpose(1, 2), rtol=0, atol=1e-12)


# session --------------------------------------------------------------------------------------------------


def check_step(forward, session, texts, trees):
    tolerance = 2e-4 if forward.dtype == torch.float32 else 1e-9
    for text, tree, found in zip(texts, trees, session.forward(trees), strict=True):
        for node in range(-1, len(tree)):
            expected = plain_logits(forward, [*text, *tree.token_ids[tree.path_to(node)].tolist()])
            torch.testing.assert_close(found[node + 1], expected, rtol=0, atol=tolerance)


def walk(forward, session, texts, rng, num_steps):
    for _ in range(num_steps):
        trees = [a_tree(rng) for _ in texts]
        check_step(forward, session, texts, trees)
        acceptances = []
        for text, tree in zip(texts, trees, strict=True):
            path = tree.path_to(int(rng.integers(-1, len(tree))))
            acceptances.append(
                Acceptance(path, [*tree.token_ids[path].tolist(), int(rng.integers(0, VOCAB))])
            )
            text.extend(acceptances[-1].token_ids)
        session.keep(acceptances)


@pytest.mark.parametrize("max_holes", [0, 1000])
@pytest.mark.parametrize("name", SHARING)
def test_any_history_over_a_prefix_gives_the_logits_of_plain_passes(targets, monkeypatch, name, max_holes):
    """Rows of different length, rejected branches, compaction, and rows that leave."""
    monkeypatch.setattr(TreeSession.__init__, "__kwdefaults__", {"max_holes": max_holes, "prefill": "packed"})
    forward, rng = targets(name, finest_dtype(name)).forward, np.random.default_rng(1)
    session, texts = session_of(forward), [list(prompt) for prompt in PROMPTS]
    session.prefill(PROMPTS)
    assert session.num_shared_tokens == 89  # the last token of the shortest prompt is its root
    walk(forward, session, texts, rng, 4)
    session.select([0, 3, 4])
    texts = [texts[row] for row in (0, 3, 4)]
    walk(forward, session, texts, rng, 2)
    session.select([1])
    walk(forward, session, texts[1:2], rng, 2)


def test_the_prefix_is_cached_once(targets):
    forward = targets().forward
    shared, own = session_of(forward), TreeSession(forward)
    shared.prefill([COMMON] * 8)
    own.prefill([COMMON] * 8)
    assert shared.num_bytes() == own.num_bytes() / 8


def test_prefill_over_a_prefix_gives_the_candidates_of_every_prompt_position(targets):
    forward = targets("llama", torch.float64).forward
    found = session_of(forward).prefill(PROMPTS, top_k=4)
    expected = TreeSession(forward).prefill(PROMPTS, top_k=4)
    for prompt, one, other in zip(PROMPTS, found, expected, strict=True):
        assert one.token_ids.shape == (len(prompt) - 1, 4)
        assert np.array_equal(one.token_ids, other.token_ids)
        np.testing.assert_allclose(one.probs, other.probs, atol=1e-6)


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ([[1, 2, 3], [1, 2, 4]], 2),
        ([[1, 2, 3], [1, 2, 3]], 2),
        ([[1, 2], [1, 2, 3, 4]], 1),
        ([[1], [1]], 0),
        ([[1, 2], [2, 2]], 0),
        ([[1, 2, 3]], 2),
    ],
)
def test_one_token_of_every_prompt_is_left_for_the_root(prompts, expected):
    assert common_length(prompts) == expected


@pytest.mark.parametrize(
    ("prompts", "shared"),
    [
        ([COMMON] * 5, 89),
        ([COMMON], 0),
        ([COMMON] * 3, 0),  # saves 178 slots only
        ([COMMON[:20]] * 40, 0),  # a prefix of 19
        ([COMMON[:33]] * 40, 32),
        ([[3, *COMMON], [4, *COMMON]] * 3, 0),
    ],
)
def test_only_a_prefix_that_is_worth_it_is_shared(targets, prompts, shared):
    session = session_of(targets().forward)
    session.prefill(prompts)
    assert session.num_shared_tokens == shared


def test_a_session_can_be_prefilled_again(targets):
    forward = targets("llama", torch.float64).forward
    session, rng = session_of(forward), np.random.default_rng(0)
    for prompts in (PROMPTS, [[4], [5, 6]], PROMPTS[::-1]):
        session.prefill(prompts)
        walk(forward, session, [list(prompt) for prompt in prompts], rng, 1)


# which models ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*SHARING, *NOT_SHARING])
def test_the_check_finds_the_models_that_can(name, dtype):
    model = build_model(name, dtype)
    original = model.config._attn_implementation
    assert CausalLM(model).can_share_prefixes == (name in SHARING)
    assert model.config._attn_implementation == original


def test_a_llama_with_eager_attention_can():
    assert CausalLM(build_model(attn_implementation="eager")).can_share_prefixes


def test_other_implementations_of_attention_are_refused(monkeypatch):
    model = build_model()
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "flex_attention")
    with pytest.raises(ModelError, match="attn_implementation='flex_attention'"):
        attending_to(Prefix([], 1), model.config).__enter__()


def test_the_check_compares_every_logit(monkeypatch):
    """A hook that forgets the prefix, or its weight, is found out."""
    assert can_share_prefixes(CausalLM(build_model()).forward)
    monkeypatch.setattr(prefix_attention, "merge", lambda common, own: own)
    assert not can_share_prefixes(CausalLM(build_model()).forward)
    monkeypatch.setattr(prefix_attention, "merge", lambda common, own: ((common[0] + own[0]) / 2, common[1]))
    assert not can_share_prefixes(CausalLM(build_model()).forward)


def test_the_check_waits_for_a_batch_that_needs_it():
    lm = LanguageModel(CausalLM(build_model()), drafter="off")
    lm.generate([[4, 5, 6], COMMON], GREEDY)
    lm.generate(COMMON, GREEDY)
    assert "can_share_prefixes" not in vars(lm.target)
    lm.generate(PROMPTS, GREEDY)
    assert vars(lm.target)["can_share_prefixes"]


def test_sharing_can_be_switched_off():
    target = CausalLM(build_model(), shared_prefix="off")
    assert isinstance(target.open(), TreeSession)
    with pytest.raises(ConfigError, match="shared_prefix='on'"):
        CausalLM(build_model(), shared_prefix="on")


# texts ----------------------------------------------------------------------------------------------------


@pytest.fixture
def shared_lengths(monkeypatch):
    """Lengths of the prefixes that were shared since the test began."""
    lengths = []
    reading = SharedPrefixSession.reading

    def spy(session, prompts, *rest):
        found = yield from reading(session, prompts, *rest)
        lengths.append(session.num_shared_tokens)
        return found

    monkeypatch.setattr(SharedPrefixSession, "reading", spy)
    return lengths


def drafters(expected):
    yield None
    yield Adversary(random_tree)
    yield Oracle(expected, depth=4, error_rate=0.2)


@pytest.mark.parametrize("name", [*SHARING, *NOT_SHARING])
def test_requests_after_one_prefix_get_their_own_plain_texts(models, shared_lengths, name):
    lm = models(name)
    expected = [lm.generate(prompt, GREEDY, drafter="off").token_ids for prompt in PROMPTS]
    assert len({tuple(text) for text in expected}) > 1
    for drafter in drafters([*PROMPTS[2], *expected[2]]):
        found = lm.generate(PROMPTS, GREEDY, drafter=drafter or "off", num_draft_tokens=12)
        assert [output.token_ids for output in found] == expected
        assert shared_lengths[-1] == (89 if name in SHARING else 0)


@pytest.mark.parametrize("name", [*SHARING, "gemma2"])
def test_samples_of_one_prompt_are_those_of_unshared_rows(models, shared_lengths, name):
    lm = models(name)
    alone = LanguageModel(CausalLM(lm.target.forward.model, shared_prefix="off"), drafter="off")
    expected = [output.token_ids for output in alone.generate([COMMON], SAMPLES, batch_size=1)]
    assert len({tuple(text) for text in expected}) == 4
    for drafter in drafters([*COMMON, *expected[0]]):
        found = lm.generate([COMMON], SAMPLES, drafter=drafter or "off", num_draft_tokens=12)
        assert [output.token_ids for output in found] == expected
        assert shared_lengths[-1] == (89 if name in SHARING else 0)


# the hook -------------------------------------------------------------------------------------------------


class Unlucky(Exception):
    pass


def test_the_models_own_attention_is_back_after_an_exception(targets, monkeypatch):
    forward = CausalLM(build_model()).forward
    session = session_of(forward)
    session.prefill(PROMPTS)
    implementations = []

    def fail(*arguments, **options):
        implementations.append(forward.config._attn_implementation)
        raise Unlucky

    monkeypatch.setattr(prefix_attention, "attend", fail)
    with pytest.raises(Unlucky):
        session.forward([DraftTree()] * 5)
    assert implementations == ["hasten_shared_prefix_over_sdpa"]
    assert forward.config._attn_implementation == "sdpa"
    assert prefix_attention._ACTIVE.get() is None


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_another_thread_keeps_its_own_attention(implementation):
    """The config is common to all threads; the prefix is not."""
    forward = CausalLM(build_model(attn_implementation=implementation)).forward
    expected = plain_logits(forward, COMMON)
    cached = TreeSession(forward)
    cached.prefill([PROMPTS[3]])
    found = []
    with attending_to(Prefix(cached.states(), 101), forward.config):
        thread = threading.Thread(target=lambda: found.append(masked_logits(forward, COMMON)))
        thread.start()
        thread.join()
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-5)


def masked_logits(forward, token_ids):
    session = TreeSession(forward)
    session.prefill([token_ids])
    return session.forward([DraftTree()])[0][-1]


def test_an_attention_that_wants_more_is_refused():
    forward = CausalLM(build_model("gemma2")).forward
    with pytest.raises(ModelError, match="softcap"):
        session_of(forward).prefill(PROMPTS)


def test_every_tree_architecture_is_either_shared_or_not():
    assert sorted([*SHARING, *NOT_SHARING]) == sorted(
        name for name, (_, _, mode) in ARCHITECTURES.items() if mode == "tree"
    )
    assert shared_prefix.MIN_PREFIX > 1
