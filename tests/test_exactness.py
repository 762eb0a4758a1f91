"""The promise: every drafter, on every architecture, writes the text of plain decoding.

Plain decoding itself is compared with transformers' `generate`. Every drafted run is also asked whether it
drafted at all, because a run without drafts would pass everything.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import (
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

import hasten
from adversaries import ADVERSARIES, EOS, VOCAB, Adversary, Oracle, trees
from conftest import ARCHITECTURES, DRAFTING, drawn_as, each_alone, finest_dtype, shared_file, with_index
from coverings import some_of
from hasten.core import Acceptance, SamplingParams
from hasten.drafters import DRAFTERS, CombinedDrafter, Resources
from hasten.verify import VERIFIERS, Verifier

PERIODIC = [5, 9, 13, 22] * 5
PROMPTS = [PERIODIC, [40], [3, 60, 61, 62, 63, 3, 60], [88, 87, 86], [30, 31, 30, 31, 30, 31, 33, 30, 31]]
MANY = [[*PROMPTS[row % len(PROMPTS)], 10 + row] for row in range(16)]
DRAFTER_NAMES = [*sorted(DRAFTERS), "auto"]

GREEDY = SamplingParams(max_new_tokens=24, ignore_eos=True)
SAMPLED = SamplingParams(max_new_tokens=24, ignore_eos=True, temperature=0.8, seed=11)
TRUNCATED = SamplingParams(
    max_new_tokens=24, ignore_eos=True, temperature=1.1, top_k=40, top_p=0.95, min_p=0.01, seed=12
)
ENDING = SamplingParams(max_new_tokens=40, stop_token_ids=[7, 20, 33, 71], temperature=0.8, seed=2)
PARAMS = {"greedy": GREEDY, "sampled": SAMPLED, "truncated": TRUNCATED, "ending": ENDING}


def texts(outputs):
    return [(output.token_ids, output.finish_reason) for output in outputs]


@pytest.fixture(scope="module")
def plain(models):
    """plain(name, params, many) -> the outputs of plain decoding, each prompt alone."""
    known = {}

    def get(name, params_name, many=False):
        key = (name, params_name, many)
        if key not in known:
            lm, params, prompts = models(name), PARAMS[params_name], MANY if many else PROMPTS
            known[key] = each_alone(lm, prompts, params)
        return known[key]

    return get


def transformers_greedy(model, prompt, max_new_tokens, eos_token_id=-1, **options):
    """`generate` without an end of text, unless one is given."""
    input_ids = torch.tensor([prompt])
    written = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=eos_token_id,
        pad_token_id=0,
        **options,
    )
    return written[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_plain_greedy_is_generate_of_transformers(targets, plain, name):
    model = targets(name).forward.model
    for prompt, output in zip(PROMPTS, plain(name, "greedy"), strict=True):
        assert output.token_ids == transformers_greedy(model, prompt, 24)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_texts_of_the_battery_wander(plain, name):
    """A model that repeats one token would agree with anything."""
    distinct = [len(set(output.token_ids)) for output in plain(name, "greedy")]
    assert sum(distinct) > 20
    assert max(distinct) > 6


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "mpt-alibi", "lfm2-hybrid"])
def test_plain_greedy_is_generate_of_transformers_in_float64(models, name):
    lm = models(name, finest_dtype(name))
    for prompt in PROMPTS:
        expected = transformers_greedy(lm.target.forward.model, prompt, 40)
        for drafter in ("off", "auto"):
            output = lm.generate(
                prompt,
                SamplingParams(max_new_tokens=40, ignore_eos=True),
                drafter=drafter,
                num_draft_tokens=12,
            )
            assert output.token_ids == expected


@some_of(3, name=ARCHITECTURES, params=PARAMS)
def test_a_ragged_batch_is_its_rows_alone(models, plain, name, params):
    batch = models(name).generate(PROMPTS, PARAMS[params], drafter="off")
    assert texts(batch) == texts(plain(name, params))


@some_of(8, name=ARCHITECTURES, drafter=DRAFTER_NAMES)
def test_every_drafter_writes_the_plain_text_on_every_architecture(models, plain, name, drafter):
    lm = models(name)
    for params in ("greedy", "sampled"):
        expected = texts(plain(name, params))
        alone = lm.generate(PROMPTS[0], PARAMS[params], drafter=drafter, num_draft_tokens=12)
        assert texts([alone]) == expected[:1]
        batch = lm.generate(PROMPTS, PARAMS[params], drafter=drafter, num_draft_tokens=12)
        assert texts(batch) == expected
        drafted = sum(output.stats.num_draft_tokens for output in [alone, *batch])
        assert (drafted > 0) == (ARCHITECTURES[name][2] != "off")


@some_of(
    7,
    name=["llama", "gemma3", "bloom-alibi", "lfm2-hybrid"],
    drafter=["off", *DRAFTER_NAMES],
    batch_size=[4, 16],
)
def test_batches_write_what_each_prompt_gets_alone(models, plain, name, drafter, batch_size):
    lm = models(name)
    for params in ("sampled", "ending"):
        for num_draft_tokens in (9, None):
            found = lm.generate(
                MANY,
                PARAMS[params],
                drafter=drafter,
                num_draft_tokens=num_draft_tokens,
                batch_size=batch_size,
            )
            assert texts(found) == texts(plain(name, params, many=True))


@some_of(
    3,
    drafter=[name for name in DRAFTER_NAMES if name.startswith("draft")],
    params=["greedy", "sampled", "truncated"],
)
def test_every_tree_of_a_draft_model_is_exact_alone_and_in_batches_of_8(models, drafter, params):
    lm = models()
    prompts = MANY[:8]
    expected = each_alone(lm, prompts, PARAMS[params])
    for batch_size in (1, 8):
        found = lm.generate(
            prompts, PARAMS[params], drafter=drafter, num_draft_tokens=16, batch_size=batch_size
        )
        assert texts(found) == texts(expected)
        stats = [output.stats for output in found]
        assert sum(each.num_accepted_tokens + each.resting_steps.total() for each in stats) > 0


@some_of(4, drafter=[*DRAFTER_NAMES, "suffix+token-recycling"], params=PARAMS)
def test_every_drafter_is_exact_cold_and_warm(models, plain, params, drafter):
    lm = models()
    expected = texts(plain("llama", params))
    for num_draft_tokens in (1, 12, 60, None):
        for _ in range(2):
            found = lm.generate(PROMPTS, PARAMS[params], drafter=drafter, num_draft_tokens=num_draft_tokens)
            assert texts(found) == expected


@pytest.mark.parametrize("drafter", ["suffix", "aded", "token-recycling", "auto"])
def test_a_text_written_before_is_mostly_accepted(models, drafter):
    """The drafters that learn across requests really help here: the test above is not about empty trees."""
    lm = models()
    runs = [lm.generate(PERIODIC, GREEDY, drafter=drafter, num_draft_tokens=12) for _ in range(3)]
    assert runs[-1].stats.mean_acceptance_length > 2
    assert runs[0].token_ids == runs[-1].token_ids


@some_of(2, name=DRAFTING, params=["greedy", "sampled"])
def test_long_accepted_runs_are_exact_in_every_mode(models, plain, name, params):
    lm = models(name)
    for prompt, expected in zip(PROMPTS, plain(name, params), strict=True):
        oracle = Oracle([*prompt, *expected.token_ids], depth=4, error_rate=0.1)
        found = lm.generate(prompt, drawn_as(expected, PARAMS[params]), drafter=oracle, num_draft_tokens=20)
        assert texts([found]) == texts([expected])
        assert found.stats.mean_acceptance_length > 2


@some_of(
    5,
    name=["llama", "gemma3", "bloom-alibi", "lfm2-hybrid", "rwkv"],
    adversary=ADVERSARIES,
    params=PARAMS,
)
def test_hostile_drafters_change_nothing(models, plain, name, adversary, params):
    drafter = Adversary(ADVERSARIES[adversary])
    found = models(name).generate(PROMPTS, PARAMS[params], drafter=drafter, num_draft_tokens=256)
    assert texts(found) == texts(plain(name, params))
    assert sum(output.stats.num_draft_tokens for output in found) > 0


@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_hostile_drafters_change_nothing_under_the_cost_policy_or_in_a_union(models, plain, adversary):
    make = ADVERSARIES[adversary]
    union = CombinedDrafter([Adversary(make), DRAFTERS["token-recycling"](Resources(VOCAB))])
    for drafter, size in ((Adversary(make), None), (union, 30), (union, None)):
        found = models().generate(PROMPTS, SAMPLED, drafter=drafter, num_draft_tokens=size)
        assert texts(found) == texts(plain("llama", "sampled"))


@settings(max_examples=30)
@given(drafts=st.lists(trees(max_nodes=16), min_size=1, max_size=6), temperature=st.sampled_from([0.0, 0.8]))
def test_any_trees_change_nothing(models, drafts, temperature):
    params = SamplingParams(max_new_tokens=10, temperature=temperature, seed=4)
    lm = models()
    drafter = Adversary(lambda rng, token_ids, budget: drafts[len(token_ids) % len(drafts)])
    found = lm.generate(PROMPTS[:3], params, drafter=drafter, num_draft_tokens=20)
    assert texts(found) == texts(lm.generate(PROMPTS[:3], params, drafter="off"))


class CountsItsCalls:
    """Stateful: what it forbids depends on how often it was called before."""

    def __init__(self):
        self.calls = 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        scores[:, (7 * self.calls + int(input_ids[0, -1])) % VOCAB :: 5] -= 3
        return scores


PROCESSORS = {
    "repetition penalty": lambda: [RepetitionPenaltyLogitsProcessor(1.5)],
    "no repeated bigram": lambda: [NoRepeatNGramLogitsProcessor(2)],
    "minimum length": lambda: [MinLengthLogitsProcessor(len(PERIODIC) + 12, [EOS, 7, 20, 33])],
    "stateful": lambda: [CountsItsCalls()],
    "all": lambda: [RepetitionPenaltyLogitsProcessor(1.2), NoRepeatNGramLogitsProcessor(3), CountsItsCalls()],
}


@some_of(2, name=["llama", "bloom-alibi", "lfm2-hybrid"], processors=PROCESSORS)
def test_processors_see_the_text_as_in_plain_decoding(models, name, processors):
    lm = models(name)
    for temperature in (0.0, 0.8):
        params = SamplingParams(
            max_new_tokens=24,
            temperature=temperature,
            seed=1,
            stop_token_ids=[7, 20, 33],
            logits_processors=PROCESSORS[processors](),
        )
        expected = texts(lm.generate(PROMPTS, params, drafter="off"))
        for drafter in ("token-recycling", "auto", "auto"):
            assert texts(lm.generate(PROMPTS, params, drafter=drafter, num_draft_tokens=12)) == expected
        oracle = Oracle([*PERIODIC, *expected[0][0]])
        found = lm.generate(PERIODIC, params, drafter=oracle, num_draft_tokens=20)
        assert texts([found]) == expected[:1]
        assert len(expected[0][0]) < 4 or found.stats.mean_acceptance_length > 2


@pytest.mark.parametrize("processors", PROCESSORS)
def test_greedy_with_processors_is_generate_of_transformers(models, processors):
    lm = models()
    stops = [EOS, 7, 20, 33]
    params = SamplingParams(
        max_new_tokens=30, stop_token_ids=stops, logits_processors=PROCESSORS[processors]()
    )
    theirs = transformers_greedy(
        lm.target.forward.model,
        PERIODIC,
        30,
        eos_token_id=stops,
        logits_processor=LogitsProcessorList(PROCESSORS[processors]()),
    )
    assert lm.generate(PERIODIC, params, drafter="auto", num_draft_tokens=12).token_ids == theirs


@pytest.mark.parametrize("folder", ["stories260K", "TinyStories-656K", "hasten-target-6m"])
def test_trained_models_write_the_text_of_transformers(folder, tmp_path):
    path = shared_file("models", folder)
    lm = hasten.load(path, dtype="float32", device="cpu", drafter="off", forward="stock")
    text = "Once upon a time there was a little"
    lm, prompt = with_index(lm, tmp_path / "index", [f"{text} girl. She was a little"]), lm.encode(text)
    expected = transformers_greedy(lm.target.forward.model, prompt, 60)
    for drafter in ("off", *DRAFTER_NAMES):
        params = SamplingParams(max_new_tokens=60, ignore_eos=True)
        assert lm.generate(prompt, params, drafter=drafter, num_draft_tokens=16).token_ids == expected


@pytest.mark.parametrize("prompt", ["User: What is 7 plus 8?\nAssistant:", "def add(a, b):\n    return"])
def test_the_demo_model_writes_the_same_text_with_every_drafter(demo, prompt, tmp_path):
    demo = with_index(demo, tmp_path / "index", [f"{prompt} 7 plus 8 is 15.\n"])
    for params in (
        SamplingParams(max_new_tokens=40),
        SamplingParams(max_new_tokens=40, temperature=0.7, seed=5),
    ):
        expected = demo.generate(prompt, params, drafter="off")
        for drafter in DRAFTER_NAMES:
            found = demo.generate(prompt, params, drafter=drafter, num_draft_tokens=16)
            assert (found.text, found.token_ids) == (expected.text, expected.token_ids)


def test_this_must_fail_accepting_a_wrong_token_shows(models, plain, monkeypatch):
    """The battery can fail: accept whatever was drafted first, and the text changes."""

    def accept_all(tree, logits, sequence):
        path = tree.path_to(len(tree) - 1) if len(tree) else []
        return Acceptance(path, [*tree.token_ids[path].tolist(), int(logits[0].argmax())], "length")

    monkeypatch.setitem(VERIFIERS, "follow", Verifier("follow", accept_all, "exact"))
    found = models().generate(
        PROMPTS, GREEDY, drafter=Adversary(ADVERSARIES["end_inside"]), num_draft_tokens=9
    )
    assert texts(found) != texts(plain("llama", "greedy"))
