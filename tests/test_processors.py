"""Logits processors that keep a state, or things that cannot be copied: each text has its own."""

from __future__ import annotations

import re
import threading
from dataclasses import replace

import pytest

import hasten
from hasten.core import SamplingParams
from hasten.errors import ConfigError
from hasten.processors import PerText, own_copy, own_processors

PROMPTS = [[5, 6, 7, 8], [40, 41], [3, 60, 61]]
PARAMS = SamplingParams(max_new_tokens=8, ignore_eos=True)


class Handle:
    """As objects of other languages are: a copy is refused."""

    def __reduce_ex__(self, protocol):
        raise RuntimeError("no way to write this down")


class Matcher(Handle):
    """Counts what it was given, and knows how to copy itself."""

    def __init__(self, count=0):
        self.count = count

    def fork(self):
        return Matcher(self.count)

    def accept_token(self, token_id):
        self.count += 1


class Lost(Handle):
    """As a matcher, without a way to copy it."""

    def __init__(self):
        self.count = 0

    def accept_token(self, token_id):
        self.count += 1


class Counting:
    """Writes 50, 49, 48, ...; its matcher is made at the first call or before."""

    def __init__(self, make, *, early=False):
        self.grammar, self.lock, self.make = Handle(), threading.Lock(), make
        self.matchers = [make()] if early else []

    def __call__(self, input_ids, scores):
        if not self.matchers:
            self.matchers = [self.make()]
        scores[:, 50 - self.matchers[0].count] += 1000.0
        self.matchers[0].accept_token(0)
        return scores


TEXT = [50, 49, 48, 47, 46, 45, 44, 43]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("drafter", ["off", "auto"])
@pytest.mark.parametrize("processor", [Counting(Matcher), Counting(Matcher, early=True), Counting(Lost)])
def test_each_text_has_a_state_of_its_own(models, processor, drafter, batch_size):
    params = replace(PARAMS, logits_processors=[processor], n=2)
    for _ in range(2):
        outputs = models().generate(PROMPTS, params, drafter=drafter, batch_size=batch_size)
        assert [one.token_ids for one in outputs] == [TEXT] * 6
    assert not processor.matchers or processor.matchers[0].count == 0


@pytest.mark.parametrize("rule", ["traversal", "block"])
def test_rules_that_look_ahead_fork_them(models, rule):
    params = replace(PARAMS, logits_processors=[Counting(Matcher)])
    found = models().generate(PROMPTS[0], params, drafter="draft", verify=rule, num_draft_tokens=6)
    assert found.token_ids == TEXT
    params = replace(PARAMS, logits_processors=[Counting(Lost)])
    with pytest.raises(ConfigError, match=r"Counting.matchers, a Lost, follows one text"):
        models().generate(PROMPTS[0], params, drafter="draft", verify=rule, num_draft_tokens=6)


def test_what_follows_a_text_and_cannot_be_copied_serves_one_text(models):
    params = replace(PARAMS, logits_processors=[Counting(Lost, early=True)])
    for prompts, n in ((PROMPTS, 1), (PROMPTS[:1], 2)):
        with pytest.raises(ConfigError, match=r"Counting.matchers, a Lost, follows one text.*hasten.PerText"):
            models().generate(prompts, replace(params, n=n))
    assert models().generate(PROMPTS[0], params).token_ids == TEXT


def test_one_made_for_each_text(models):
    made = []

    def make():
        made.append(Counting(Lost, early=True))
        return made[-1]

    params = replace(PARAMS, logits_processors=[PerText(make)])
    outputs = models().generate(PROMPTS, params, drafter="auto")
    assert [one.token_ids for one in outputs] == [TEXT] * 3
    assert [one.matchers[0].count for one in made] == [8, 8, 8]
    assert hasten.PerText is PerText


def test_a_generator_follows_one_text(models):
    class Drip:
        def __init__(self):
            self.tokens = (token for token in TEXT)

        def __call__(self, input_ids, scores):
            scores[:, next(self.tokens)] += 1000.0
            return scores

    with pytest.raises(ConfigError, match=r"Drip.tokens, a generator, follows one text"):
        models().generate(PROMPTS, replace(PARAMS, logits_processors=[Drip()]))
    assert models().generate(PROMPTS[0], replace(PARAMS, logits_processors=[Drip()])).token_ids == TEXT


def test_what_two_processors_share_their_copies_share():
    class Holder:
        def __init__(self, state):
            self.state = state

        def __call__(self, input_ids, scores): ...

    state = [0]
    first, second, third = own_processors([Holder(state), both := Holder(state), both])
    assert first.state is second.state is not state
    assert second is third


def test_tokenizers_models_and_locks_are_shared_by_copies(demo):
    thing = Counting(Matcher)
    thing.tokenizer, thing.model, thing.words = demo.tokenizer, demo.target.forward.model, ["a"]
    own = own_copy(thing)
    assert own is not thing
    for name in ("tokenizer", "model", "lock", "grammar"):
        assert getattr(own, name) is getattr(thing, name)
    assert own.words is not thing.words


PATTERN = r"[0-9]{3}-[a-z]{4}"


def constrained(demo, make, processors):
    """Texts of several prompts, sampled, in batches: in the grammar, and those of plain decoding."""
    params = SamplingParams(max_new_tokens=24, temperature=1.0, seed=3, n=2, logits_processors=processors)
    prompts = ["Once upon a time", "User: Hello!\nAssistant:"]
    plain = demo.generate(prompts, params, drafter="off")
    for one in plain:
        assert re.fullmatch(PATTERN, one.text)
    found = demo.generate(prompts, params, drafter="auto", num_draft_tokens=8, batch_size=3)
    assert [one.token_ids for one in found] == [one.token_ids for one in plain]
    once = replace(params, n=1, logits_processors=[PerText(make)])
    assert demo.generate(prompts[0], once, drafter="suffix").token_ids == plain[0].token_ids
    return params


def test_xgrammar(demo):
    xgrammar = pytest.importorskip("xgrammar")
    known = xgrammar.TokenizerInfo.from_huggingface(demo.tokenizer, vocab_size=demo.target.vocab_size)
    grammar = xgrammar.GrammarCompiler(known).compile_regex(PATTERN)

    def make():
        return xgrammar.contrib.hf.LogitsProcessor(grammar)

    params = constrained(demo, make, [make()])
    looked_ahead = demo.generate("Once", replace(params, n=1), verify="traversal", num_draft_tokens=8)
    assert re.fullmatch(PATTERN, looked_ahead.text)


def test_llguidance(demo):
    llguidance = pytest.importorskip("llguidance")
    masks = pytest.importorskip("llguidance.torch")
    known = pytest.importorskip("llguidance.hf").from_tokenizer(demo.tokenizer, demo.target.vocab_size)
    grammar = llguidance.LLMatcher.grammar_from_regex(PATTERN)

    class Guided:
        def __init__(self):
            self.matcher = llguidance.LLMatcher(known, grammar)
            self.bitmask = masks.allocate_token_bitmask(1, known.vocab_size)
            self.start = None

        def __call__(self, input_ids, scores):
            if self.start is None:
                self.start = input_ids.shape[1]
            elif not self.matcher.is_stopped():
                assert self.matcher.consume_token(int(input_ids[0, -1]))
            masks.fill_next_token_bitmask(self.matcher, self.bitmask, 0)
            masks.apply_token_bitmask_inplace(scores, self.bitmask)
            return scores

    constrained(demo, Guided, [Guided()])
