"""A green run has tested every area, or says which one it did not and why."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import what_ran
from what_ran import AREAS, LLAMA_CPP, area_of, complaints

ENOUGH = [
    f"{area.beginnings[-1]}[{number}]"
    for name, area in AREAS.items()
    for number in range(area.floor)
    if area_of(area.beginnings[-1]) == name
]


def test_an_area_may_not_shrink_below_its_floor():
    assert complaints(ENOUGH, {}) == []
    for name, area in AREAS.items():
        lost = next(test for test in ENOUGH if area_of(test) == name)
        found = complaints([test for test in ENOUGH if test != lost], {})
        assert found == [f"{name}: {area.floor - 1} tests passed, at least {area.floor} must"]


def test_an_area_may_be_absent_for_a_reason_only():
    rest = [test for test in ENOUGH if area_of(test) != LLAMA_CPP]
    assert complaints(rest, {}) == ["llama.cpp: 0 tests passed, at least 110 must"]
    assert complaints(rest, {LLAMA_CPP: "no compiler"}) == []


def test_a_new_folder_of_tests_needs_an_area():
    assert complaints([*ENOUGH, "tests/servers/test_api.py::test_it"], {}) == [
        "1 tests belong to no area of tests/what_ran.py"
    ]


def test_every_file_of_tests_has_an_area_and_every_area_has_files():
    root = Path(__file__).parents[1]
    found = {area_of(str(path.relative_to(root))) for path in root.glob("tests/**/test_*.py")}
    assert found == set(AREAS)


@pytest.mark.parametrize("compiler", [True, False])
@pytest.mark.parametrize("installed", [True, False])
def test_llama_cpp_is_absent_only_without_a_build_and_without_a_compiler(monkeypatch, compiler, installed):
    monkeypatch.setattr(what_ran.shutil, "which", lambda _: "/usr/bin/c++" if compiler else None)
    monkeypatch.setattr(what_ran.importlib.util, "find_spec", lambda _: object() if installed else None)
    assert bool(what_ran.absences()) is not (compiler or installed)


@pytest.fixture
def small_suite(tmp_path):
    """run(*options) -> (exit status, output) of a suite of two areas, one of which lacks its package."""
    (tmp_path / "tests" / "backend").mkdir(parents=True)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "conftest.py").write_text(
        "import what_ran\n"
        "backend, core = what_ran.Area(('tests/backend/',), 1), what_ran.Area(('tests/test_',), 2)\n"
        "what_ran.AREAS = {'backend': backend, 'core': core}\n"
        "what_ran.absences = dict\n"
    )
    (tmp_path / "tests" / "test_core.py").write_text(
        "import pytest\n@pytest.mark.parametrize('one', range(2))\ndef test_it(one): pass\n"
    )
    (tmp_path / "tests" / "backend" / "test_backend.py").write_text(
        "import pytest\npytest.importorskip('no_such_package')\ndef test_it(): pass\n"
    )

    def run(*options):
        command = [sys.executable, "-m", "pytest", "-p", "xdist.plugin", "-p", "what_ran", *options]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # they take longer than these tests
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.mark.parametrize("options", [(), ("-n", "2")])
def test_a_run_whose_backend_vanished_is_red_and_says_why(small_suite, options):
    status, output = small_suite("--every-area", *options)
    assert status == 1
    assert "backend: 0 tests passed, at least 1 must" in output
    assert "    1  could not import 'no_such_package'\n" in output
    assert "2 passed" in output


def test_what_is_left_out_by_hand_is_named_at_the_end(small_suite):
    status, output = small_suite("--every-area", "--without", "backend")
    assert status == 0
    assert "backend NOT tested: left out by hand" in output
    status, output = small_suite("--every-area", "--without", "backends")
    assert status != 0
    assert "areas are backend, core" in output


def test_a_run_of_some_files_needs_no_other_areas(small_suite):
    assert small_suite("tests/test_core.py")[0] == 0
