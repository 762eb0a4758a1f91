"""The scripts beside the benchmark: Markdown from records, and the list of drafters that are measured."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from test_bench_runner import bench

from conftest import VOCAB
from hasten.drafters import DRAFTERS, Resources, make_drafter
from hasten.errors import HastenError

SCRIPTS = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(scope="module")
def tables() -> Any:
    spec = importlib.util.spec_from_file_location("tables", SCRIPTS / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(prompt_set: str, method: str, batch_size: int = 1, **changes: Any) -> dict[str, Any]:
    known = {"speedup": 2.0, "speedup_hf": 4.0, "mean_acceptance_length": 3.5, "tokens_per_second": 50.0}
    costs = {"draft_ms": 0.5, "draft_ms_per_token": 0.025, "forward_ms": 30.0, "verify_ms": 0.1}
    rest = {"other_ms": 0.2, "outside_forward": 2.6, "repeated_8grams": 0.1, "tokens": 90}
    counts = {"near_ties": 1, "compared": 4, "different": 0}
    names = {"prompt_set": prompt_set, "method": method, "batch_size": batch_size}
    return {**names, **known, **costs, **rest, **counts, **changes}


def test_methods_by_sets_with_geometric_means(tables: Any) -> None:
    records = [record("a", "auto"), record("b", "auto", speedup_hf=1.0, speedup=0.5)]
    assert tables.speed_table(records).splitlines() == [
        "| method | a | b | mean × hf | mean × plain |",
        "|---|---|---|---|---|",
        "| auto | 4.00 (3.50) | 1.00 (3.50) | 2.00 | 1.00 |",
    ]


def test_texts_that_loop_are_marked(tables: Any) -> None:
    assert "4.00 (3.50) loops |" in tables.speed_table([record("a", "auto", repeated_8grams=0.4)])


def test_without_transformers_plain_decoding_is_the_measure(tables: Any) -> None:
    records = [record("a", "auto", speedup_hf=None), record("a", "plain", speedup=1.0, speedup_hf=None)]
    assert tables.speed_table(records).splitlines() == [
        "| method | a | mean × plain |",
        "|---|---|---|",
        "| auto | 2.00 (3.50) | 2.00 |",
        "| plain | 1.00 (3.50) | 1.00 |",
    ]


def test_the_cost_of_drafting(tables: Any) -> None:
    unknown = {"draft_ms": None, "draft_ms_per_token": None}
    records = [
        record("a", "plain", draft_ms_per_token=None),
        record("a", "auto"),
        record("a", "suffix", draft_ms_per_token=None),
        record("a", "hf", **unknown),
        record("b", "auto"),
    ]
    assert tables.draft_cost_table(records).splitlines() == [
        "| method | a | b |",
        "|---|---|---|",
        "| auto | 2.00, 0.50 (25) | 2.00, 0.50 (25) |",
        "| suffix | 2.00, 0.50 (-) | - |",
    ]


def test_batch_sizes_by_methods(tables: Any) -> None:
    records = [
        record("a", "plain", 1),
        record("a", "auto", 1),
        record("a", "plain", 8),
        record("a", "auto", 8),
    ]
    assert tables.batch_table(records).splitlines() == [
        "| batch | plain | auto |",
        "|---|---|---|",
        "| 1 | 50.0 (4.00) | 50.0 (4.00) |",
        "| 8 | 50.0 (4.00) | 50.0 (4.00) |",
    ]


def test_plain_decoding_is_not_compared_with_itself(tables: Any) -> None:
    records = [record("a", "plain"), record("a", "auto"), record("a", "suffix", different=2)]
    row = tables.agreement_table({"greedy": records}).splitlines()[-1]
    assert row == "| greedy | 8 | 2 | 2 | - |"


def test_texts_of_other_programs_are_counted_apart(tables: Any) -> None:
    peer = record("a", "llamacpp", different=3, is_peer=True)
    row = tables.agreement_table({"greedy": [record("a", "auto", is_peer=False), peer]}).splitlines()[-1]
    assert row == "| greedy | 4 | 1 | none | 3 of 4 |"


def test_other_programs_are_measures_of_their_own(tables: Any) -> None:
    records = [
        record("a", "auto", speedup=6.0),
        record("b", "auto", speedup=6.0),
        record("a", "llamacpp", speedup=1.5),
    ]
    assert tables.speed_table(records).splitlines() == [
        "| method | a | b | mean × hf | mean × plain | mean × llamacpp |",
        "|---|---|---|---|---|---|",
        "| auto | 4.00 (3.50) | 4.00 (3.50) | 4.00 | 6.00 | 4.00 |",
        "| llamacpp | 4.00 (3.50) | - | 4.00 | 1.50 | 1.00 |",
    ]


def test_the_tables_of_a_run(tables: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "some-run.json"
    result = bench("--prompts", "demo,random:2", "--limit", "2", "--batch", "1,2", "--json", str(path))
    assert result.exit_code == 0, result.output
    tables.main([str(path)])
    printed = capsys.readouterr().out
    assert printed.startswith("## some-run\n\ndemo (6.5 M parameters), float32, ")
    assert "\n\nMemory is read at " in printed
    assert "**demo: tokens/s (× hf) by batch size**" in printed
    assert "**× plain, draft ms a step (µs a node), batch 2**" in printed
    assert "**Where a step's time goes (`auto`)**" in printed
    assert printed.rstrip().endswith("| some-run | 16 | 0 | none | - |")
    widths = {
        len(line.split("|")) for line in printed.split("by batch size**\n\n")[1].split("\n\n")[0].splitlines()
    }
    assert widths == {6}
    assert len(json.loads(path.read_text())["records"]) == 12


def test_no_file_is_a_mistake(tables: Any) -> None:
    with pytest.raises(SystemExit, match="usage"):
        tables.main([])


def test_every_drafter_that_needs_only_the_model_is_measured(targets: Any) -> None:
    found = re.search(r"^drafters=(\S+)$", (SCRIPTS / "run.sh").read_text(), re.MULTILINE)
    assert found is not None
    measured = found[1].split(",")
    assert len(set(measured)) == len(measured)
    assert set(measured) == {name for name in DRAFTERS if _needs_only_the_model(name, targets())}


def _needs_only_the_model(name: str, target: Any) -> bool:
    try:
        make_drafter(name, Resources(VOCAB, target))
    except HastenError:
        return False
    return True
