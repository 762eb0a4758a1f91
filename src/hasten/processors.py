"""A logits processor for each text: copies with a state of their own, or new ones where none can be made.

Grammar engines keep compiled things that cannot be copied and need not be, beside matchers that know how to
copy themselves. Knows no sampler.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from hasten.errors import ConfigError
from hasten.params import LogitsProcessor

_COPYING = ("fork", "deep_copy")
"""methods by which matchers that are not Python's give a copy of themselves (xgrammar, llguidance)"""
_ADVANCING = ("accept_token", "consume_token", "consume_tokens")
"""methods that give away that something follows a text"""


@dataclass(frozen=True)
class PerText:
    """In place of a logits processor that cannot be copied: what makes a new one for each text.

    ``SamplingParams(logits_processors=[hasten.PerText(lambda: MyProcessor(...))])``
    """

    make: Callable[[], LogitsProcessor]

    def __call__(self) -> LogitsProcessor:
        return self.make()


def own_processors(processors: Iterable[Any], *, is_only: bool = False) -> list[Any]:
    """The processors as one text uses them.

    Args:
        is_only: there is one text; what cannot be copied is then used itself.

    Raises ConfigError for a processor that follows a text and cannot be copied for several.
    """
    memo: dict[int, Any] = {}  # what two of them share, their copies share too
    own = []
    for processor in processors:
        try:
            own.append(processor() if isinstance(processor, PerText) else own_copy(processor, memo))
        except _NoCopyError:
            if not is_only:
                raise
            own.append(processor)
    return own


def own_copy(thing: Any, memo: dict[int, Any] | None = None) -> Any:
    """A copy with a state of its own that goes on using the same tokenizers and models.

    What cannot be copied is shared as well: a lock or an event must stay the caller's, and compiled grammars
    never change. Raises ConfigError for what follows a text and cannot be copied.
    """
    memo = {} if memo is None else memo
    if id(thing) in memo or not hasattr(thing, "__dict__") or hasattr(type(thing), "__deepcopy__"):
        return _copied(thing, memo, type(thing).__name__)
    try:
        own = copy.copy(thing)
    except Exception:  # whatever its __reduce__ raises
        return _stand_in(thing, type(thing).__name__)
    memo[id(thing)] = own
    for name, value in list(vars(own).items()):
        vars(own)[name] = _copied(value, memo, f"{type(thing).__name__}.{name}")
    return own


def _copied(value: Any, memo: dict[int, Any], place: str) -> Any:
    if isinstance(value, _shared_types()):
        return value
    attempt = dict(memo)  # what a failed one leaves behind is half made
    try:
        own = copy.deepcopy(value, attempt)
    except Exception:  # other libraries raise all kinds
        if type(value) in (list, tuple):
            return type(value)(_copied(each, memo, place) for each in value)
        if type(value) is dict:
            return {key: _copied(each, memo, place) for key, each in value.items()}
        return _stand_in(value, place)
    memo |= attempt
    return own


def _stand_in(value: Any, place: str) -> Any:
    for name in _COPYING:
        if callable(method := getattr(value, name, None)):
            return method()
    if isinstance(value, Iterator) or any(hasattr(value, name) for name in _ADVANCING):
        raise _NoCopyError(
            f"{place}, a {type(value).__name__}, follows one text and cannot be copied for several: give "
            "SamplingParams a hasten.PerText(function that makes a new processor), or one text a call"
        )
    return value


class _NoCopyError(ConfigError):
    """Something that follows one text and cannot be copied."""


def _shared_types() -> tuple[type, ...]:
    """Large, and never changed by a call; what was not imported is nowhere inside."""
    places = {"transformers.tokenization_utils_base": "PreTrainedTokenizerBase", "torch.nn": "Module"}
    return tuple(
        getattr(sys.modules[module], name) for module, name in places.items() if module in sys.modules
    )
