"""JSON schemas as regular expressions: every text that matches is JSON and valid against the schema.

Members are written in the order of the schema, only those that it lists, with at most one space after a colon
or a comma; of the valid texts these are the canonical ones. A keyword that this cannot honour is refused,
never ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from hasten.constraints.regex import compile_regex
from hasten.errors import ConfigError

CHARACTER = (
    r'(?:[^"\\\x00-\x1f\x7f-\x9f]|\\["\\/bfnrt]|\\u(?:[0-9abcefABCEF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}))'
)
"""One character of a JSON string; surrogates are written as themselves or not at all."""
PLAIN = r'(?:[^"\\\x00-\x1f])*'
"""What a pattern may write inside quotes."""
INTEGER = r"-?(?:0|[1-9][0-9]*)"
NUMBER = INTEGER + r"(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
COMMA, COLON = ", ?", ": ?"
MAX_DEPTH = 32
"""Of references inside references; deeper ones are taken for endless."""
_MINUTES = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
FORMATS = {
    "date": "[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))",
    "time": rf"{_MINUTES}:[0-5][0-9](?:\.[0-9]{{1,6}})?(?:Z|[+-]{_MINUTES})",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "ipv4": rf"(?:{_OCTET}\.){{3}}{_OCTET}",
}
FORMATS["date-time"] = FORMATS["date"] + "T" + FORMATS["time"]
NOTES = {"$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default", "examples"}
NOTES |= {"deprecated", "readOnly", "writeOnly", "type"}
KEYWORDS = {
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": set[str](),
    "number": set[str](),
    "boolean": set[str](),
    "null": set[str](),
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties"},
}


def schema_regex(schema: str | dict[str, Any]) -> str:
    """A regular expression for JSON texts that are valid against ``schema``.

    Args:
        schema: itself, or its JSON text.

    Raises:
        ConfigError: the schema is malformed, recursive, or uses a keyword that is not supported.
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as problem:
            raise ConfigError(f"the JSON schema cannot be read: {problem}") from problem
    try:
        return _Writer(schema).expression(schema, 0)
    except (AttributeError, TypeError) as problem:
        raise ConfigError(f"the JSON schema has a value of the wrong kind: {problem}") from problem


class _Writer:
    """Writes the parts of one schema; ``root`` is what references point into."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._writers: dict[str, Callable[[dict[str, Any], int], str]] = {
            "string": lambda schema, _: _string(schema),
            "integer": lambda *_: INTEGER,
            "number": lambda *_: NUMBER,
            "boolean": lambda *_: "(?:true|false)",
            "null": lambda *_: "null",
            "array": self._array,
            "object": self._object,
        }

    def expression(self, schema: Any, depth: int) -> str:
        if not isinstance(schema, dict):
            raise ConfigError(f"schema {schema!r} cannot be a constraint; say which type it has")
        if depth > MAX_DEPTH:
            raise ConfigError("the JSON schema refers to itself; use a grammar instead, or end the recursion")
        if "$ref" in schema:
            _refuse_others(schema, {"$ref"})
            return self.expression(self._resolved(schema["$ref"]), depth + 1)
        for name in ("const", "enum"):
            if name in schema:
                values = schema[name] if name == "enum" else [schema[name]]
                _refuse_others(schema, {name})
                return _any_of([_literal(one) for one in self._of_type(values, schema)])
        if "anyOf" in schema:
            _refuse_others(schema, {"anyOf"}, notes=NOTES - {"type"})
            return _any_of([self.expression(one, depth + 1) for one in schema["anyOf"]])
        types = schema.get("type")
        kinds: list[Any] = types if isinstance(types, list) else [types]
        if unknown := [one for one in kinds if one not in self._writers]:
            raise ConfigError(
                f"schema {json.dumps(schema)[:80]} has type {unknown[0]!r}; "
                f"give it one of {', '.join(KEYWORDS)}, or const, enum, anyOf, $ref"
            )
        _refuse_others(schema, set().union(*(KEYWORDS[one] for one in kinds)))
        return _any_of([self._writers[one](schema, depth) for one in kinds])

    def _resolved(self, reference: Any) -> Any:
        place = self._root
        if not str(reference).startswith("#"):
            raise ConfigError(
                f"schema reference {reference!r} leaves the schema; copy what it means into $defs"
            )
        for part in str(reference).removeprefix("#").split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(place, dict) or name not in place:
                raise ConfigError(f"schema reference {reference!r} points to nothing; define it")
            place = place[name]
        return place

    def _of_type(self, values: list[Any], schema: dict[str, Any]) -> list[Any]:
        """The values that the schema's type allows."""
        if "type" not in schema:
            return values
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        fitting = [one for one in values if any(_has_type(one, name) for name in types)]
        if not fitting:
            raise ConfigError(
                f"none of the values {values!r} is of type {schema['type']!r}; correct one of the two"
            )
        return fitting

    def _array(self, schema: dict[str, Any], depth: int) -> str:
        low, high = _counts(schema, "minItems", "maxItems")
        first = [self.expression(one, depth + 1) for one in schema.get("prefixItems", ())]
        if schema.get("items", True) is True and (high is None or high > len(first)):
            raise ConfigError('an array needs "items": say what it consists of, or limit it with maxItems')
        if schema.get("items") is False:
            high = len(first) if high is None else min(high, len(first))
        inner = ""
        longest = len(first) if high is None else min(high, len(first))
        if high is None or high > len(first):
            item = self.expression(schema["items"], depth + 1)
            more = "" if high is None else high - len(first)
            inner = f"(?:{COMMA if first else ''}{item}" if more != 0 else ""
            if first:
                inner += f"){{{max(0, low - len(first))},{more}}}"
            else:
                rest = "" if high is None else high - 1
                inner += f"(?:{COMMA}{item}){{{max(0, low - 1)},{rest}}}){'' if low else '?'}"
        if low > longest and not inner:
            raise ConfigError(f"an array cannot have at least {low} and at most {longest} items; correct one")
        # The first ones may be left out from the end where minItems does not ask for them.
        for index in range(longest - 1, -1, -1):
            part = f"{COMMA if index else ''}{first[index]}{inner}"
            inner = part if index < low else f"(?:{part})?"
        return rf"\[{inner}\]"

    def _object(self, schema: dict[str, Any], depth: int) -> str:
        properties = schema.get("properties")
        if not properties or schema.get("additionalProperties") not in {None, True, False}:
            raise ConfigError('an object needs "properties": list them; others are not written')
        required = set(schema.get("required", ()))
        if unlisted := sorted(required - set(properties)):
            raise ConfigError(
                f"required property {unlisted[0]!r} is not among the properties; describe it there"
            )
        members = [
            (f"{_literal(name)}{COLON}{self.expression(one, depth + 1)}", name in required)
            for name, one in properties.items()
        ]
        # after: what may follow a member; first: the same where no member stands before.
        after, first = "", ""
        for member, is_needed in reversed(members):
            first = f"{member}{after}" if is_needed else _any_of([member + after, first])
            after = f"{COMMA}{member}{after}" if is_needed else f"(?:{COMMA}{member})?{after}"
        return rf"\{{{first}\}}"


def _string(schema: dict[str, Any]) -> str:
    low, high = _counts(schema, "minLength", "maxLength")
    others = [name for name in ("pattern", "format") if name in schema]
    if len(others) > 1 or (others and {"minLength", "maxLength"} & set(schema)):
        raise ConfigError(f"a string with {others[0]} has no other limits here; write them into a pattern")
    if "format" in schema:
        if schema["format"] not in FORMATS:
            raise ConfigError(
                f"format {schema['format']!r} is unknown; choose from {', '.join(sorted(FORMATS))}"
            )
        return f'"{FORMATS[schema["format"]]}"'
    if "pattern" in schema:
        inner = _unanchored(schema["pattern"])
        if not compile_regex(inner).is_within(compile_regex(PLAIN)):
            raise ConfigError(
                f"pattern {schema['pattern']!r} matches characters that a JSON string has to escape; "
                r'exclude them, for example with [^"\\\x00-\x1f] in place of a dot'
            )
        return f'"{inner}"'
    return f'"{CHARACTER}{{{low},{"" if high is None else high}}}"'


def _unanchored(pattern: str) -> str:
    """The pattern without ^ and $ around it, which would stand inside the quotes."""
    compile_regex(pattern)
    inner = pattern.removeprefix("^")
    is_escaped = len(inner) - len(inner.removesuffix("$").rstrip("\\")) > 1
    return f"(?:{inner if is_escaped else inner.removesuffix('$')})"


def _counts(schema: dict[str, Any], least: str, most: str) -> tuple[int, int | None]:
    low, high = schema.get(least, 0), schema.get(most)
    if not isinstance(low, int) or low < 0 or not (high is None or (isinstance(high, int) and high >= low)):
        raise ConfigError(
            f"{least}={low!r} and {most}={high!r} cannot work; give whole numbers, the lower first"
        )
    return low, high


def _refuse_others(schema: dict[str, Any], known: set[str], notes: set[str] = NOTES) -> None:
    if others := sorted(set(schema) - known - notes):
        raise ConfigError(
            f"schema keyword {others[0]!r} cannot be honoured here; leave it out, or use a pattern or an enum"
        )


def _has_type(value: Any, name: str) -> bool:
    if isinstance(value, bool) or value is None:
        return name == ("null" if value is None else "boolean")
    by_type = {str: {"string"}, list: {"array"}, dict: {"object"}, int: {"integer", "number"}}
    if isinstance(value, float):
        return name == "number" or (name == "integer" and value.is_integer())
    return name in by_type[type(value)]


def _literal(value: Any) -> str:
    """Just this value, as it is written most briefly and with spaces."""
    if isinstance(value, dict):
        members = [f"{_literal(name)}{COLON}{_literal(one)}" for name, one in value.items()]
        return rf"\{{{COMMA.join(members)}\}}"
    if isinstance(value, list):
        return rf"\[{COMMA.join(map(_literal, value))}\]"
    return re.escape(json.dumps(value, ensure_ascii=False))


def _any_of(expressions: list[str]) -> str:
    if not expressions:
        raise ConfigError("the JSON schema has a choice of nothing; list at least one")
    return f"(?:{'|'.join(expressions)})"
