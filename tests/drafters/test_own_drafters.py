"""Drafters of the user's own, by FILE.py:CLASS, in a call, in the commands, and mixed with others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hasten.bench.methods import parts_of_method
from hasten.cli import app
from hasten.core import SamplingParams
from hasten.errors import ConfigError

CODE = '''
from hasten.drafters.base import Forgetful
from hasten.tree import DraftTree


class Repeat(Forgetful):
    """The last token, again."""

    name = "repeat"
    top_k = 0

    def __init__(self, given=None):
        self.vocab_size = given

    def begin(self, sequence, prompt_candidates):
        pass

    def propose(self, sequence, budget):
        return DraftTree.chain([sequence.token_ids[-1]] * min(2, budget), [0.5, 0.25][:budget])

    def observe(self, sequence, observation):
        pass

    def end(self, sequence):
        pass


def sized(given):
    found = Repeat(given.vocab_size)
    found.name = "sized"
    return found


class Half:
    top_k = 0


def failing():
    raise RuntimeError("not today")
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "drafts" / "mine.py"
    path.parent.mkdir()
    path.write_text(CODE)
    return path


@pytest.mark.parametrize("kind", ["Repeat", "sized", "Repeat+suffix"])
def test_the_text_is_plain_decodings(demo: Any, file: Path, kind: str) -> None:
    own, *others = kind.split("+")
    name = "+".join([f"{file}:{own}", *others])
    params = SamplingParams(max_new_tokens=12)
    plain = demo.generate("Once upon a time", params, drafter="off")
    found = demo.generate("Once upon a time", params, drafter=name, num_draft_tokens=2)
    assert found.token_ids == plain.token_ids
    assert found.stats.num_draft_tokens > 0
    if kind == "sized":
        assert demo.drafter(name).drafters[0].vocab_size == demo.target.vocab_size


def test_the_commands_take_it(file: Path, tmp_path: Path) -> None:
    small = ["--dtype", "float32", "--device", "cpu", "--forward", "stock", "--max-new-tokens", "6"]
    name = f"{file}:Repeat"
    asked = ["generate", "demo", *small, "-p", "Once", "--drafter", name, "--json"]
    written = CliRunner().invoke(app, asked)
    assert written.exit_code == 0, written.output
    path = tmp_path / "out.json"
    methods = f"{name},{name}+suffix,{name}/traversal"
    asked = [
        "bench",
        "demo",
        *small,
        "--prompts",
        "demo",
        "--limit",
        "1",
        "--baselines",
        "",
        "--methods",
        methods,
    ]
    result = CliRunner().invoke(app, [*asked, "--json", str(path)])
    assert result.exit_code == 0, result.output
    records = json.loads(path.read_text())["records"]
    assert [record["method"] for record in records] == ["plain", *methods.split(",")]
    assert all(record["identical"] for record in records)


def test_slashes_of_the_path_are_no_rule() -> None:
    assert parts_of_method("a/b.py:C")[0] == "a/b.py:C"
    drafter, rule = parts_of_method("a/b.py:C/traversal")
    assert (drafter, rule.guarantee) == ("a/b.py:C", "distribution")
    with pytest.raises(ConfigError, match="verify='guess'"):
        parts_of_method("a/b.py:C/guess")


@pytest.mark.parametrize(
    ("name", "part"),
    [("Nobody", "no class 'Nobody'"), ("Half", "begin, propose"), ("failing", "RuntimeError: not today")],
)
def test_what_is_no_drafter_is_refused(demo: Any, file: Path, name: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        demo.drafter(f"{file}:{name}")


def test_files_that_are_not_there_or_fail_are_named(demo: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file '.*missing.py'"):
        demo.drafter(f"{tmp_path}/missing.py:Any")
    (tmp_path / "broken.py").write_text("import nothing_like_this\n")
    with pytest.raises(ConfigError, match=r"broken.py fails: ModuleNotFoundError"):
        demo.drafter(f"{tmp_path}/broken.py:Any")
