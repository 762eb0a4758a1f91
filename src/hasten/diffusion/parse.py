"""Strategies from a line of text: "threshold:0.8+credit+blocks:64/dual".

Parts are joined by "+", the cache follows a "/". A part may carry values: ":0.8" is its first parameter,
":tau=0.8,order=margin" names them. Without a selector the one that the parts were published with is used,
which mostly is the reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from hasten.diffusion.base import (
    BlockPolicy,
    CachePolicy,
    Helpers,
    Policy,
    Reviser,
    Selector,
    Speculator,
    StopPolicy,
    Strategy,
    Transform,
)
from hasten.diffusion.canvas import DenoiserSpec
from hasten.diffusion.defaults import default_blocks
from hasten.diffusion.registry import CACHES, PARTS, named
from hasten.errors import ConfigError


def parse_strategy(text: str, spec: DenoiserSpec, helpers: Helpers = Helpers()) -> Strategy:
    """The strategy of a text, checked against a denoiser.

    Raises ConfigError for an unknown name, a value that cannot work, or parts that do not go together.
    """
    helpers = replace(helpers, spec=spec)
    line, _, cache_text = text.partition("/")
    parts = [_make(one.strip(), PARTS, helpers) for one in line.split("+")]
    cache = _make(cache_text.strip() or "none", CACHES, helpers)
    assert isinstance(cache, CachePolicy)
    selector = _single([one for one in parts if isinstance(one, Selector)], "selector") or _published_with(
        parts, helpers
    )
    strategy = Strategy(
        blocks=_single([one for one in parts if isinstance(one, BlockPolicy)], "block policy")
        or default_blocks(spec, selector.block_size),
        selector=selector,
        transforms=tuple(one for one in parts if isinstance(one, Transform)),
        stops=tuple(one for one in parts if isinstance(one, StopPolicy)),
        revisers=tuple(one for one in parts if isinstance(one, Reviser)),
        speculator=_single([one for one in parts if isinstance(one, Speculator)], "speculator"),
        cache=cache,
    )
    strategy.check(spec)
    return strategy


def _published_with(parts: list[Policy], helpers: Helpers) -> Selector:
    names = {one.published_with for one in parts if one.published_with is not None}
    if len(names) > 1:
        raise ConfigError(f"these parts come with different selectors; add one of {', '.join(sorted(names))}")
    selector = _make(names.pop() if names else "static", named(Selector), helpers)
    assert isinstance(selector, Selector)
    return selector


PartKind = TypeVar("PartKind", bound=Policy)


def _single(found: list[PartKind], what: str) -> PartKind | None:
    if len(found) > 1:
        names = ", ".join(one.name for one in found)
        raise ConfigError(f"{names} cannot work together: a strategy has one {what}")
    return found[0] if found else None


def _make(text: str, table: Mapping[str, type[Policy]], helpers: Helpers) -> Policy:
    name, _, values = text.partition(":")
    if name not in table:
        raise ConfigError(f"{name!r} is no part of a strategy here; choose {', '.join(sorted(table))}")
    kind = table[name]
    return kind.make(helpers, **_values(kind, name, values))


def _values(kind: type[Policy], name: str, text: str) -> dict[str, Any]:
    """The parameters in a text such as "0.8" or "tau=0.8,radius=2"."""
    types = get_type_hints(kind)
    names: list[str] = [one.name for one in fields(kind) if one.init] if is_dataclass(kind) else []
    known = [name for name in names if _text_kind(types[name])]
    values: dict[str, Any] = {}
    for index, entry in enumerate(filter(None, text.split(","))):
        key, has_name, value = entry.rpartition("=")
        if not has_name and index == 0 and known:
            key = known[0]
        if key not in known or key in values:
            takes = ", ".join(known) or "no values"
            raise ConfigError(f"{name}:{text} cannot work at {entry!r}; {name} takes {takes}")
        values[key] = _value(types[key], value, f"{name}:{text}")
    return values


def _text_kind(hint: Any) -> type | None:
    """What a text gives to a parameter of this type; None where only code can give it."""
    options = get_args(hint) if get_origin(hint) in {Union, UnionType} else (hint,)
    return next((one for one in (bool, int, float, str) if one in options), None)


def _value(kind: Any, text: str, where: str) -> Any:
    """A text as a bool, int, float or str, whichever the parameter is."""
    wanted = _text_kind(kind)
    assert wanted is not None
    try:
        if wanted is bool:
            return {"1": True, "0": False}[text]
        return wanted(text)
    except (ValueError, KeyError):
        what = {bool: "0 or 1", int: "a whole number", float: "a number"}[wanted]
        raise ConfigError(f"{where} cannot work: {text!r} is not {what}") from None
