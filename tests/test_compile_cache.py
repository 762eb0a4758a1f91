"""Compiled code finds a place on read-only installations, and what was compiled before goes with it."""

from __future__ import annotations

import importlib.util
import logging
import os
import tempfile
from pathlib import Path

import numba
import pytest

from hasten import compile_cache
from hasten.errors import ConfigError

SOURCE = """
import numba

@numba.njit(cache=True)
def double(number):
    return 2 * number
"""


def run(package: Path) -> int:
    """Load the module anew and call it; how often the compiled code was found."""
    spec = importlib.util.spec_from_file_location("doubling", package / "inner" / "doubling.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.double(4) == 8
    return sum(module.double.stats.cache_hits.values())


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "package" / "inner").mkdir(parents=True)
    (tmp_path / "package" / "inner" / "doubling.py").write_text(SOURCE)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    return tmp_path / "package"


def only(monkeypatch, *writable):
    """Everything else is a read-only file system."""
    can_hold = compile_cache._can_hold
    monkeypatch.setattr(
        compile_cache,
        "_can_hold",
        lambda folder: any(folder.is_relative_to(one) for one in writable) and can_hold(folder),
    )


def test_where_code_can_be_kept_nothing_is_changed(package):
    assert compile_cache.choose(package) is None
    assert os.environ["NUMBA_CACHE_DIR"] == numba.config.CACHE_DIR == ""


def test_a_read_only_installation_starts_warm_with_what_was_compiled(package, monkeypatch, caplog):
    assert run(package) == 0
    assert run(package) == 1
    only(monkeypatch, package.parent / "temporary")
    with caplog.at_level(logging.WARNING, "hasten"):
        folder = compile_cache.choose(package)
    assert "NUMBA_CACHE_DIR" in caplog.text
    assert folder.parent == package.parent / "temporary"
    assert os.environ["NUMBA_CACHE_DIR"] == numba.config.CACHE_DIR == str(folder)
    assert run(package) == 1
    compile_cache._remove(folder, os.getpid() + 1)  # a forked process
    assert folder.exists()
    compile_cache._remove(folder, os.getpid())
    assert not folder.exists()


def test_a_folder_of_the_environment_that_became_read_only_is_copied(package, monkeypatch):
    baked = package.parent / "baked"
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(baked))
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(baked))
    assert compile_cache.choose(package) is None
    assert run(package) == 0
    only(monkeypatch, package.parent / "temporary")
    assert compile_cache.choose(package) is not None
    assert run(package) == 1


def test_no_place_at_all_is_an_error_with_the_remedy(package, monkeypatch):
    only(monkeypatch)
    with pytest.raises(ConfigError, match="set NUMBA_CACHE_DIR to a folder with 32 MiB"):
        compile_cache.choose(package)


def test_a_full_disk_is_no_place(package, monkeypatch):
    monkeypatch.setattr(compile_cache, "_NEEDED_BYTES", 2**62)
    assert not compile_cache._can_hold(package)
    assert not compile_cache._can_hold(package / "inner" / "doubling.py")
