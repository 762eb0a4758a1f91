"""Part of a cache: which tokens stay, and that passes over them are what they should be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from conftest import ARCHITECTURES, VOCAB, build_model, finest_dtype
from hasten.core import Acceptance
from hasten.models.causal_lm import CausalLM
from hasten.models.draft.partial_cache import PartialCache, query_scores, top_positions, why_not_partial
from hasten.models.sessions.shared_prefix import SharedPrefixSession
from hasten.models.sessions.tree_session import TreeSession
from hasten.tree import DraftTree

WINDOWED = {"mistral-sliding", "gemma2", "gemma3", "llama4-chunked"}
FULL = [name for name, (_, _, mode) in ARCHITECTURES.items() if mode == "tree" and name not in WINDOWED]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}

RNG = np.random.default_rng(0)
TEXT = RNG.integers(2, VOCAB, 60).tolist()
OTHER = RNG.integers(2, VOCAB, 30).tolist()


def plain_logits(target: CausalLM, text: list[int]) -> torch.Tensor:
    return target.forward(np.array([text]), np.arange(len(text))[None], None, None)[0, -1]


def written(session: Any, text: list[int] = TEXT, other: list[int] = OTHER) -> list[int]:
    """Prefill two rows and a step that leaves holes in the first; the first row's text."""
    session.prefill([text, other])
    session.forward([DraftTree([5, 6, 7], [-1, -1, 1]), DraftTree([8], [-1])])
    session.keep([Acceptance([1, 2], [6, 7, 9]), Acceptance([], [8])])
    return [*text, 6, 7, 9]


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return float((found - expected).abs().max()) < TOLERANCE[found.dtype]


@pytest.mark.parametrize("name", FULL)
def test_with_room_for_the_whole_text_its_logits_are_those_of_plain_passes(targets: Any, name: str) -> None:
    target = targets(name, finest_dtype(name))
    session = TreeSession(target.forward)
    text = written(session)
    assert why_not_partial(target.forward, session) == ""
    full = session.cached(0)
    assert full.positions.tolist() == list(range(len(text) - 1))
    partial = PartialCache(target.forward, full, text[-1], budget=len(text))
    for _ in range(2):
        assert close(partial.step(text[-1]), plain_logits(target, text))
        assert close(partial.step(4), plain_logits(target, [*text, 4]))
        assert partial.num_slots == len(text) + 1
        partial.forget()
        assert partial.num_slots == len(text) - 1


def test_what_is_written_after_the_selection_is_taken_over(targets: Any) -> None:
    target = targets("llama", torch.float64)
    session = TreeSession(target.forward)
    text = written(session)
    partial = PartialCache(target.forward, session.cached(0), text[-1], budget=200)
    for _ in range(3):
        partial.step(text[-1])
        partial.forget()
        session.forward([DraftTree([11, 12], [-1, -1]), DraftTree()])
        session.keep([Acceptance([1], [12, 13]), Acceptance([], [3])])
        text += [12, 13]
        partial.append(session.cached(0, partial.num_tokens))
        assert partial.num_tokens == partial.num_slots == len(text) - 1
    assert partial.num_written == 6
    assert close(partial.step(text[-1]), plain_logits(target, text))


def test_a_row_keeps_its_own_tokens_when_others_leave(targets: Any) -> None:
    target = targets("llama", torch.float64)
    session = TreeSession(target.forward, max_holes=0)
    written(session)
    before = session.cached(1)
    session.select([1])
    session.forward([DraftTree([5, 6, 7, 8], [-1, -1, -1, -1])])
    session.keep([Acceptance([3], [8, 9])])
    after = session.cached(0)
    assert after.positions.tolist() == list(range(len(OTHER) + 2))
    for one, two in zip(before.layers, after.layers, strict=True):
        assert one is not None
        assert two is not None
        assert torch.equal(one[0], two[0][:, : len(before.positions)])


@pytest.mark.parametrize("start", [0, 10, 40, 50])
def test_a_shared_prefix_is_part_of_every_row(targets: Any, start: int) -> None:
    target = targets("llama", torch.float64)
    prompts = [TEXT[:50], [*TEXT[:40], *OTHER[:13]]]
    shared = SharedPrefixSession(target.forward, lambda: True, min_prefix=8, min_saved=8)
    apart = TreeSession(target.forward)
    for session in (shared, apart):
        session.prefill(prompts)
        session.forward([DraftTree([5, 6], [-1, -1]), DraftTree([8], [-1])])
        session.keep([Acceptance([1], [6, 7]), Acceptance([0], [8, 9])])
    assert shared.num_shared_tokens == 40
    for row in range(2):
        one, two = shared.cached(row, start), apart.cached(row, start)
        assert one.positions.tolist() == two.positions.tolist() == list(range(start, len(prompts[row]) + 1))
        for of_one, of_two in zip(one.layers, two.layers, strict=True):
            assert close(of_one[0], of_two[0])
            assert close(of_one[1], of_two[1])


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox", "olmo2", "qwen3"])
def test_every_kv_head_keeps_the_sink_and_what_its_query_scores_highest(targets: Any, name: str) -> None:
    target = targets(name, torch.float64)
    session = TreeSession(target.forward)
    text = written(session)
    full = session.cached(0)
    partial = PartialCache(target.forward, full, text[-1], budget=24, num_sink=5)
    assert partial.ranking == "query"
    assert partial.num_slots == 24
    for kept, (queries, keys) in zip(partial.kept, captured(target, text), strict=True):
        assert kept is not None
        kv_heads = keys.shape[0]
        for head in range(kv_heads):
            group = queries.reshape(kv_heads, -1, queries.shape[-1])[head]
            products = (group @ keys[head, :-1].T).sum(0)
            best = 5 + torch.argsort(products[5:], descending=True)[:19]
            assert kept[head].tolist() == [*range(5), *sorted(best.tolist())]


def captured(target: CausalLM, text: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The last token's queries [heads, channels] and all keys [kv heads, tokens, channels] of each layer."""
    found = []
    original = target.forward.config._attn_implementation

    def capture(module: Any, query: Any, key: Any, *rest: Any, **options: Any) -> Any:
        found.append((query[0, :, -1], key[0]))
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, *rest, **options)

    ALL_ATTENTION_FUNCTIONS["capture"] = capture
    try:
        target.forward.config._attn_implementation = "capture"
        plain_logits(target, text)
    finally:
        target.forward.config._attn_implementation = original
        del ALL_ATTENTION_FUNCTIONS["capture"]
    assert found
    return found


def test_a_pass_sees_the_kept_tokens_where_they_stood_and_nothing_else(
    targets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranked by recency, all heads keep the same tokens; then a mask over the whole cache says the same."""
    target = targets("llama", torch.float64)
    session = TreeSession(target.forward)
    text = written(session)
    full = session.cached(0)
    monkeypatch.setattr(target.forward, "attention_weights", lambda *arguments: [])
    partial = PartialCache(target.forward, full, text[-1], budget=20, num_sink=3)
    assert partial.ranking == "recency"
    size = len(text)
    kept = [0, 1, 2, *range(size - 1 - 17, size - 1)]
    assert [heads.tolist() for heads in partial.kept if heads is not None] == [[kept] * 2] * 2
    mask = torch.full((1, 1, size, size), torch.finfo(torch.float32).min, dtype=torch.float64).triu(1)
    mask[0, 0, -1] = torch.finfo(torch.float32).min
    mask[0, 0, -1, [*kept, size - 1]] = 0
    expected = target.forward(np.array([text]), np.arange(size)[None], mask, None)[0, -1]
    assert close(partial.step(text[-1]), expected)
    assert not close(expected, plain_logits(target, text))


def test_the_model_is_as_before_after_it_told_what_it_attends_to(monkeypatch: pytest.MonkeyPatch) -> None:
    target = CausalLM(build_model())
    session = TreeSession(target.forward)
    text = written(session)
    before = target.forward.config._attn_implementation
    PartialCache(target.forward, session.cached(0), text[-1], budget=24)
    assert target.forward.config._attn_implementation == before == "sdpa"

    def fail(*arguments: Any) -> Any:
        raise RuntimeError("no pass")

    monkeypatch.setattr(target.forward, "_run", fail)
    with pytest.raises(RuntimeError, match="no pass"):
        PartialCache(target.forward, session.cached(0), text[-1], budget=24)
    assert target.forward.config._attn_implementation == before


def test_scores_are_summed_over_the_heads_of_a_group() -> None:
    products = torch.tensor(
        [[1.0, 5.0, 0.0, 2.0], [4.0, 0.0, 3.0, 2.0], [0.0, 1.0, 2.0, 2.0], [0.0, 1.0, 2.0, 2.0]]
    )
    weights = torch.softmax(products.double(), -1)[None, :, None]
    scores = query_scores(weights, 2, 3)
    assert scores is not None
    differences = scores - scores[:, :1]
    expected = torch.tensor([[0.0, 0.0, -2.0], [0.0, 2.0, 4.0]], dtype=torch.float64)
    assert torch.allclose(differences, expected)


@pytest.mark.parametrize("shape", [(4, 1, 9), (1, 4, 1, 8), (2, 4, 1, 9), (1, 3, 1, 9), (1, 4, 2, 9)])
def test_weights_of_another_shape_are_not_believed(shape: tuple[int, ...]) -> None:
    assert query_scores(torch.ones(shape), 2, 8) is None


def test_positions_of_a_made_up_case() -> None:
    scores = torch.tensor([[9.0, 0, 1, 5, 1, 1, 8], [0.0, 0, 0, 0, 0, 0, 0]])
    assert top_positions(scores, 4, 2).tolist() == [[0, 1, 3, 6], [0, 1, 5, 6]]
    assert top_positions(scores, 5, 1).tolist() == [[0, 3, 4, 5, 6], [0, 3, 4, 5, 6]]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(1, 14), st.integers(0, 5))
def test_positions_equal_brute_force(scores: list[int], budget: int, num_sink: int) -> None:
    [found] = top_positions(torch.tensor([scores], dtype=torch.float32), budget, num_sink).tolist()
    sink = list(range(min(num_sink, budget, len(scores))))
    rest = sorted(range(len(sink), len(scores)), key=lambda at: (scores[at], at), reverse=True)
    assert found == sorted([*sink, *rest[: budget - len(sink)]])


@pytest.mark.parametrize("name", [*sorted(WINDOWED), "bloom-alibi", "lfm2-hybrid", "rwkv"])
def test_models_with_windows_or_other_caches_are_named(targets: Any, name: str) -> None:
    target = targets(name)
    reason = why_not_partial(target.forward, target.open())
    assert ("window" in reason) == (name in WINDOWED)
    assert ("ChainSession" in reason) == (name not in WINDOWED)
