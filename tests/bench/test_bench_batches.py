"""Prompts answered side by side: the same texts as one by one, whole records, full batches, fair replays."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_bench_runner import FIELDS, TIMES, bench

from conftest import VOCAB, build_model
from hasten.bench import methods
from hasten.bench.agreement import replay
from hasten.bench.methods import Answer, HastenMethod, TransformersMethod
from hasten.bench.models import OpenModel, load_stock, open_model
from hasten.bench.programs import InThisProcess
from hasten.bench.prompts import Conversation, PromptSet, batches
from hasten.bench.records import Record, records_of
from hasten.bench.runner import BenchConfig, Benchmark, GroupResult
from hasten.core import SamplingParams
from hasten.errors import ConfigError
from hasten.models.causal_lm import CausalLM
from hasten.text.engine import LanguageModel

STOPS = [1, 5, 9, 13, 17, 21, 25, 29]
"""Some texts of the tiny model reach one of these and others do not."""


class Words:
    """As much of a tokenizer as a measurement needs whose prompts are token ids."""

    def decode(self, token_ids: list[int], **_: Any) -> str:
        return " ".join(map(str, token_ids))

    def get_vocab(self) -> dict[str, int]:
        return {str(token_id): token_id for token_id in range(VOCAB)}


def tiny() -> Any:
    model = build_model()
    model.generation_config.eos_token_id = STOPS
    return model


def random_prompts(*lengths: int) -> list[Conversation]:
    generator = torch.Generator().manual_seed(4)
    rows = [torch.randint(30, VOCAB, (length,), generator=generator).tolist() for length in lengths]
    return [Conversation((), False, "random", tuple(row)) for row in rows]


def measure_tiny(conversations: list[Conversation], **options: Any) -> Benchmark:
    opened = OpenModel("tiny", None, LanguageModel(CausalLM(tiny()), Words(), drafter="off"), 0, "stock", "")
    config = BenchConfig(**({"methods": ("token-recycling", "suffix"), "max_new_tokens": 20} | options))
    benchmark = Benchmark(opened, config, InThisProcess(lambda: (tiny(), Words())))
    benchmark.run([PromptSet("some", tuple(conversations))])
    return benchmark


def by_method(records: list[Record], batch_size: int) -> dict[str, Record]:
    return {record["method"]: record for record in records if record["batch_size"] == batch_size}


def rows_of(results: list[GroupResult], batch_size: int, method: str) -> list[list[int]]:
    found = [result.answers[method] for result in results if result.batch_size == batch_size]
    return [token_ids for answer in found for token_ids in answer.token_ids]


LENGTHS = (3, 11, 6, 1, 9, 2, 17, 4)


@pytest.fixture(scope="module")
def measured() -> Benchmark:
    return measure_tiny(random_prompts(*LENGTHS), batch_sizes=(1, 4, 8))


def test_every_method_writes_the_same_in_every_batch(measured: Benchmark) -> None:
    expected = rows_of(measured.results, 1, "plain")
    assert {len(row) for row in expected} > {20}, "some texts must end early, and some must not"
    for batch_size in (1, 4, 8):
        for method in ("plain", "token-recycling", "suffix", "hf"):
            assert rows_of(measured.results, batch_size, method) == expected


def test_every_row_is_compared(measured: Benchmark) -> None:
    records = records_of(measured)
    assert [record["batch_size"] for record in records] == [1] * 4 + [4] * 4 + [8] * 4
    assert all(record["compared"] == record["prompts"] == 8 for record in records)
    assert all(record["identical"] is True and record["different"] == 0 for record in records)


def test_steps_are_those_of_a_text_and_passes_those_of_a_batch(measured: Benchmark) -> None:
    lengths = [len(row) for row in rows_of(measured.results, 1, "plain")]
    for batch_size in (1, 4, 8):
        found = by_method(records_of(measured), batch_size)
        longest = [max(lengths[start : start + batch_size]) for start in range(0, 8, batch_size)]
        for method in ("plain", "hf"):
            assert found[method]["steps"] == sum(lengths)
            assert found[method]["passes"] == sum(longest)
            assert found[method]["mean_acceptance_length"] == 1
            assert found[method]["draft_ms_per_token"] is None
        drafted = found["token-recycling"]
        assert drafted["steps"] <= sum(lengths)
        if not drafted["draft_tokens"]:  # whether a tiny model's rows pay is the machine's to say
            assert drafted["draft_ms_per_token"] is None
            continue
        per_step = drafted["draft_ms"] * drafted["passes"] / drafted["draft_tokens"]
        assert drafted["draft_ms_per_token"] == pytest.approx(per_step, rel=0.01)


def test_speed_is_compared_within_a_batch_size(measured: Benchmark) -> None:
    for batch_size in (1, 4, 8):
        found = by_method(records_of(measured), batch_size)
        assert found["plain"]["speedup"] == found["hf"]["speedup_hf"] == 1
        ratio = found["suffix"]["tokens_per_second"] / found["hf"]["tokens_per_second"]
        assert found["suffix"]["speedup_hf"] == pytest.approx(ratio, rel=0.01)


def test_the_time_of_a_shared_pass_counts_once(measured: Benchmark) -> None:
    for result in measured.results:
        spent = result.answers["plain"].milliseconds
        assert spent is not None
        assert 0 < sum(spent.values()) < 1000 * result.answers["plain"].seconds


def test_texts_go_on_after_an_end_where_asked() -> None:
    benchmark = measure_tiny(random_prompts(*LENGTHS), batch_sizes=(1, 4), ignore_eos=True)
    ended = rows_of(measure_tiny(random_prompts(*LENGTHS), batch_sizes=(4,)).results, 4, "plain")
    for batch_size in (1, 4):
        plain = rows_of(benchmark.results, batch_size, "plain")
        assert {len(row) for row in plain} == {20}
        assert [row[: len(short)] for row, short in zip(plain, ended, strict=True)] == ended
        assert rows_of(benchmark.results, batch_size, "hf") == plain
    assert all(record["identical"] for record in records_of(benchmark))


def test_sampled_texts_are_compared_row_by_row() -> None:
    benchmark = measure_tiny(random_prompts(*LENGTHS), batch_sizes=(4,), temperature=1.0)
    found = by_method(records_of(benchmark), 4)
    assert found["suffix"]["compared"] == 8
    assert found["suffix"]["identical"] is True
    assert (found["hf"]["compared"], found["hf"]["identical"]) == (0, None)


def test_the_median_is_that_of_a_group() -> None:
    benchmark = measure_tiny(random_prompts(3, 4, 5, 6), batch_sizes=(2,), repeat=3, methods=())
    seconds = [
        sorted(result.answers["plain"].seconds for result in benchmark.results if result.place == (group, 0))
        for group in range(2)
    ]
    [plain, _] = records_of(benchmark)
    assert plain["seconds"] == pytest.approx(sum(times[1] for times in seconds), abs=1e-4)
    assert plain["prompts"] == 4


def test_padding_and_what_follows_the_end_are_cut_off() -> None:
    method = TransformersMethod("hf", tiny(), Words())
    prompts = [list(one.token_ids) for one in random_prompts(*LENGTHS)]
    found = method.answer(prompts, SamplingParams(max_new_tokens=20))
    alone = [method.answer([prompt], SamplingParams(max_new_tokens=20)).token_ids[0] for prompt in prompts]
    assert found.token_ids == alone
    for row in found.token_ids:
        assert len(row) == 20 or row[-1] in STOPS
        assert not set(row[:-1]) & set(STOPS)
    assert found.texts == [" ".join(map(str, row)) for row in found.token_ids]


def test_batches_are_full() -> None:
    some = [Conversation((str(number),), False) for number in range(5)]
    assert batches(some, 1) == [[one] for one in some]
    assert batches(some, 2) == [some[:2], some[2:4], [some[4], some[0]]]
    assert batches(some[:2], 5) == [[some[0], some[1], some[0], some[1], some[0]]]


@pytest.mark.parametrize(
    ("available", "limit", "sizes", "count"),
    [
        (40, 6, (1,), 6),
        (40, 6, (1, 4), 8),
        (40, 8, (1, 4, 16), 16),
        (40, None, (1, 16), 32),
        (40, 39, (16,), 32),
        (40, 5, (4, 6), 12),
        (3, None, (1, 4), 3),
        (3, 2, (1,), 2),
    ],
)
def test_a_limit_is_rounded_to_full_batches(
    available: int, limit: int | None, sizes: tuple[int, ...], count: int
) -> None:
    config = {"batch_sizes": sizes, "limit": limit, "methods": (), "max_new_tokens": 1, "baselines": ()}
    benchmark = measure_tiny(random_prompts(*[2] * available), **config)
    assert benchmark.num_conversations == {"some": count}
    for size in sizes:
        groups = [result for result in benchmark.results if result.batch_size == size]
        assert all(len(group.answers["plain"].token_ids) == size for group in groups)
        assert len(groups) == -(-count // size)


def test_batches_take_first_turns_only() -> None:
    opened = open_model("demo", dtype="float32", device="cpu", forward="stock")
    conversations = [Conversation((text, "A latte, please."), True) for text in ("Hello!", "Good morning!")]
    config = BenchConfig(methods=("auto",), baselines=(), max_new_tokens=4, batch_sizes=(1, 2))
    benchmark = Benchmark(opened, config)
    benchmark.run([PromptSet("some", tuple(conversations))])
    places = [(result.batch_size, result.place) for result in benchmark.results]
    assert places == [(1, (0, 0)), (1, (0, 1)), (1, (1, 0)), (1, (1, 1)), (2, (0, 0))]
    first = [result.answers["plain"].token_ids[0] for result in benchmark.results if result.place[1] == 0]
    assert benchmark.results[-1].answers["plain"].token_ids == first[:2]


def test_the_command_measures_batches_of_the_demo(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    result = bench(
        "--prompts", "demo", "--prompts", "random:3", "--limit", "3", "--batch", "1,4", "--json", str(path)
    )
    assert result.exit_code == 0, result.output
    found = json.loads(path.read_text())
    assert found["conditions"]["batch_sizes"] == [1, 4]
    assert found["conditions"]["ignore_eos"] is False
    keys = [(record["prompt_set"], record["batch_size"], record["method"]) for record in found["records"]]
    names = ("plain", "auto", "hf")
    assert keys == [(one, size, name) for one in ("demo", "random") for size in (1, 4) for name in names]
    for record in found["records"]:
        for field, kind in FIELDS.items():
            assert isinstance(record[field], kind), field
        assert record["identical"]
        assert all((record[name] is None) == (record["method"] == "hf") for name in TIMES)
    words = " ".join(result.stdout.split())
    assert "demo: 4 conversations for --limit 3, to fill batches of 1, 4" in words
    assert "random, batch 4: 1 of them a second time" in words
    assert "demo, 4 prompts, batch 4" in words
    assert "first turns only" in words


def test_a_batch_of_one_says_nothing_about_batches() -> None:
    result = bench("--prompts", "demo", "--limit", "1", "--baselines", "", "--ignore-eos")
    assert result.exit_code == 0, result.output
    assert "batch" not in result.stdout
    assert "new tokens exactly" in " ".join(result.stdout.split())


def test_a_wrong_row_of_a_batch_ends_with_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = HastenMethod.answer

    def forge(self: HastenMethod, prompts: list[list[int]], params: SamplingParams) -> Answer:
        found = answer(self, prompts, params)
        rows = [list(row) for row in found.token_ids]
        rows[2][3] += self.name == "suffix"
        return replace(found, token_ids=rows)

    monkeypatch.setattr(methods.HastenMethod, "answer", forge)
    options = ("--methods", "suffix", "--baselines", "", "--batch", "4")
    result = bench("--prompts", "demo", "--limit", "4", *options)
    assert result.exit_code == 1
    assert "another text" in result.stderr


def test_prompt_lookup_of_transformers_has_no_batches() -> None:
    with pytest.raises(ConfigError, match="hf-prompt-lookup takes one prompt at a time"):
        BenchConfig(baselines=("hf", "hf-prompt-lookup"), batch_sizes=(1, 4))
    result = bench("--prompts", "demo", "--baselines", "hf-prompt-lookup", "--batch", "2")
    assert result.exit_code == 2
    assert "leave it out" in result.stderr


def test_replays_with_companions_agree_with_a_plain_pass(demo: Any) -> None:
    prompt_ids, *companions = (demo.encode(text) for text in ("Once upon a time", "Hello! " * 9, "The"))
    written = demo.generate(prompt_ids, SamplingParams(max_new_tokens=9), drafter="off").token_ids
    with torch.inference_mode():
        expected = demo.target.forward.model(torch.tensor([[*prompt_ids, *written]])).logits[0, -1]
    for num_rows in (1, 4, 24):
        found = replay(demo.target, num_rows, companions)(prompt_ids, written)
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_a_replay_makes_passes_of_as_many_rows_as_the_batch(demo: Any) -> None:
    shapes: list[tuple[int, ...]] = []
    handle = demo.target.forward.model.register_forward_pre_hook(
        lambda _, arguments: shapes.append(tuple(arguments[0].shape))
    )
    try:
        replay(demo.target, 4, [[5, 6, 7], [8, 9]])([3, 4, 5, 6], [7, 8, 9, 10, 11])
    finally:
        handle.remove()
    assert shapes[-3:] == [(3, 4), (3, 1), (3, 4)]


def test_replays_stay_inside_the_context() -> None:
    target = CausalLM(build_model("gpt2", n_positions=24))
    for companions in ([], [[4] * 15]):
        logits = replay(target, 32, companions)([5] * 12, [6, 7, 8])
        assert logits.shape == (VOCAB,)


@pytest.fixture(scope="module")
def half() -> Benchmark:
    """Several rows a batch in bfloat16."""
    opened = open_model("demo", dtype="bfloat16", device="cpu", forward="stock")
    stock = load_stock("demo", dtype="bfloat16", device="cpu", shape=None)
    benchmark = Benchmark(
        opened, BenchConfig(max_new_tokens=24, batch_sizes=(4,)), InThisProcess(lambda: stock)
    )
    texts = ("Once upon a time", "User: I want to book a table.\nAssistant:", "The", "Hello! How are you?")
    benchmark.run([PromptSet("some", tuple(Conversation((text,), False) for text in texts))])
    return benchmark


def test_batches_differ_by_near_ties_at_most_in_bfloat16(half: Benchmark) -> None:
    assert all(record["identical"] for record in records_of(half))


def test_a_forged_row_is_caught_in_bfloat16(half: Benchmark) -> None:
    [result] = half.results
    plain = result.answers["plain"]
    forged = [list(row) for row in plain.token_ids]
    forged[1][6] = (forged[1][6] + 1) % half.opened.language_model.target.vocab_size
    prompts = [half._prompt_ids(Conversation((text,), False), [], 0) for text in ("a", "b", "c", "d")]
    params = half._params(0)
    found = half._agreements("auto", prompts, plain, replace(plain, token_ids=forged), params)
    assert [one.verdict for one in found] == ["same", "different", "same", "same"]
