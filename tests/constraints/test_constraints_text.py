"""Regular expressions and JSON schemas on the demo tokenizer: whatever is committed, the text is valid."""

from __future__ import annotations

import itertools
import json
import re

import numpy as np
import pytest
import transformers as hf
from constraint_checks import commit_at_random
from hypothesis import given, settings, strategies as st

from hasten.constraints import grammar_constraint, json_schema_constraint, regex_constraint
from hasten.constraints.bytes_dfa import MAX_STATES
from hasten.constraints.json_schema import schema_regex
from hasten.constraints.regex import compile_regex
from hasten.constraints.tokens import ByteTrie, token_bytes
from hasten.errors import ConfigError
from hasten.models.bundled_models import bundled_path


@pytest.fixture(scope="module")
def tokenizer():
    return hf.AutoTokenizer.from_pretrained(bundled_path("demo"))


def written_text(constraint, tokenizer, length, seed, may_end=True):
    eos = tokenizer.eos_token_id
    run = constraint.start((2, 2 + length), (eos,) if may_end else (), len(tokenizer) + 8)
    ids = commit_at_random(run, length, np.random.default_rng(seed), begin=2, of_class=True)
    size = int((ids == eos).argmax()) if eos in ids else length
    assert (ids[size:] == eos).all()
    assert not set(ids[:size].tolist()) & set(tokenizer.all_special_ids)
    return tokenizer.decode(ids[:size])


PATTERNS = [
    r"[a-z]+(, [a-z]+)*\.",
    r"(?i:yes|no)( \d{1,3})?",
    r"^\d{4}-\d\d-\d\d$",
    r"[^x]{3,12}",
    r"(ab|ba)*[αβγ€😀]?",
    r".*",
    r"\S+@\w+\.(com|org)",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_random_commits_always_match_the_pattern(pattern, tokenizer):
    constraint = regex_constraint(pattern, tokenizer)
    for seed in range(4):
        text = written_text(constraint, tokenizer, 12, seed)
        assert re.fullmatch(pattern, text), text
    text = written_text(constraint, tokenizer, 6, seed=9, may_end=False)
    assert re.fullmatch(pattern, text), text


def test_the_first_token_may_be_just_what_some_text_begins_with(tokenizer):
    tokens = token_bytes(tokenizer)
    run = regex_constraint(r"(12)+3?", tokenizer).start((0, 3), (0,), len(tokenizer))
    allowed = run.allowed(np.zeros(3, dtype=np.int64), np.ones(3, dtype=bool))
    first = {tokens[token] for token in np.flatnonzero(allowed.at(0))}
    assert first == {text for text in tokens.values() if re.fullmatch(rb"(12)*(1|12|123)", text)}


SCHEMAS = [
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "age": {"type": "integer"},
            "tags": {"type": "array", "items": {"enum": ["a", "b c"]}, "maxItems": 2},
        },
        "required": ["name", "tags"],
    },
    {
        "anyOf": [{"type": "null"}, {"$ref": "#/$defs/pair"}],
        "$defs": {"pair": {"type": ["number", "boolean"]}},
    },
    {
        "type": "array",
        "prefixItems": [{"type": "boolean"}, {"type": "integer"}],
        "items": {"const": {"x": [1, None]}},
        "minItems": 1,
        "maxItems": 4,
    },
    {"type": "object", "properties": {'q"\\.': {"type": "null"}, "b": {"type": "string", "pattern": "^a+$"}}},
    {"type": "string", "format": "date"},
    {"enum": [1, 2.5, "three", {"four": [True]}], "type": ["number", "object"]},
]


KINDS = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None)}
KINDS |= {"array": list, "object": dict}


def is_valid(value, schema, root):
    """The meaning of the keywords that the schemas here use."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    if "anyOf" in schema:
        return any(is_valid(value, one, root) for one in schema["anyOf"])
    types = schema.get("type", list(KINDS))
    is_bool = isinstance(value, bool)
    return (
        any(
            isinstance(value, KINDS[one]) and is_bool == (one == "boolean")
            for one in (types if isinstance(types, list) else [types])
        )
        and value in schema.get("enum", [value])
        and schema.get("const", value) == value
        and (not isinstance(value, str) or is_valid_string(value, schema))
        and (not isinstance(value, list) or "items" not in schema or is_valid_array(value, schema, root))
        and (
            not isinstance(value, dict) or "properties" not in schema or is_valid_object(value, schema, root)
        )
    )


def is_valid_string(value, schema):
    return len(value) <= schema.get("maxLength", 99) and bool(re.search(schema.get("pattern", ""), value))


def is_valid_array(value, schema, root):
    items = [*schema.get("prefixItems", []), *[schema["items"]] * len(value)]
    return schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 99) and all(
        is_valid(one, item, root) for one, item in zip(value, items, strict=False)
    )


def is_valid_object(value, schema, root):
    known = schema.get("properties", value)  # others would be valid, but are never written
    return set(schema.get("required", ())) <= set(value) <= set(known) and all(
        name not in schema.get("properties", ()) or is_valid(one, known[name], root)
        for name, one in value.items()
    )


@pytest.mark.parametrize("schema", SCHEMAS)
def test_random_commits_are_always_json_that_fits_the_schema(schema, tokenizer):
    constraint = json_schema_constraint(json.dumps(schema), tokenizer)
    for seed in range(5):
        text = written_text(constraint, tokenizer, 28, seed)
        assert is_valid(json.loads(text), schema, schema), text


VALUES = [
    *(
        None,
        True,
        0,
        -7,
        12,
        2.5,
        "",
        "a",
        "aa",
        "b c",
        "long enough for none",
        'q"\\.',
        "2024-02-28",
        "2024-13-01",
    ),
    *("2024-13-01", [], [True], [True, 3], [True, 3, {"x": [1, None]}], [3], ["a"], [True] * 3),
    [True, 3, {"x": [1, None]}, {"x": [1, None]}],
    *({}, {"b": "aa"}, {"b": "b"}, {"four": [True]}, {"age": 3}, {'q"\\.': None, "b": "a"}),
    {"name": "x", "tags": []},
    {"name": "x", "age": 3, "tags": ["a", "b c"]},
]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_valid_value_can_be_written(schema):
    dfa = compile_regex(schema_regex(schema))
    for value in VALUES:
        is_date = schema.get("format") != "date" or str(value)[5:7] == "02"
        for separators in ((",", ":"), (", ", ": ")):
            text = json.dumps(value, separators=separators)
            assert dfa.accepts(text.encode()) == (is_valid(value, schema, schema) and is_date), text


def test_members_of_an_object_may_be_left_out_unless_required():
    names = ["a", "b", "c"]
    for required in itertools.chain.from_iterable(itertools.combinations(names, size) for size in range(4)):
        schema = {"type": "object", "properties": {name: {"type": "null"} for name in names}}
        dfa = compile_regex(schema_regex(schema | {"required": list(required)}))
        for size in range(4):
            for given_names in itertools.combinations(names, size):
                text = json.dumps(dict.fromkeys(given_names)).encode()
                assert dfa.accepts(text) == set(required).issubset(given_names), (required, text)


@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("low", [0, 1, 2, 3])
@pytest.mark.parametrize("high", [None, 0, 1, 2, 4])
def test_arrays_have_as_many_items_as_the_schema_says(first, low, high):
    schema = {"type": "array", "items": {"const": 0}, "minItems": low}
    schema |= {} if high is None else {"maxItems": high}
    schema |= {"prefixItems": [{"const": 1}] * first} if first else {}
    if high is not None and high < low:
        with pytest.raises(ConfigError, match="minItems"):
            schema_regex(schema)
        return
    dfa = compile_regex(schema_regex(schema))
    for size in range(7):
        value = [1] * min(first, size) + [0] * (size - first)
        assert dfa.accepts(json.dumps(value).encode()) == (low <= size <= (99 if high is None else high))


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "cannot be read"),
        ({"anyOf": 3}, "wrong kind"),
        ({"type": "object", "properties": ["a"]}, "wrong kind"),
        ({"type": "integer", "minimum": 3}, "'minimum' cannot be honoured"),
        ({"type": "array", "items": {"type": "null"}, "uniqueItems": True}, "'uniqueItems'"),
        ({"oneOf": [{"type": "null"}]}, "type None"),
        ({"type": "text"}, "type 'text'"),
        ({}, "give it one of"),
        (True, "which type"),
        ({"type": "array"}, 'needs "items"'),
        ({"type": "object"}, 'needs "properties"'),
        ({"type": "object", "properties": {"a": {"type": "null"}}, "required": ["b"]}, "'b' is not among"),
        ({"$ref": "#/$defs/x"}, "points to nothing"),
        ({"$ref": "other.json"}, "leaves the schema"),
        ({"$ref": "#"}, "refers to itself"),
        ({"enum": ["a"], "type": "integer"}, "none of the values"),
        ({"anyOf": []}, "choice of nothing"),
        ({"type": "string", "format": "colour"}, "choose from"),
        ({"type": "string", "pattern": ".*"}, "has to escape"),
        ({"type": "string", "pattern": "("}, "not a regular expression"),
        ({"type": "string", "pattern": "a", "maxLength": 3}, "no other limits"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "the lower first"),
        ({"type": "string", "minLength": "3"}, "whole numbers"),
        ({"type": "array", "prefixItems": [{"type": "null"}], "items": False, "minItems": 2}, "at least 2"),
    ],
)
def test_schemas_that_cannot_be_honoured_are_refused(schema, message, tokenizer):
    with pytest.raises(ConfigError, match=message):
        json_schema_constraint(schema, tokenizer)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "not a regular expression"),
        (r"(a)\1", "backreferences"),
        ("(?!a)b", "lookaround"),
        (r"a\b", "anchors"),
        ("a^b", "anchors"),
        ("a*+", "possessive"),
        ("(?>a)", "atomic"),
        ("a{5000}", "more than 2000 times"),
        ("(a?){0,300}" * 20, "states"),
        ("(a|b)*a(a|b){15}", f"about {MAX_STATES} states"),
    ],
)
def test_patterns_that_cannot_be_a_constraint_are_refused(pattern, message, tokenizer):
    with pytest.raises(ConfigError, match=message):
        regex_constraint(pattern, tokenizer)


def test_a_constraint_on_text_needs_a_tokenizer():
    with pytest.raises(ConfigError, match="needs a tokenizer"):
        regex_constraint("a", None)


REGEXES = st.recursive(
    st.sampled_from(["a", "b", ".", "[^a]", "[bc]", r"\d", "é", "a?", "b*?"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{0,}", "*?"])).map(
            lambda pair: f"({pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=100)
@given(REGEXES)
def test_patterns_mean_what_they_mean_to_python(pattern):
    dfa, compiled = compile_regex(pattern), re.compile(pattern)
    for size in range(4):
        for characters in itertools.product("abcé\n", repeat=size):
            text = "".join(characters)
            assert dfa.accepts(text.encode()) == (compiled.fullmatch(text) is not None), text


@pytest.mark.parametrize(
    "pattern", [r"\w", r"\d", r"[^\s\d]", "(?i)[k-s]", "(?s).", "[\ud7f0-\ue010]", "(?a)\\W"]
)
def test_classes_of_characters_are_those_of_python(pattern):
    dfa, compiled = compile_regex(pattern), re.compile(pattern)
    edges = [0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF]
    for code in {*range(0x300), *range(0x300, 0x110000, 97), *edges}:
        if not 0xD800 <= code < 0xE000:
            assert dfa.accepts(chr(code).encode()) == (compiled.fullmatch(chr(code)) is not None), hex(code)


@given(
    st.dictionaries(st.integers(0, 20), st.binary(max_size=4), max_size=12),
    st.sampled_from([".*", "(?s).", "é*"]),
)
def test_tokens_lead_where_their_bytes_lead(tokens, pattern):
    dfa = compile_regex(pattern)
    automaton = ByteTrie(tokens).automaton(dfa)
    for state in range(dfa.num_states):
        for token, text in tokens.items():
            reached = state
            for byte in text:
                reached = int(dfa.next_states[reached, byte]) if reached >= 0 else -1
            symbol = automaton.class_of[token] if token < len(automaton.class_of) else -1
            found = int(automaton.next_states[state, symbol]) if symbol >= 0 else -1
            assert found == (reached if text else -1)


ARITHMETIC = r"""
start: sum
sum: sum ("+" | "-") product | product
product: product "*" atom | atom
atom: /[0-9]/+ | "(" sum ")"
"""


def test_random_commits_are_always_sums_of_the_grammar(tokenizer):
    pytest.importorskip("lark")
    constraint = grammar_constraint(ARITHMETIC, tokenizer)
    for seed in range(4):
        text = written_text(constraint, tokenizer, 14, seed)
        compile(
            re.sub(r"\b0+(?=\d)", "", text), "sum", "eval"
        )  # 007 is a number to the grammar, not to Python
        assert set(text) <= set("0123456789+-*()")


def test_a_pattern_without_texts_is_refused_at_the_start(tokenizer):
    with pytest.raises(ConfigError, match="no text of these tokens"):
        regex_constraint(r"a[^\s\S]", tokenizer).start((0, 4), (0,), len(tokenizer))


@pytest.mark.parametrize(
    ("inner", "outer", "is_within"),
    [
        ("ab", "a.*", True),
        ("a*", "a+", False),
        ("ab|c", "ab", False),
        ("ab", "a", False),
        ("a{2,3}", "a*", True),
    ],
)
def test_a_language_is_within_another_if_all_its_texts_are(inner, outer, is_within):
    assert compile_regex(inner).is_within(compile_regex(outer)) == is_within
