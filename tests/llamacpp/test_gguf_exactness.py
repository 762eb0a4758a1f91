"""The promise on llama.cpp: every drafter writes the text of plain decoding through the same backend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import RepetitionPenaltyLogitsProcessor

import hasten
from adversaries import ADVERSARIES, Adversary, Oracle
from conftest import build_model, drawn_as, each_alone, with_head
from hasten.core import Acceptance, SamplingParams
from hasten.drafters import DRAFTERS
from hasten.errors import ConfigError, MissingExtra, ModelError
from hasten.models.draft.draft_lm import load_draft
from hasten.models.llamacpp.target import GgufLM
from hasten.policies import CostPolicy, ForwardCost
from hasten.text.engine import LanguageModel
from hasten.tree import DraftTree
from hasten.verify import VERIFIERS, Verifier

pytest.importorskip("llama_cpp")

PERIODIC = [5, 9, 13, 22] * 5
PROMPTS = [PERIODIC, [40], [3, 60, 61, 62, 63, 3, 60], [88, 87, 86], [30, 31, 30, 31, 30, 31, 33, 30, 31]]
GREEDY = SamplingParams(max_new_tokens=24, ignore_eos=True)
SAMPLED = SamplingParams(max_new_tokens=24, ignore_eos=True, temperature=0.7, seed=11)
ENDING = SamplingParams(max_new_tokens=40, stop_token_ids=[7, 20, 33, 71], temperature=0.8, seed=2)
PARAMS = {"greedy": GREEDY, "sampled": SAMPLED, "ending": ENDING}
NEEDS_TORCH = {"tokenswift", "superposed"}
NAMES = [*sorted(set(DRAFTERS) - NEEDS_TORCH), "auto"]


@pytest.fixture(scope="module")
def target(gguf_file):
    return GgufLM(gguf_file("llama"))


@pytest.fixture(scope="module")
def fresh(target, corpus_index, tmp_path_factory):
    """fresh() -> a LanguageModel that has learnt nothing, with an index and a draft model of transformers."""
    draft = load_draft(build_model("llama"), target=target, target_tokenizer=None)
    draft = with_head(draft, tmp_path_factory.mktemp("draft"))
    return lambda: LanguageModel(target, drafter="off", index=corpus_index, draft=draft)


@pytest.fixture(scope="module")
def plain(fresh):
    """plain(params) -> plain decoding's outputs, each prompt alone."""
    known = {name: each_alone(fresh(), PROMPTS, params) for name, params in PARAMS.items()}
    return known.__getitem__


@pytest.fixture(scope="module")
def demo_gguf(gguf_file):
    return hasten.load(gguf_file("demo"), drafter="off")


def texts(outputs):
    return [(output.token_ids, output.finish_reason) for output in outputs]


@pytest.mark.parametrize("params", PARAMS)
def test_plain_decoding_writes_what_transformers_writes(models, plain, params):
    expected = models("llama").generate(PROMPTS, PARAMS[params], drafter="off")
    assert texts(plain(params)) == texts(expected)
    assert max(len(set(output.token_ids)) for output in expected) > 6


@pytest.mark.parametrize("drafter", NAMES)
def test_every_drafter_writes_the_plain_text_alone_and_in_batches(fresh, plain, drafter):
    lm = fresh()
    outputs = []
    for name, params in PARAMS.items():
        expected = texts(plain(name))
        for size in (12, 60, None):
            alone = lm.generate(PERIODIC, params, drafter=drafter, num_draft_tokens=size)
            batch = lm.generate(PROMPTS, params, drafter=drafter, num_draft_tokens=size)
            assert texts([alone]) == expected[:1]
            assert texts(batch) == expected
            outputs += batch
    assert sum(output.stats.num_draft_tokens for output in outputs) > 0


@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_hostile_drafters_change_nothing(fresh, plain, adversary, params):
    drafter = Adversary(ADVERSARIES[adversary])
    for size in (256, None):
        found = fresh().generate(PROMPTS, PARAMS[params], drafter=drafter, num_draft_tokens=size)
        assert texts(found) == texts(plain(params))
    assert texts([fresh().generate(PERIODIC, PARAMS[params], drafter=drafter, num_draft_tokens=256)]) == (
        texts(plain(params)[:1])
    )


def test_long_accepted_runs_are_exact(fresh, plain):
    for prompt, expected in zip(PROMPTS, plain("sampled"), strict=True):
        oracle = Oracle([*prompt, *expected.token_ids], depth=4, error_rate=0.1)
        found = fresh().generate(prompt, drawn_as(expected, SAMPLED), drafter=oracle, num_draft_tokens=20)
        assert texts([found]) == texts([expected])
        assert found.stats.mean_acceptance_length > 2


@pytest.mark.parametrize("rule", sorted(set(VERIFIERS) - {"follow"}))
def test_every_other_rule_keeps_its_promise_as_far_as_it_goes(fresh, rule):
    found = fresh().generate(PROMPTS, SAMPLED, drafter="draft", num_draft_tokens=8, verify=rule)
    assert [output.guarantee for output in found] == [VERIFIERS[rule].guarantee] * len(PROMPTS)
    assert [len(output.token_ids) for output in found] == [24] * len(PROMPTS)
    assert sum(output.stats.num_accepted_tokens for output in found) > 0


def test_processors_see_the_text_as_in_plain_decoding(fresh):
    params = SamplingParams(
        max_new_tokens=24, ignore_eos=True, logits_processors=[RepetitionPenaltyLogitsProcessor(1.5)]
    )
    expected = texts(fresh().generate(PROMPTS, params, drafter="off"))
    assert texts(fresh().generate(PROMPTS, params, drafter="auto", num_draft_tokens=12)) == expected


def test_this_must_fail_accepting_a_wrong_token_shows(fresh, plain, monkeypatch):
    def accept_all(tree, logits, sequence):
        path = tree.path_to(len(tree) - 1) if len(tree) else []
        return Acceptance(path, [*tree.token_ids[path].tolist(), int(logits[0].argmax())], "length")

    monkeypatch.setitem(VERIFIERS, "follow", Verifier("follow", accept_all, "exact"))
    drafter = Adversary(ADVERSARIES["end_inside"])
    assert texts(fresh().generate(PROMPTS, GREEDY, drafter=drafter, num_draft_tokens=9)) != texts(
        plain("greedy")
    )


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_demo_model_writes_its_text_in_both_backends(demo, demo_gguf, temperature):
    params = SamplingParams(max_new_tokens=40, temperature=temperature, seed=5)
    for prompt in ("User: What is 7 plus 8?\nAssistant:", "def add(a, b):\n    return"):
        expected = demo.generate(prompt, params, drafter="off")
        for drafter in ("off", "auto", "lookahead+suffix", "space"):
            found = demo_gguf.generate(prompt, params, drafter=drafter, num_draft_tokens=16)
            assert (found.text, found.finish_reason) == (expected.text, expected.finish_reason)


def test_streams_and_stop_strings_are_those_of_plain_decoding(demo, demo_gguf):
    params = SamplingParams(max_new_tokens=40, stop=["Assistant"], temperature=0.7, seed=1)
    prompt = "User: What is 7 plus 8?\nAssistant:"
    expected = demo.generate(prompt, params, drafter="off")
    pieces = list(demo_gguf.stream(prompt, params, drafter="auto", num_draft_tokens=12))
    assert "".join(piece.text for piece in pieces) == expected.text
    assert pieces[-1].output.text == expected.text
    assert pieces[-1].output.finish_reason == expected.finish_reason


def test_interleaved_streams_do_not_disturb_each_other(demo_gguf):
    params = SamplingParams(max_new_tokens=20)
    prompts = ["Once upon a time", "def add(a, b):"]
    expected = [demo_gguf.generate(prompt, params).text for prompt in prompts]
    streams = [demo_gguf.stream(prompt, params, drafter="auto") for prompt in prompts]
    found = ["", ""]
    for pieces in zip(*streams, strict=False):
        found = [text + piece.text for text, piece in zip(found, pieces, strict=True)]
    assert found == expected


def test_samples_of_one_prompt_share_what_they_begin_with(demo, demo_gguf):
    params = SamplingParams(max_new_tokens=20, temperature=0.9, seed=3, n=4)
    found = demo_gguf.generate(["Once upon a time"], params, drafter="auto", num_draft_tokens=8)
    expected = demo.generate(["Once upon a time"], params, drafter="off")
    assert [each.text for each in found] == [each.text for each in expected]


def test_a_bundled_draft_model_guesses_for_a_gguf_target(demo, gguf_file):
    lm = hasten.load(gguf_file("demo"), draft="demo-draft")
    params = SamplingParams(max_new_tokens=30)
    found = lm.generate("Once upon a time", params, drafter="draft", num_draft_tokens=6)
    assert found.text == demo.generate("Once upon a time", params, drafter="off").text
    assert found.stats.tokens_per_source["draft"] > 0


def test_what_was_learnt_moves_between_the_backends(demo, demo_gguf, tmp_path):
    demo_gguf.generate("Once upon a time", SamplingParams(max_new_tokens=20), drafter="suffix")
    demo_gguf.save_store(tmp_path / "store", "suffix")
    demo.load_store(tmp_path / "store", "suffix")


@pytest.mark.parametrize("name", sorted(NEEDS_TORCH))
def test_drafters_that_look_into_layers_say_so(fresh, name):
    with pytest.raises(ConfigError, match=f"{name} looks into the layers .* transformers checkpoint"):
        fresh().generate(PERIODIC, GREEDY, drafter=name)


def test_what_needs_layers_says_so(fresh):
    with pytest.raises(ConfigError, match="autocomplete looks into the layers"):
        fresh().autocomplete(PERIODIC)


def test_options_that_a_file_decides_are_refused(gguf_file, tmp_path):
    path = gguf_file("llama")
    wrong = {"dtype": "float32", "device": "cpu", "forward": "packed", "tokenizer": object()}
    for name, value in wrong.items():
        with pytest.raises(ConfigError, match=f"{name}=.* does not go with a GGUF file"):
            hasten.load(path, **{name: value})
    with pytest.raises(ConfigError, match="mode='recompute'"):
        GgufLM(path, mode="recompute")
    with pytest.raises(ModelError, match="no GGUF file at"):
        hasten.load(tmp_path / "nothing.gguf")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(Path(path).read_bytes()[:2000])
    with pytest.raises(ModelError, match=r"cannot load .*broken\.gguf"):
        hasten.load(broken)


def test_without_llama_cpp_the_remedy_is_named(gguf_file, monkeypatch):
    from hasten.models.llamacpp import interface as llama_interface

    llama_interface.bindings.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "llama_cpp", None)
    with pytest.raises(MissingExtra, match=r"hasten\[llamacpp\]"):
        hasten.load(gguf_file("llama"))
    monkeypatch.undo()
    llama_interface.bindings.cache_clear()


def test_the_policy_finds_small_trees_where_rows_are_dear():
    """Another row for 30 % of the first, as of quantised weights on a few cores, or for 0.5 %."""
    sizes = {}
    for share in (0.3, 0.005):
        policy = CostPolicy(ForwardCost())
        for _ in range(60):
            guesses = DraftTree.chain([1] * 64, 0.7 ** np.arange(1, 65))
            [tree] = policy.choose([guesses.head(policy.budget())])
            policy.observe(len(tree) + 1, 10 * (1 + share * len(tree)), 0.1, [min(2, len(tree))])
        sizes[share] = len(tree)
    assert 0 < sizes[0.3] < 4
    assert sizes[0.005] > 6
