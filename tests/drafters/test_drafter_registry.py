"""What is written as a drafter is found by name: no published method is forgotten or listed twice."""

from __future__ import annotations

import importlib
import pkgutil

import hasten.drafters
from hasten.core import System
from hasten.drafters import AUTO, DRAFT, DRAFTERS, SYSTEMS
from hasten.drafters.registry import ENTRIES


def test_names_are_given_once() -> None:
    assert len(DRAFTERS) == len(ENTRIES)
    assert {*AUTO, DRAFT} <= set(DRAFTERS)


def test_every_published_method_is_listed_once() -> None:
    written = [
        value
        for found in pkgutil.walk_packages(hasten.drafters.__path__, "hasten.drafters.")
        for value in vars(importlib.import_module(found.name)).values()
        if isinstance(value, System)
    ]
    assert {system.name for system in written} == {system.name for system in SYSTEMS}
    assert len({system.name for system in SYSTEMS}) == len(SYSTEMS)
    for system in SYSTEMS:
        importlib.import_module(system.module)
