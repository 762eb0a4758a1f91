"""Drafters of the user's own, by ``FILE.py:CLASS``, wherever a drafter's name is taken."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

from hasten.drafters.base import Drafter, Resources
from hasten.errors import ConfigError

_MARK = ".py:"


def is_own(name: str) -> bool:
    """Whether a drafter's name stands for a class in a file."""
    return _MARK in name


def make_own(name: str, given: Resources) -> Drafter:
    """The drafter that ``FILE.py:CLASS`` makes.

    A class, or any function; it is called with nothing, or with the Resources if it wants an argument.
    Its own ``name`` is what the union and statistics call it; without one it has its class's.

    Raises ConfigError for a file or class that is not there, for code that fails, or for what is no Drafter.
    """
    file, _, attribute = name.rpartition(":")
    make = getattr(_module(str(Path(file).expanduser().resolve()), name), attribute, None)
    if not callable(make):
        raise ConfigError(f"drafter={name!r}: {file} has no class {attribute!r}")
    try:
        found = make(given) if _takes_an_argument(make) else make()
    except Exception as problem:
        raise ConfigError(
            f"drafter={name!r} cannot be made: {type(problem).__name__}: {problem}"
        ) from problem
    if not hasattr(found, "name"):
        found.name = attribute
    missing = [needed for needed in _NEEDED if not hasattr(found, needed)]
    if missing:
        raise ConfigError(
            f"drafter={name!r} has no {', '.join(missing)}; see hasten.drafters.base.Drafter, and Forgetful "
            "for one that keeps nothing in a store"
        )
    drafter: Drafter = found
    return drafter


_NEEDED = ("top_k", "begin", "propose", "observe", "end", "state", "restore")


def _takes_an_argument(make: Callable[..., object]) -> bool:
    """One that it must be given."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = inspect.signature(make).parameters.values()
    return any(one.kind in kinds and one.default is inspect.Parameter.empty for one in found)


@cache  # one module a file, as an import would give
def _module(path: str, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"hasten_own_{Path(path).stem}", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise ConfigError(f"drafter={name!r}: there is no file {path!r}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as problem:
        raise ConfigError(f"drafter={name!r}: {path} fails: {type(problem).__name__}: {problem}") from problem
    return module
