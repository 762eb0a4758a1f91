"""Reads grammars in Lark's notation, an EBNF with regular expressions as terminals, with Lark's own loader.

The language is that of Lark's Earley parser with the lexer "dynamic_complete": any way to cut a text into
terminals counts, and ``%ignore`` may stand between any two. Priorities only choose between readings.
"""

from __future__ import annotations

from typing import Any

from hasten.constraints.bytes_dfa import ByteDfa
from hasten.constraints.context_free import ContextFreeGrammar
from hasten.constraints.regex import compile_regex
from hasten.errors import ConfigError, MissingExtra

_IGNORED = "%%ignored"
_STARTED = "%%started"


def load_grammar(text: str) -> ContextFreeGrammar:
    """The grammar of a text in Lark's notation; its texts are those of the rule ``start``.

    Raises:
        ConfigError: the grammar is malformed, or a terminal is not regular.
        MissingExtra: lark is not installed.
    """
    try:
        from lark import Lark
        from lark.exceptions import LarkError
    except ImportError as problem:
        raise MissingExtra("grammar constraints need lark: pip install 'hasten[constraints]'") from problem
    try:
        loaded: Any = Lark(text, parser="earley", lexer="dynamic_complete", maybe_placeholders=False)
    except (LarkError, OSError) as problem:
        raise ConfigError(f"the grammar cannot be read: {problem}") from problem
    terminals = {each.name: compile_regex(each.pattern.to_regexp()) for each in loaded.terminals}
    rules: dict[str, list[list[str]]] = {}
    for rule in loaded.rules:
        rules.setdefault(_name(rule.origin), []).append([_name(each) for each in rule.expansion])
    if not loaded.ignore_tokens:
        return ContextFreeGrammar("<start>", rules, terminals)
    return _with_ignored(rules, terminals, loaded.ignore_tokens)


def _name(symbol: Any) -> str:
    """Angle brackets keep the names of rules apart from those of terminals."""
    return str(symbol.name) if symbol.is_term else f"<{symbol.name}>"


def _with_ignored(
    rules: dict[str, list[list[str]]], terminals: dict[str, ByteDfa], ignored: list[str]
) -> ContextFreeGrammar:
    """The ignored terminals at the beginning and after every other one."""
    spaced = {
        name: [[f"%{symbol}" if symbol in terminals else symbol for symbol in one] for one in expansions]
        for name, expansions in rules.items()
    }
    spaced |= {f"%{name}": [[name, _IGNORED]] for name in terminals}
    spaced[_IGNORED] = [[], *([name, _IGNORED] for name in ignored)]
    spaced[_STARTED] = [[_IGNORED, "<start>"]]
    return ContextFreeGrammar(_STARTED, spaced, terminals)
