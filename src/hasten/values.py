"""What callers pass, read once: what means the same is converted, anything else is refused by name.

Numbers may be Python's, numpy's or torch's scalars; collections may be any iterable, iterators included,
which are used up here and nowhere else. Knows no numpy and no torch: their scalars have ``item``, their
arrays ``tolist``.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Set as AbstractSet
from numbers import Real
from typing import Any

from hasten.errors import ConfigError, HastenError

_BYTES = (bytes, bytearray, memoryview)


def whole(value: Any, name: str, remedy: str = "a whole number") -> int:
    """An int. Raises ConfigError for booleans, fractions and texts, also where they look like one."""
    value = _scalar(value)
    if isinstance(value, bool) or not _is_index(value):
        raise wrong(name, value, remedy)
    return operator.index(value)


def at_least_one(value: Any, name: str) -> int:
    """An int of 1 or more, as sizes are. Raises ConfigError."""
    remedy = "a whole number, at least 1"
    found = whole(value, name, remedy)
    if found < 1:
        raise wrong(name, found, remedy)
    return found


def real(value: Any, name: str, remedy: str = "a number") -> float:
    """A float. Raises ConfigError for anything else, NaN included."""
    value = _scalar(value)
    if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value):
        raise wrong(name, value, remedy)
    return float(value)


def flag(value: Any, name: str) -> bool:
    """A bool. Raises ConfigError for anything else, texts such as "false" above all."""
    value = _scalar(value)
    if not isinstance(value, bool):
        raise wrong(name, value, "True or False")
    return value


def texts(value: Any, name: str) -> tuple[str, ...]:
    """One text or several, none of them empty; None is none."""
    remedy = "a text or several, and none of them empty"
    found = (value,) if isinstance(value, str) else several(value, name, remedy)
    if not all(isinstance(each, str) and each for each in found):
        raise wrong(name, value if isinstance(value, str) else list(found), remedy)
    return tuple(str(each) for each in found)


def token_ids(value: Any, name: str) -> tuple[int, ...]:
    """One token id or several, none of them negative; None is none."""
    remedy = "a token id or several: whole numbers, 0 or more"
    value = _plain(value)
    found = (value,) if _is_index(value) else several(value, name, remedy)
    ids = tuple(whole(each, name, remedy) for each in found)
    if any(each < 0 for each in ids):
        raise wrong(name, list(ids), remedy)
    return ids


def biases(value: Any, name: str) -> dict[int, float]:
    """Token id -> a number that is finite, or -inf; None is none."""
    remedy = "a dict of token ids and what to add to their logits: finite numbers, or -inf"
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise wrong(name, value, remedy)
    found = {whole(key, name, remedy): real(each, name, remedy) for key, each in value.items()}
    if any(key < 0 or each == math.inf for key, each in found.items()):
        raise wrong(name, found, remedy)
    return found


def known_ids(value: Any, name: str) -> list[int]:
    """Token ids as a config holds them: one, a list, a tuple or a tensor; None and -1 stand for none.

    Raises ConfigError for anything else.
    """
    value = _plain(value)
    found = (value,) if _is_index(value) else several(value, name, "a token id or several")
    ids = (whole(each, name) for each in found)
    return [each for each in ids if each >= 0]


def callables(value: Any, name: str) -> tuple[Callable[..., Any], ...]:
    """One function or several; None is none. A list that can be called itself counts as several."""
    remedy = "a function or several, each taking (input_ids, scores)"
    is_one = callable(value) and not isinstance(value, Iterable)
    found = (value,) if is_one else several(value, name, remedy)
    if not all(map(callable, found)):
        raise wrong(name, list(found), remedy)
    return tuple(found)


def several(value: Any, name: str, remedy: str) -> tuple[Any, ...]:
    """The items of a collection or iterator. Raises ConfigError for what has no items, or named ones."""
    if value is None:
        return ()
    value = _plain(value)
    if isinstance(value, (str, *_BYTES, Mapping)) or not isinstance(value, Iterable):
        raise wrong(name, value, remedy)
    return tuple(value)


def prompt_ids(value: Any, error: type[HastenError]) -> list[int]:
    """Token ids of one prompt: a flat collection of whole numbers, or an integer array [tokens]."""
    reason = "a prompt is a text or token ids, which are integers"
    if isinstance(value, _BYTES):
        raise error(f"{reason}: {_shown(value)} is bytes; decode them to a text, such as .decode()")
    if isinstance(value, (str, Mapping, AbstractSet)) or not isinstance(value, Iterable):
        raise error(f"{reason}: not {_shown(value)}")
    shape = getattr(value, "shape", (1,))
    if len(shape) != 1:
        raise error(f"{reason}: an array of shape {list(shape)} holds several; give one row")
    found = _plain(value)
    found = list(found)
    if all(type(each) is int for each in found):  # nearly always, and a prompt may be long
        return found
    try:
        return [whole(each, "token id") for each in found]
    except ConfigError:
        odd = next(each for each in map(_scalar, found) if isinstance(each, bool) or not _is_index(each))
        raise error(f"{reason}: not {_shown(odd)}") from None


def wrong(name: str, value: Any, remedy: str) -> ConfigError:
    """The error that names a value and its remedy."""
    return ConfigError(f"{name}={_shown(value)} cannot work; it must be {remedy}")


def _is_index(value: Any) -> bool:
    return hasattr(value, "__index__") and not hasattr(value, "__len__")  # arrays have both


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:60]}... ({type(value).__name__})"


def _scalar(value: Any) -> Any:
    """The Python number in a numpy or torch scalar; anything else as it is."""
    if getattr(value, "ndim", None) == 0 and callable(getattr(value, "item", None)):
        return value.item()
    return value


def _plain(value: Any) -> Any:
    """The nested lists in an array, at once; anything else as it is."""
    to_list = getattr(value, "tolist", None)
    return to_list() if callable(to_list) else value
