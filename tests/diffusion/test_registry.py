"""What is written for the loop is found by name: no policy and no method is forgotten or named twice."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import hasten.diffusion
from hasten.core import System
from hasten.diffusion.base import (
    BlockPolicy,
    CachePolicy,
    Policy,
    Reviser,
    Selector,
    Speculator,
    StopPolicy,
    Transform,
)
from hasten.diffusion.registry import CACHES, PARTS, POLICIES, SYSTEMS, named
from hasten.diffusion.selectors.oracle import Oracle

KINDS = (Selector, BlockPolicy, Transform, StopPolicy, Reviser, CachePolicy, Speculator)
UNNAMED = {Oracle}
"""made by training, of the text that shall come out"""


def modules() -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(hasten.diffusion.__path__, "hasten.diffusion."):
        yield importlib.import_module(found.name)


def test_every_policy_is_entered_once() -> None:
    written = {
        one
        for module in modules()
        for _, one in inspect.getmembers(module, inspect.isclass)
        if issubclass(one, Policy) and not inspect.isabstract(one) and one.__module__ == module.__name__
    }
    assert written - {Policy, *KINDS} - UNNAMED == set(POLICIES)
    assert len(POLICIES) == len(set(POLICIES)) == len(PARTS) + len(CACHES)
    assert sum(len(named(kind)) for kind in KINDS) == len(POLICIES)


def test_every_published_method_is_listed_once_and_where_it_is() -> None:
    written = [
        system
        for module in modules()
        for value in (getattr(module, "SYSTEM", ()), getattr(module, "SYSTEMS", ()))
        for system in ((value,) if isinstance(value, System) else value)
        if system.module == module.__name__
    ]
    assert sorted(system.name for system in written) == sorted(system.name for system in SYSTEMS)
    assert len({system.name for system in SYSTEMS}) == len(SYSTEMS)
    for one in POLICIES:
        assert all(system.module == one.__module__ for system in one.systems), one
