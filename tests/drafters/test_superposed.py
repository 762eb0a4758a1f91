"""Superposed drafts against a reference implementation and by hand; as suggestions, and as verified trees."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from proposals import check_tree, sequence_of
from typer.testing import CliRunner

from conftest import ARCHITECTURES, VOCAB, build_model, finest_dtype
from hasten.cli import app
from hasten.core import SamplingParams
from hasten.drafters import Resources, make_drafter
from hasten.drafters.itself.superposed import Superposed
from hasten.errors import ConfigError, ModelError, StoreError
from hasten.models.causal_lm import CausalLM
from hasten.models.superposed import (
    ORDER_WEIGHTS,
    PENALTY,
    TEMPERATURE,
    Draft,
    MixedText,
    NgramTables,
    Superposition,
    complete,
    draft_weights,
    interpolated,
)
from hasten.sampling import Sampler
from hasten.text.engine import LanguageModel

PROMPT = [5, 9, 13, 22, 7] * 3
MIXING = [name for name, (_, _, mode) in ARCHITECTURES.items() if mode != "off"]
EACH_MODE = ["llama", "gemma3", "bloom-alibi", "lfm2-hybrid", "rwkv"]
TEXTS = st.lists(st.integers(0, 3), max_size=40)


@pytest.mark.parametrize("name", MIXING)
def test_one_draft_without_n_grams_is_greedy_decoding(models: Any, name: str) -> None:
    lm = models(name, finest_dtype(name))
    expected = lm.generate(PROMPT, SamplingParams(max_new_tokens=16), drafter="off")
    for num_kept in (1, 9):
        [draft] = complete(lm.target, PROMPT, k=1, max_new_tokens=16, num_kept=num_kept)
        assert list(draft.token_ids) == expected.token_ids


@given(st.lists(st.floats(-2000, 0), min_size=1, max_size=6))
def test_weights_sum_to_one_and_follow_the_scores(scores: list[float]) -> None:
    weights = draft_weights([Draft((1,), score) for score in scores])
    assert weights.sum() == pytest.approx(1)
    assert weights[np.argmax(scores)] == weights.max()  # scores that hardly differ may weigh the same
    expected = np.exp(np.array(scores) - max(scores))
    assert weights == pytest.approx(expected / expected.sum())


@pytest.mark.parametrize("k", [1, 3, 12])
def test_the_first_tokens_of_the_drafts_are_distinct_and_the_likeliest(targets: Any, k: int) -> None:
    target = targets("llama", torch.float64)
    superposition = Superposition(MixedText(target), PROMPT, num_drafts=k)
    superposition.grow()
    likeliest = torch.topk(superposition.logits[0], k).indices.tolist()
    assert [draft.token_ids for draft in superposition.alive] == [(token,) for token in likeliest]
    superposition.grow()
    assert len(superposition.alive) == k
    assert len({draft.token_ids for draft in superposition.alive}) == k


def test_interpolation_by_hand() -> None:
    tables = NgramTables()
    tables.learn([1, 2, 3, 1, 2, 4, 9, 2, 4])
    # After 2: 3 once, 4 twice. After 1 2: 3 and 4 once each. After 3 1 2: 4. Longer: nothing was seen.
    found = tables.probs([3, 1, 2], [3, 4, 5])
    assert found == pytest.approx([0.01 / 3 + 0.04 / 2, 0.01 * 2 / 3 + 0.04 / 2 + 0.15, 0.0])
    log_probs = np.log([0.5, 0.3, 0.2])
    scores = interpolated(log_probs, found, 0.54)
    by_hand = [0.46 * np.log(0.5) + 0.54 * np.log(found[0]), 0.46 * np.log(0.3) + 0.54 * np.log(found[1])]
    assert scores[:2] == pytest.approx(by_hand)
    assert scores[2] == pytest.approx(0.46 * np.log(0.2) - 200)


@given(text=TEXTS, piece=st.integers(1, 9), context=st.lists(st.integers(0, 3), max_size=7))
def test_tables_equal_brute_force(text: list[int], piece: int, context: list[int]) -> None:
    tables = NgramTables()
    for start in range(0, len(text), piece):
        tables.learn(text[: start + piece], start)
    for token, found in enumerate(tables.probs(context, [0, 1, 2, 3])):
        expected = 0.0
        for order, weight in enumerate(ORDER_WEIGHTS, start=1):
            if order <= len(context):
                seen = [
                    text[at] for at in range(order, len(text)) if text[at - order : at] == context[-order:]
                ]
                expected += weight * seen.count(token) / len(seen) if seen else 0.0
        assert found == pytest.approx(expected)


def test_tables_forget_what_they_saw_first() -> None:
    tables = NgramTables(max_contexts=8)
    tables.learn(list(range(50)))
    assert len(tables) == 8
    assert tables.probs([48], [49])[0] == ORDER_WEIGHTS[0]
    assert tables.probs([3], [4])[0] == 0
    with pytest.raises(ConfigError, match="max_contexts=0"):
        NgramTables(0)


def reference_drafts(
    target: CausalLM, prompt: list[int], tables: NgramTables | None, *, k: int, num_tokens: int
) -> list[tuple[tuple[int, ...], float]]:
    """No cache, no short cuts: every pass over all embeddings, every law over the whole vocabulary."""
    forward = target.forward
    embeddings = forward.embed(prompt)
    drafts: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    for _ in range(num_tokens):
        logits = forward.from_embeddings(embeddings[None], np.arange(len(embeddings))[None], None)[0, -1]
        probs = torch.softmax(logits / TEMPERATURE, -1).numpy()
        kept = np.argsort(-probs, kind="stable")[: max(9, k)]
        log_probs = np.log(probs[kept] / probs[kept].sum())
        grown = []
        for tokens, score in drafts:
            ngram_probs = tables.probs([*prompt, *tokens], kept.tolist()) if tables else np.ones(len(kept))
            for token, log_prob, ngram_prob in zip(kept.tolist(), log_probs, ngram_probs, strict=True):
                if not tables:
                    added = log_prob
                elif ngram_prob:
                    added = 0.46 * log_prob + 0.54 * np.log(ngram_prob)
                else:
                    added = 0.46 * log_prob - PENALTY
                grown.append(((*tokens, token), score + added))
        drafts = sorted(grown, key=lambda draft: -draft[1])[:k]
        shares = np.exp([score - drafts[0][1] for _, score in drafts])
        mixture = torch.zeros(1, embeddings.shape[1], dtype=embeddings.dtype)
        for (tokens, _), share in zip(drafts, shares / shares.sum(), strict=True):
            mixture += share * forward.embed([tokens[-1]])
        embeddings = torch.cat((embeddings, mixture))
    return drafts


@pytest.mark.parametrize("name", [*EACH_MODE, "gpt2"])
@pytest.mark.parametrize("with_tables", [False, True])
def test_drafts_are_those_of_the_reference_implementation(targets: Any, name: str, with_tables: bool) -> None:
    target = targets(name, finest_dtype(name))
    tables = NgramTables() if with_tables else None
    if tables:
        tables.learn(np.random.default_rng(0).integers(0, VOCAB, 20_000).tolist())
    text = MixedText(target)
    for size in (11, 15):  # the second goes on where the first left its mixtures
        superposition = Superposition(text, PROMPT[:size], num_drafts=4, ngrams=tables)
        for _ in range(5):
            superposition.grow()
        expected = reference_drafts(target, PROMPT[:size], tables, k=4, num_tokens=5)
        assert [draft.token_ids for draft in superposition.alive] == [tokens for tokens, _ in expected]
        found = [draft.score for draft in superposition.alive]
        assert found == pytest.approx([score for _, score in expected], rel=1e-6)


@pytest.mark.parametrize("name", EACH_MODE)
def test_a_mixture_of_one_token_is_that_token_and_is_forgotten(targets: Any, name: str) -> None:
    target = targets(name, finest_dtype(name))
    text, other = MixedText(target), MixedText(target)
    for size in (4, 4, 9):
        text.read(PROMPT[:size])
        mixed = text.mix([33, 33, 50], np.array([0.25, 0.75, 0.0]))
        assert torch.allclose(mixed, MixedText(target).read([*PROMPT[:size], 33]), atol=1e-4)
        text.mix([1, 2], np.array([0.5, 0.5]))
    assert torch.allclose(text.read(PROMPT), other.read(PROMPT), atol=1e-4)
    with pytest.raises(ConfigError, match="without tokens"):
        MixedText(target).read([])


@pytest.mark.parametrize("k", [1, 2, 5])
def test_any_number_of_drafts_costs_one_pass_a_token(monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    target = CausalLM(build_model(), mode="tree")
    passes = []
    original = target.forward.from_embeddings

    def count(embeddings: Any, *rest: Any) -> Any:
        passes.append(embeddings.shape)
        return original(embeddings, *rest)

    monkeypatch.setattr(target.forward, "from_embeddings", count)
    complete(target, PROMPT, k=k, max_new_tokens=6)
    assert passes == [(1, len(PROMPT), 32), *[(1, 1, 32)] * 5]


def test_a_draft_that_writes_a_stop_token_is_finished(targets: Any) -> None:
    target = targets("llama", torch.float64)
    open_ended = Superposition(MixedText(target), PROMPT, num_drafts=3)
    for _ in range(4):
        open_ended.grow()
    stop = open_ended.alive[0].token_ids[2]
    superposition = Superposition(MixedText(target), PROMPT, num_drafts=3, stop_token_ids=frozenset([stop]))
    for _ in range(6):
        superposition.grow()
        assert len(superposition.alive) == 3
    assert superposition.finished
    assert all(draft.token_ids.index(stop) == len(draft.token_ids) - 1 for draft in superposition.finished)
    assert all(stop not in draft.token_ids for draft in superposition.alive)
    best = superposition.best()
    assert len(best) == 3
    assert [draft.score for draft in best] == sorted((draft.score for draft in best), reverse=True)


def test_growing_ends_when_no_draft_could_become_one_of_the_best(models: Any) -> None:
    lm = models("llama", torch.float64)
    text = lm.generate(PROMPT, SamplingParams(max_new_tokens=5, ignore_eos=True), drafter="off").token_ids
    model = build_model("llama", torch.float64)
    model.generation_config.eos_token_id = text[3]
    [draft] = complete(CausalLM(model), PROMPT, k=1, max_new_tokens=16)
    assert list(draft.token_ids) == text[: text.index(text[3]) + 1]
    stops = frozenset([text[3]])
    superposition = Superposition(MixedText(lm.target), PROMPT, num_drafts=1, stop_token_ids=stops)
    for _ in draft.token_ids:
        assert not superposition.is_settled
        superposition.grow()
    assert superposition.is_settled
    assert superposition.alive
    superposition = Superposition(MixedText(lm.target), PROMPT, stop_token_ids=frozenset(range(VOCAB)))
    superposition.grow()
    assert superposition.is_settled
    assert not superposition.alive


GREEDY = SamplingParams(max_new_tokens=24, ignore_eos=True)
SAMPLED = SamplingParams(max_new_tokens=24, ignore_eos=True, temperature=0.8, seed=3)


@pytest.mark.parametrize("params", [GREEDY, SAMPLED])
@pytest.mark.parametrize("name", EACH_MODE)
def test_the_target_as_source_is_right_about_the_next_token(models: Any, name: str, params: Any) -> None:
    """Its first pass saw no mixture and draws with the target's noise: steps gain two, except the last."""
    lm = models(name)
    found = lm.generate(PROMPT, params, drafter=Superposed(lm.target), num_draft_tokens=9)
    assert found.token_ids == lm.generate(PROMPT, params, drafter="off").token_ids
    assert found.stats.acceptance_histogram[1] <= 1
    if params is GREEDY:
        assert found.stats.mean_acceptance_length > 2.3


@pytest.mark.parametrize("params", [GREEDY, SAMPLED])
def test_one_draft_of_the_target_is_right_at_every_depth(models: Any, params: Any) -> None:
    lm = models("llama", torch.float64)
    found = lm.generate(PROMPT, params, drafter=Superposed(lm.target, num_drafts=1), num_draft_tokens=3)
    assert found.stats.acceptance_histogram == {4: 6}


@pytest.mark.parametrize("params", [GREEDY, SAMPLED])
def test_another_source_writes_the_targets_text(models: Any, params: Any) -> None:
    lm = models()
    source = CausalLM(build_model("gpt2", seed=5))
    tables = NgramTables()
    drafter = Superposed(source, num_drafts=4, depth=4, ngrams=tables)
    expected = lm.generate([PROMPT, [40]], params, drafter="off")
    found = lm.generate([PROMPT, [40]], params, drafter=drafter, num_draft_tokens=12)
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    assert sum(one.stats.num_draft_tokens for one in found) > 0
    assert not drafter._texts
    seen = NgramTables()
    for one in expected:
        seen.learn([*one.prompt_ids, *one.token_ids])
    assert len(tables) == len(seen)  # prompts and outputs, each token once
    context = expected[0].token_ids[:3]
    every = list(range(VOCAB))
    assert tables.probs(context, every) == pytest.approx(seen.probs(context, every))


def test_trees_hold_the_drafts_best_first_within_the_budget(targets: Any) -> None:
    target = targets("llama", torch.float64)
    drafter = Superposed(target, num_drafts=4, depth=3)
    sequence = sequence_of(PROMPT)
    sequence.sampler = Sampler(GREEDY)
    drafter.begin(sequence, None)
    for budget in (0, 1, 2, 5, 30):
        tree = drafter.propose(sequence, budget)
        check_tree(tree, budget)
        assert (np.diff(tree.scores) <= 0).all()
        assert max(tree.depths(), default=0) <= min(budget, 3)
    superposition = Superposition(MixedText(target), PROMPT, num_drafts=4)
    for _ in range(3):
        superposition.grow()
    drafts = {draft.token_ids for draft in superposition.alive}
    ends = set(range(len(tree))) - set(tree.parents.tolist())
    assert {tuple(tree.token_ids[tree.path_to(node)].tolist()) for node in ends} == drafts
    sequence.max_length = len(PROMPT) + 2
    assert max(drafter.propose(sequence, 30).depths()) == 1


def test_a_source_with_a_shorter_context_stops_drafting(models: Any) -> None:
    lm = models()
    source = CausalLM(build_model("gpt2", n_positions=24))
    found = lm.generate(PROMPT, GREEDY, drafter=Superposed(source), num_draft_tokens=9)
    assert found.token_ids == lm.generate(PROMPT, GREEDY, drafter="off").token_ids
    assert found.stats.num_draft_tokens > 0


def test_a_model_that_cannot_read_mixtures_drafts_nothing_and_says_why(models: Any) -> None:
    lm = models("mamba-recurrent")
    drafter = Superposed(lm.target)
    found = lm.generate(PROMPT, GREEDY, drafter=drafter, num_draft_tokens=9)
    assert found.stats.num_draft_tokens == 0
    assert "several tokens in a pass" in drafter.why_no_drafts
    with pytest.raises(ModelError, match="several tokens in a pass"):
        lm.autocomplete(PROMPT)


def test_a_model_without_input_embeddings_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    target = CausalLM(build_model(), mode="tree")
    monkeypatch.setattr(target.forward, "takes_embeddings", False)
    with pytest.raises(ModelError, match="LlamaForCausalLM does not take input embeddings"):
        complete(target, PROMPT)


@pytest.mark.parametrize("options", [{"num_drafts": 0}, {"depth": 0}, {"num_kept": 0}, {"alpha": 1.0}])
def test_the_drafter_refuses_what_cannot_work(targets: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        Superposed(targets(), **options)


def test_the_drafter_needs_a_model_and_keeps_nothing(targets: Any) -> None:
    with pytest.raises(ConfigError, match="none was given"):
        make_drafter("superposed", Resources(VOCAB))
    drafter = Superposed(targets())
    assert drafter.state() == {}
    with pytest.raises(StoreError, match="superposed"):
        drafter.restore({"table": np.zeros(3)})


@pytest.mark.parametrize("options", [{"k": 0}, {"max_new_tokens": 0}, {"num_kept": 0}, {"alpha": -0.1}])
def test_suggestions_refuse_what_cannot_work(targets: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        complete(targets(), PROMPT, **options)


def test_suggestions_end_where_the_context_ends(targets: Any) -> None:
    limit = 256
    drafts = complete(targets(), list(range(2, 96)) * 2 + list(range(2, 68)), max_new_tokens=10)
    assert {len(draft.token_ids) for draft in drafts} == {limit - 254}


def test_autocomplete_suggests_texts(demo: LanguageModel) -> None:
    prompt = "User: What is 7 plus 8?\nAssistant:"
    found = demo.autocomplete(prompt, k=4, max_new_tokens=6)
    assert len({tuple(one.token_ids) for one in found}) == 4
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert {one.guarantee for one in found} == {"approximate"}
    [greedy] = demo.autocomplete(prompt, k=1, max_new_tokens=6)
    expected = demo.generate(prompt, SamplingParams(max_new_tokens=6), drafter="off")
    assert (greedy.text, greedy.token_ids) == (expected.text, expected.token_ids)


def test_n_grams_of_a_corpus_change_what_is_suggested(demo: LanguageModel) -> None:
    prompt = "Once upon a time there was"
    second = demo.autocomplete(prompt, k=2, max_new_tokens=1)[1]
    tables = NgramTables()
    tables.learn([*demo.encode(prompt), *second.token_ids])
    assert demo.autocomplete(prompt, k=2, max_new_tokens=1, ngrams=tables)[0].token_ids == second.token_ids
    assert demo.autocomplete(prompt, ngrams=NgramTables()) == demo.autocomplete(prompt)


def test_the_command_prints_suggestions(demo: LanguageModel, tmp_path: Any) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("Once upon a time there was a bird.")
    small = ["autocomplete", "demo", "-p", "Once upon a", "--dtype", "float32", "--device", "cpu"]
    small += ["--forward", "stock", "--max-new-tokens", "4"]
    expected = demo.autocomplete("Once upon a", max_new_tokens=4)
    shown = CliRunner().invoke(app, small).stdout.splitlines()
    assert shown == [repr(one.text) for one in expected]
    lines = CliRunner().invoke(app, [*small, "-k", "2", "--json"]).stdout.splitlines()
    assert len(lines) == 2
    assert set(json.loads(lines[0])) == {"text", "token_ids", "score", "guarantee"}
    assert CliRunner().invoke(app, [*small, "--corpus", str(corpus)]).stdout.startswith("' time there was a")
    wrong = CliRunner().invoke(app, [*small, "--corpus", str(tmp_path / "none.txt")])
    assert wrong.exit_code == 2
    assert "cannot read" in wrong.stderr
