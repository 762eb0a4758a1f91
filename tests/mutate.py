"""Break the core in one place at a time and see whether its tests go red: `make mutate`.

Cosmic Ray says what can be broken. Where it knows several changes of a kind in one place (ten for `x + y`),
one is drawn, and of what is left a sample; changes of annotations and of `strict=` are left out. No file is
touched: a mutant is tested in a fork of a process that has loaded all but hasten, which reads broken code.

    python tests/mutate.py [--sample N] [--seed S] [FILE ...]

prints the mutants that no test noticed, and the share of those noticed by file.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cosmic_ray.plugins
import hypothesis
import numba
import pytest
import torch
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "src"
_LAWS = ["verify/test_residual.py", "verify/test_must_fail.py", "verify/test_exact_laws.py"]
TESTS = {
    "tree.py": ["test_tree.py"],
    "sampling.py": ["test_sampling.py", "test_penalties.py", "test_logprobs.py"],
    "params.py": ["test_values.py"],
    "core.py": ["test_values.py", "test_decode.py"],
    "stopping.py": ["test_stopping.py"],
    "noise.py": ["test_noise.py"],
    "logits.py": ["test_logits.py"],
    "text/decode.py": ["test_decode.py", "test_running_batch.py"],
    "text/scheduler.py": ["test_running_batch.py"],
    "laws.py": _LAWS,
    "verify/__init__.py": ["verify/test_must_fail.py", "verify/test_rules_engine.py"],
    "verify/ahead.py": ["test_verify.py", *_LAWS],
    "verify/block.py": _LAWS,
    "verify/bounds.py": ["verify/test_bounds.py"],
    "verify/confident.py": ["verify/test_confident.py"],
    "verify/fastest.py": ["verify/test_fastest.py"],
    "verify/follow.py": ["test_verify.py", *_LAWS],
    "verify/k_sequential.py": _LAWS,
    "verify/naive.py": _LAWS,
    "verify/point_mass.py": _LAWS,
    "verify/residual.py": [
        "verify/test_residual.py",
        "verify/test_residual_law.py",
        "verify/test_exact_laws.py",
    ],
    "verify/tolerant.py": ["test_tolerant.py"],
    "verify/traversal.py": _LAWS,
    "verify/typical.py": ["verify/test_rules_engine.py"],
    "verify/walk.py": ["test_verify.py", *_LAWS],
}
"""a file of the core -> what must notice that it is broken, quick tests first"""
TIMEOUT = 4.0
"""times the tests of the whole file, and 20 s more"""


class Mutant(NamedTuple):
    path: Path
    line: int
    operator: str
    code: str

    @property
    def module(self) -> str:
        return ".".join(self.path.relative_to(SOURCES).with_suffix("").parts).removesuffix(".__init__")

    def change(self) -> str:
        """The lines it changes."""
        pair = self.path.read_text().splitlines(), self.code.splitlines()
        lines = list(difflib.unified_diff(*pair, n=0, lineterm=""))[3:]
        return "\n".join(f"    {line}" for line in lines if not line.startswith("@@"))


def mutants_of(path: Path, generator: random.Random) -> Iterator[Mutant]:
    """One for each place and kind of change, in random order."""
    source = path.read_text()
    original, nodes = meaning(source), list(ast_nodes(get_ast(source)))
    places: dict[tuple[Any, str], list[tuple[str, int]]] = {}
    for name in sorted(cosmic_ray.plugins.operator_names()):
        operator = cosmic_ray.plugins.get_operator(name)
        if not operator.arguments():
            found = (place for node in nodes for place in operator().mutation_positions(node))
            for number, place in enumerate(found):
                places.setdefault((place, name.split("_")[0]), []).append((name, number))
    for (place, _), choices in generator.sample(sorted(places.items()), len(places)):
        for name, number in generator.sample(choices, len(choices)):
            code = mutate_code(source, cosmic_ray.plugins.get_operator(name)(), number)
            if code and meaning(code) not in (original, None):
                yield Mutant(path, place[0][0], name.removeprefix("core/"), code)
                break


def meaning(source: str) -> str | None:
    """What is left of a file without its annotations and checks of lengths; None where it is no Python."""
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(source)
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign):
            node.annotation = None  # type: ignore[assignment]
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.Call):
            node.keywords = [each for each in node.keywords if each.arg != "strict"]
    return ast.dump(tree)


class Broken(importlib.abc.MetaPathFinder, importlib.machinery.SourceFileLoader):
    """Loads one module from other code than its file's."""

    def __init__(self, mutant: Mutant) -> None:
        super().__init__(mutant.module, str(mutant.path))
        self._code = mutant.code

    def find_spec(self, fullname: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        return (
            importlib.util.spec_from_file_location(fullname, self.path, loader=self)
            if fullname == self.name
            else None
        )

    def get_code(self, fullname: str) -> Any:
        return compile(self._code, self.path, "exec")


def run_tests(
    tests: Sequence[str], limit: float, mutant: Mutant | None = None
) -> tuple[int | None, list[str]]:
    """pytest's exit status in a fork, None past the limit in seconds, and the modules it had loaded."""
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if not child:
            try:
                status = _in_fork(tests, mutant, Path(folder))
            except BaseException:
                traceback.print_exc()
                status = 3
            os._exit(status)
        ends = time.monotonic() + limit
        while not (found := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > ends:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return None, []
            time.sleep(0.02)
        loaded = Path(folder, "modules")
        status = os.waitstatus_to_exitcode(found[1])
        if status and not mutant:
            raise SystemExit(f"red before anything was broken:\n{Path(folder, 'output').read_text()}")
        return status, loaded.read_text().split() if loaded.exists() else []


def _in_fork(tests: Sequence[str], mutant: Mutant | None, folder: Path) -> int:
    with open(folder / "output", "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(ROOT)
    if mutant:
        sys.meta_path.insert(0, Broken(mutant))
        if "numba" in mutant.code:
            numba.config.CACHE_DIR = str(folder)  # what was compiled of the file must not stand in
    options = ["-x", "--assert=plain", "-p", "no:cacheprovider", "--hypothesis-profile=mutants"]
    status = int(pytest.main([*options, *(f"tests/{each}" for each in tests)]))
    (folder / "modules").write_text("\n".join(name for name in sys.modules if not name.startswith("hasten")))
    return status


def warm_up(tests: Sequence[str]) -> float:
    """Load what these tests load besides hasten; seconds that they take after that. They must be green."""
    _, loaded = run_tests(tests, 3600)
    known = {path.stem for path in ROOT.glob("tests/**/*.py")}
    for name in loaded:
        if name.split(".")[0] not in known | {"__main__"} and name not in sys.modules:
            try:
                importlib.import_module(name)
            except Exception:  # such as modules that are made while others load
                continue
    started = time.monotonic()
    run_tests(tests, 3600)
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", metavar="FILE", help=f"of {', '.join(TESTS)}")
    parser.add_argument("--sample", type=int, default=40, help="mutants of a file, 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)  # a red example need not be a small one
    hypothesis.settings.register_profile("mutants", deadline=None, derandomize=True, phases=phases)
    table = []
    for name in options.files or TESTS:
        path, generator = SOURCES / "hasten" / name, random.Random(f"{options.seed} {name}")
        some = list(itertools.islice(mutants_of(path, generator), options.sample or None))
        seconds = warm_up(TESTS[name])
        print(f"{name}: {len(some)} mutants, tests of {seconds:.1f} s", flush=True)
        survivors = 0
        for mutant in sorted(some, key=lambda each: each.line):
            if run_tests(TESTS[name], TIMEOUT * seconds + 20, mutant)[0] == 0:
                survivors += 1
                print(f"  {name}:{mutant.line} {mutant.operator}\n{mutant.change()}", flush=True)
        table.append((name, len(some) - survivors, len(some)))
    print("\n| file | noticed | of |\n|---|---|---|")
    for row in [*table, ("all", *(sum(column) for column in list(zip(*table, strict=True))[1:]))]:
        print("| " + " | ".join(map(str, row)) + " |")


if __name__ == "__main__":
    main()
