"""What of the suite ran: skips by reason, and areas that must not vanish from a green run.

`pytest --every-area` (what `make test` runs) fails where an area passed fewer tests than its floor: an import
that fails, a skip that spreads and files that are no longer collected look green otherwise.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import pytest

LLAMA_CPP = "llama.cpp"


class Area(NamedTuple):
    beginnings: tuple[str, ...]
    """of the names of its tests; the first area that has one owns a test"""
    floor: int
    """tests of it that must have passed, about three quarters of those there are"""


AREAS: dict[str, Area] = {
    LLAMA_CPP: Area(("tests/llamacpp/",), 110),
    "GPU graphs, without a GPU": Area(("tests/models/test_graphs.py",), 70),
    "compiled forwards": Area(("tests/models/test_compiled",), 350),
    "encoder-decoders": Area(("tests/models/test_seq2seq.py", "tests/test_seq2seq_exactness.py"), 130),
    "draft models": Area(
        tuple(f"tests/models/test_{name}.py" for name in ("draft_lm", "draft_session", "load_draft")), 110
    ),
    "other sessions and loading": Area(("tests/models/",), 600),
    "diffusion": Area(("tests/diffusion/",), 680),
    "constraints": Area(("tests/constraints/",), 120),
    "drafters": Area(("tests/drafters/",), 700),
    "verification": Area(("tests/verify/",), 240),
    "training": Area(("tests/training/",), 160),
    "benchmarks": Area(("tests/bench/",), 165),
    "drop-in": Area(("tests/test_accelerate",), 250),
    "exactness": Area(("tests/test_exactness.py",), 270),
    "the core and the commands": Area(("tests/test_",), 1200),
}


def area_of(test: str) -> str | None:
    return next((name for name, area in AREAS.items() if test.startswith(area.beginnings)), None)


def absences() -> dict[str, str]:
    """What cannot be tested on this machine, and why."""
    compiler = os.environ.get("CXX") or "c++"
    if importlib.util.find_spec("llama_cpp") or shutil.which(compiler.split()[0]):
        return {}
    return {LLAMA_CPP: "no llama-cpp-python, and no C++ compiler to build it"}


def complaints(passed: Iterable[str], absent: Mapping[str, str]) -> list[str]:
    """Areas that ran too little without a reason, and tests of no area. Empty where all is well."""
    counts = Counter(area_of(test) for test in passed)
    found = [
        f"{name}: {counts[name]} tests passed, at least {area.floor} must"
        for name, area in AREAS.items()
        if counts[name] < area.floor and name not in absent
    ]
    return found + ([f"{counts[None]} tests belong to no area of tests/what_ran.py"] if counts[None] else [])


def reasons(skipped: Iterable[pytest.TestReport | pytest.CollectReport]) -> Counter[str]:
    """Why tests were skipped, and how many each; a file that was skipped as a whole counts as one."""
    texts = (str(report.longrepr[2]) for report in skipped if isinstance(report.longrepr, tuple))
    first = (text.removeprefix("Skipped: ").partition("\n")[0] for text in texts)
    return Counter(line.split(": No module named")[0] for line in first)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-area", action="store_true", help="fail where an area of the suite has vanished")
    parser.addoption("--without", action="append", default=[], metavar="AREA", help="an area that may vanish")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # workers report to the process that counts
        config.pluginmanager.register(WhatRan(config))


class WhatRan:
    def __init__(self, config: pytest.Config) -> None:
        self._wanted: bool = config.getoption("every_area")
        self._absent = absences() | dict.fromkeys(config.getoption("without"), "left out by hand")
        if unknown := self._absent.keys() - AREAS.keys():
            raise pytest.UsageError(f"--without {', '.join(sorted(unknown))}: areas are {', '.join(AREAS)}")
        self._passed: set[str] = set()
        self._complaints: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self._passed.add(report.nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._wanted:
            self._complaints = complaints(self._passed, self._absent)
            if self._complaints and session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        skipped = reasons(terminalreporter.stats.get("skipped", []))
        if skipped:
            terminalreporter.section(f"{skipped.total()} skipped")
            for reason, count in skipped.most_common():
                terminalreporter.line(f"{count:5}  {reason}")
        if not self._wanted:
            return
        for name, reason in self._absent.items():
            if any(area_of(test) == name for test in self._passed):
                continue
            terminalreporter.section(f"{name} NOT tested: {reason}", yellow=True)
        if self._complaints:
            terminalreporter.section("tests have vanished", red=True)
            for complaint in self._complaints:
                terminalreporter.line(complaint, red=True)
