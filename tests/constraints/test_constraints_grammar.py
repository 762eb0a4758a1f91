"""Grammar constraints agree with trying every completion, tokens of several characters included."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from constraint_checks import assert_exact, commit_at_random, texts_that_fit
from hypothesis import given, settings, strategies as st

from hasten.constraints import ContextFreeGrammar, GrammarConstraint
from hasten.constraints.regex import compile_regex
from hasten.errors import ConfigError, MissingExtra

EOS, MASK = 4, 5
VOCAB = 6
LETTERS = {
    "a": compile_regex("a"),
    "b": compile_regex("b"),
    "ab+": compile_regex("ab+"),
    "a*": compile_regex("a*"),
}
LONGEST = 7


def language(grammar):
    """Every text of at most LONGEST characters, by applying the rules until nothing is new."""
    strings = ["".join(one) for size in range(LONGEST + 1) for one in itertools.product("ab", repeat=size)]
    words = {name: {one for one in strings if dfa.accepts(one.encode())} for name, dfa in LETTERS.items()}
    words |= {name: set() for name in grammar.rules}
    is_growing = True
    while is_growing:
        is_growing = False
        for name, expansions in grammar.rules.items():
            before = len(words[name])
            for expansion in expansions:
                found = {""}
                for symbol in expansion:
                    found = {left + right for left in found for right in words[symbol]}
                    found = {one for one in found if len(one) <= LONGEST}
                words[name] |= found
            is_growing |= len(words[name]) > before
    return words[grammar.start]


@st.composite
def grammars(draw, terminals):
    names = ["S", "T"][: draw(st.integers(1, 2))]
    symbols = st.sampled_from([*names, *terminals])
    rules = {
        name: draw(st.lists(st.lists(symbols, max_size=3).map(tuple), min_size=1, max_size=3))
        for name in names
    }
    rules["S"].append(draw(st.lists(st.sampled_from(terminals), max_size=2).map(tuple)))
    return ContextFreeGrammar("S", rules, {name: LETTERS[name] for name in terminals})


TOKENS = st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=4)
BALANCED = ContextFreeGrammar("S", {"S": [("a", "S", "b", "S"), ()]}, {"a": LETTERS["a"], "b": LETTERS["b"]})


def constraint_of(grammar, texts):
    return GrammarConstraint(grammar, {index: text.encode() for index, text in enumerate(texts)})


@settings(max_examples=60)
@given(
    st.data(),
    st.sampled_from([["a", "b"], ["a", "b", "ab+"], ["a", "b", "a*"]]).flatmap(grammars),
    TOKENS,
    st.integers(1, 4),
    st.booleans(),
)
def test_allowed_is_exactly_what_some_completion_has(data, grammar, texts, length, may_end):
    eos_ids = (EOS,) if may_end else ()
    length = min(length, LONGEST // max(map(len, texts)))
    inside = language(grammar)
    fitting = texts_that_fit(
        lambda word: "".join(texts[token] for token in word) in inside, range(len(texts)), eos_ids, length
    )
    constraint = constraint_of(grammar, texts)
    if not fitting:
        with pytest.raises(ConfigError, match=f" {length} tokens"):
            constraint.start((0, length), eos_ids, VOCAB)
        return
    run = constraint.start((0, length), eos_ids, VOCAB)
    everything_open = np.ones(length, dtype=bool)
    assert_exact(run, fitting, np.full(length, MASK), everything_open, VOCAB)
    tokens = st.lists(st.integers(0, VOCAB - 1), min_size=length, max_size=length).map(np.array)
    opened = st.lists(st.booleans(), min_size=length, max_size=length).map(np.array)
    assert_exact(run, fitting, data.draw(tokens), data.draw(opened), VOCAB)
    text, is_open = np.array(data.draw(st.sampled_from(fitting))), everything_open.copy()
    for position in data.draw(st.permutations(range(length))):
        is_open[position] = False
        assert_exact(run, fitting, np.where(is_open, MASK, text), is_open, VOCAB)


@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_commits_in_any_order_end_in_the_language(length, seed):
    texts = ["a", "b", "ab", "bba"]
    run = constraint_of(BALANCED, texts).start((3, 3 + length), (EOS,), VOCAB)
    written = commit_at_random(run, length, np.random.default_rng(seed), begin=3)
    size = int((written == EOS).argmax()) if EOS in written else length
    assert (written[size:] == EOS).all()
    depth = 0
    for character in "".join(texts[token] for token in written[:size]):
        depth += 1 if character == "a" else -1
        assert depth >= 0
    assert depth == 0


def test_a_written_position_can_be_judged_for_another_token():
    run = constraint_of(BALANCED, ["a", "b"]).start((0, 2), (), VOCAB)
    token_ids, is_open = np.array([0, 1]), np.zeros(2, dtype=bool)
    assert run.admit(token_ids, is_open, 0, 0)
    assert not run.admit(token_ids, is_open, 0, 1)
    assert run.admit(token_ids, is_open, 5, 1)  # outside the span
    assert not is_open.any()


def test_a_length_that_cannot_be_is_refused_before_the_start():
    constraint = constraint_of(BALANCED, ["a", "b"])
    with pytest.raises(ConfigError, match=r"exactly 5 tokens.*lengths are 4 and 6"):
        constraint.start((0, 5), (), VOCAB)
    with pytest.raises(ConfigError, match=r"exactly 2 tokens.*open more"):
        constraint_of(BALANCED, ["a"]).start((0, 2), (), VOCAB)
    with pytest.raises(ConfigError, match="exactly 2 tokens"):
        constraint_of(BALANCED, ["c"]).start((0, 2), (), VOCAB)
    at_least_two = ContextFreeGrammar("S", {"S": [("a", "b")]}, BALANCED.terminals)
    with pytest.raises(ConfigError, match=r"at most 1 tokens.*lengths are 2:"):
        constraint_of(at_least_two, ["a", "b"]).start((0, 1), (EOS,), VOCAB)


def test_what_would_take_too_long_is_refused_and_says_what_would_not():
    constraint = constraint_of(BALANCED, ["a", "b", "ab", "abab", "bbbaaa"])
    with pytest.raises(ConfigError, match=r"5000 open positions are too many.*open at most \d+") as refusal:
        constraint.start((0, 5000), (EOS,), VOCAB)
    most = int(str(refusal.value).split("at most ")[1].split(",")[0])
    assert most > 100


def test_tokens_that_a_grammar_cannot_tell_apart_are_one_class():
    grammar = ContextFreeGrammar("S", {"S": [("word", "S"), ("word",)]}, {"word": compile_regex(r'"[a-z]*"')})
    run = constraint_of(grammar, ['"', "the", "cat", 'x"', '""']).start((0, 3), (), VOCAB)
    allowed = run.allowed(np.full(3, MASK), np.ones(3, dtype=bool))
    assert allowed.class_of[1] == allowed.class_of[2]
    assert len({int(allowed.class_of[token]) for token in (0, 1, 3, 4)}) == 4


def test_grammars_without_texts_or_with_unknown_symbols_are_refused():
    with pytest.raises(ConfigError, match="'S' has no finite text"):
        ContextFreeGrammar("S", {"S": [("S", "a")]}, LETTERS)
    with pytest.raises(ConfigError, match="'X' has no rule"):
        ContextFreeGrammar("S", {"S": [("X", "a")]}, LETTERS)


def test_lark_is_asked_for_where_it_is_missing(monkeypatch):
    from hasten.constraints.lark_grammar import load_grammar

    monkeypatch.setitem(__import__("sys").modules, "lark", None)
    with pytest.raises(MissingExtra, match=r"pip install 'hasten\[constraints\]'"):
        load_grammar('start: "a"')


LARK = [
    'start: sum\nsum: sum "+" atom | atom\natom: /[ab]/ | "(" sum ")"',
    'start: "a" start "b" | ',
    'start: item ("+" item)*\nitem: "a"i | "ab" | B\nB: /b{1,2}/',
    'start: "(" [start] ")" | "a"~2..3\n%ignore "b"',
    'start: pair{"a"} | pair{B}\npair{x}: x "+" x\nB: "b" "a"?\n%ignore /\\+\\(/',
]


@pytest.mark.parametrize("text", LARK)
def test_grammars_in_larks_notation_mean_what_its_parser_reads(text):
    lark = pytest.importorskip("lark")
    from hasten.constraints.lark_grammar import load_grammar

    parser = lark.Lark(text, parser="earley", lexer="dynamic_complete", ambiguity="explicit")

    def is_read(word):
        try:
            parser.parse("".join(texts[token] for token in word))
        except lark.exceptions.LarkError:
            return False
        return True

    texts = ["a", "b", "+", "(", ")", "ab", ")+", "(a"]
    constraint = constraint_of(load_grammar(text), texts)
    for length in (1, 2, 3, 4):
        fitting = texts_that_fit(is_read, range(len(texts)), (), length)
        if fitting:
            run = constraint.start((0, length), (), 8)
            assert_exact(run, fitting, np.zeros(length, dtype=np.int64), np.ones(length, dtype=bool), 8)
        else:
            with pytest.raises(ConfigError, match=f"exactly {length} tokens"):
                constraint.start((0, length), (), 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("start: missing", "cannot be read.*'missing' used but not defined"),
        ("begin: /a/", "cannot be read"),
        ("%declare X\nstart: X", "'X' has no rule"),
        (r"start: /(?<=a)b/", "lookaround"),
        ("%import nowhere.X\nstart: X", "cannot be read"),
        ('start: start "a"', "no finite text"),
    ],
)
def test_grammars_that_cannot_work_are_refused(text, message):
    pytest.importorskip("lark")
    from hasten.constraints.lark_grammar import load_grammar

    with pytest.raises(ConfigError, match=message):
        load_grammar(text)
