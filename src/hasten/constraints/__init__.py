"""Languages to keep a text in: regular expressions, JSON schemas, grammars, automata over token ids."""

from __future__ import annotations

from typing import Any

import hasten.compile_cache  # noqa: F401 - before what is compiled
from hasten.constraints.automaton import TokenAutomaton
from hasten.constraints.base import AllowedTokens, Constraint, ConstraintRun
from hasten.constraints.context_free import ContextFreeGrammar
from hasten.constraints.grammar import SYSTEM as GRAMMAR_SYSTEM, GrammarConstraint
from hasten.constraints.json_schema import schema_regex
from hasten.constraints.lark_grammar import load_grammar
from hasten.constraints.regex import compile_regex
from hasten.constraints.regular import SYSTEM as REGULAR_SYSTEM, RegularConstraint
from hasten.constraints.tokens import ByteTrie, token_bytes

SYSTEMS = (REGULAR_SYSTEM, GRAMMAR_SYSTEM)

__all__ = [
    "SYSTEMS",
    "AllowedTokens",
    "Constraint",
    "ConstraintRun",
    "ContextFreeGrammar",
    "GrammarConstraint",
    "RegularConstraint",
    "TokenAutomaton",
    "grammar_constraint",
    "json_schema_constraint",
    "regex_constraint",
]


def regex_constraint(pattern: str, tokenizer: Any) -> RegularConstraint:
    """Texts that match a regular expression as a whole, in Python's syntax.

    Raises:
        ConfigError: the pattern is malformed, not regular, too large, or no text matches it.
    """
    return _regular(pattern, tokenizer, "regex")


def json_schema_constraint(schema: str | dict[str, Any], tokenizer: Any) -> RegularConstraint:
    """JSON texts that are valid against a schema.

    Raises:
        ConfigError: the schema is malformed, recursive, or uses a keyword that is not supported.
    """
    return _regular(schema_regex(schema), tokenizer, "json-schema")


def grammar_constraint(text: str, tokenizer: Any) -> GrammarConstraint:
    """Texts of the rule ``start`` of a grammar in Lark's notation.

    Raises:
        ConfigError: the grammar is malformed, has no finite text, or a terminal of it is not regular.
        MissingExtra: lark is not installed.
    """
    return GrammarConstraint(load_grammar(text), token_bytes(tokenizer))


def _regular(pattern: str, tokenizer: Any, name: str) -> RegularConstraint:
    trie = ByteTrie(token_bytes(tokenizer))
    return RegularConstraint(trie.automaton(compile_regex(pattern)), name)
