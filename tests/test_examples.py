"""Every example, and every Python block of README and guides, runs and says what it is there to say."""

from __future__ import annotations

import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = {
    "quickstart.py": r"48 tokens in \d+ steps.*\nthe same text: True",
    "streaming.py": r"\d+ tokens by target",
    "batch_and_samples.py": r"(?s)'Once upon a time' -> '.+the same samples without drafts: True",
    "diffusion.py": r"(?s)static +32 forwards +exact.+exact is the reference's text: True",
    "infill.py": r"(?s)return a \+ b.+\n12 tokens in \d+ forward passes, exact\n\d+:\d\d (am|pm)",
    "draft_model.py": r"(?s)follow +[2-9]\.\d+ .*traversal +\d.*guarantee: distribution\n.*same: True",
    "drop_in.py": r"64 tokens in \d+ steps; the same tensor: True",
    "lm_eval_task.py": r"steps for \d+ tokens; the same answers: True",
    "seq2seq.py": r"(?s)\d+ tokens in \d+ steps.+the same texts: True",
    "threshold_trap.py": r"(?s) 9 +right in  9 .+ 10 +right in 10 +WRONG in  1 +right in  2 +right in  2",
    "own_drafter.py": r"(?s)\d+ steps instead of \d+.+'repeats-itself'.+the same text: True",
}


def run_python(*arguments: str, folder: Path = ROOT) -> str:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, *arguments],
        check=False,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_tested() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_example(name: str) -> None:
    path = ROOT / "examples" / name
    if name == "lm_eval_task.py":
        pytest.importorskip("lm_eval")
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60
    assert re.search(EXAMPLES[name], run_python(str(path)))


PAGES = ("README.md", "docs/index.md", "docs/serving.md", "docs/extending.md")


def python_blocks(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


BLOCKS = {f"{page}-{number}": block for page in PAGES for number, block in enumerate(python_blocks(page))}


def test_every_page_has_python_to_run() -> None:
    assert {name.rpartition("-")[0] for name in BLOCKS} == set(PAGES)


@pytest.mark.parametrize("name", BLOCKS)
def test_block(name: str, tmp_path: Path) -> None:
    assert run_python("-c", BLOCKS[name], folder=tmp_path).strip()


def test_every_page_is_in_the_navigation_and_every_name_of_the_reference_is_there() -> None:
    navigation = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert navigation == pages
    for page in (ROOT / "docs" / "api").glob("*.md"):
        for name in re.findall(r"^::: (\S+)", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
            assert pkgutil.resolve_name(name) is not None
