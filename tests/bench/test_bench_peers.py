"""Other programs in the benchmark: the same weights, their answers, and what if they are missing."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_bench_runner import bench

from conftest import build_model
from hasten.bench.baselines import BASELINES, Given
from hasten.bench.methods import Method, TransformersMethod
from hasten.bench.models import load_stock
from hasten.bench.peers import dejavuu, llamacpp
from hasten.bench.runner import BenchConfig
from hasten.core import SamplingParams
from hasten.errors import ConfigError, ModelError
from hasten.models.llamacpp import interface as llama_interface

NAMES = [name for name, baseline in BASELINES.items() if baseline.is_peer]
# Of dejavuu's many methods the ordinary suite runs the one that stands for it.
PEERS = [
    pytest.param(name, marks=[pytest.mark.slow] if name.startswith("dejavuu-") else []) for name in NAMES
]
PACKAGES = {
    "llamacpp": ("llama_cpp", "gguf"),
    "openvino": ("openvino_genai",),
    "dejavuu": ("dejavuu", "loguru"),
}
"""by the first word of a peer's name"""
STORY = "User: Tell me a story about Tom and his dog Rex. Tom and his dog Rex lived in a town.\nAssistant:"


@pytest.fixture(scope="module")
def stock() -> Any:
    return load_stock("demo", dtype="float32", device="cpu", shape=None)


@pytest.fixture(scope="module")
def peer(stock: Any) -> Callable[[str], Method]:
    """peer(name) -> it on the demo model; skips the test where its package is missing."""
    given = Given(stock, None, frozenset({0}))
    made: dict[str, Method] = {}

    def get(name: str) -> Method:
        for package in PACKAGES[name.partition("-")[0]]:
            pytest.importorskip(package)
        if name not in made:
            made[name] = BASELINES[name].make(name, given)
        return made[name]

    return get


@pytest.fixture
def prompt(stock: Any) -> list[int]:
    return list(stock[1](STORY)["input_ids"])


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    known = (llama_interface.bindings, dejavuu._library)
    for one in known:
        one.cache_clear()
    with monkeypatch.context() as patch:
        for name in ("llama_cpp", "openvino_genai", "dejavuu"):
            patch.setitem(sys.modules, name, None)
        yield
    for one in known:
        one.cache_clear()


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_writes_the_greedy_text_of_the_same_weights(
    peer: Callable[[str], Method], stock: Any, prompt: list[int], name: str
) -> None:
    params = SamplingParams(max_new_tokens=24)
    expected = TransformersMethod("hf", *stock).answer([prompt], params)
    method = peer(name)
    method.start([prompt], params)
    for _ in range(2):  # nothing of the first answer is left for the second
        answer = method.answer([prompt], params)
        assert answer.token_ids == expected.token_ids
        assert answer.texts == expected.texts
        assert answer.num_passes == answer.num_steps
        assert answer.seconds > 0


def test_lookup_takes_fewer_passes(peer: Callable[[str], Method], prompt: list[int]) -> None:
    params = SamplingParams(max_new_tokens=40, ignore_eos=True)
    plain, lookup = (peer(name).answer([prompt], params) for name in ("llamacpp", "llamacpp-lookup"))
    assert lookup.token_ids == plain.token_ids
    assert lookup.num_passes < plain.num_passes == plain.num_tokens == 40
    assert lookup.num_draft_tokens > plain.num_draft_tokens == 0


@pytest.mark.parametrize("end", [None, 2, 5, 6, 7])
def test_right_drafts_end_with_the_text(
    peer: Callable[[str], Method], prompt: list[int], end: int | None
) -> None:
    method: Any = peer("llamacpp")
    params = SamplingParams(max_new_tokens=9, ignore_eos=True)
    [written] = method.answer([prompt], params).token_ids
    stop = frozenset() if end is None else frozenset({written[end]})
    expected = written if end is None else written[: written.index(written[end]) + 1]

    def look(text: np.ndarray) -> np.ndarray:
        return np.array([*prompt, *written, 7, 7, 7, 7], np.intc)[len(text) :][:4]

    found = method._engine.write(prompt, params, stop, look)
    assert found.token_ids == expected
    assert found.num_passes == 1 + math.ceil((len(expected) - 1) / 5)


@pytest.mark.parametrize("name", ["llamacpp", "llamacpp-lookup"])
def test_prompts_longer_than_a_pass_and_than_the_context(
    peer: Callable[[str], Method], stock: Any, prompt: list[int], name: str
) -> None:
    params = SamplingParams(max_new_tokens=6, ignore_eos=True)
    long = (prompt * 60)[: llama_interface.PASS_TOKENS + 40]
    [expected] = TransformersMethod("hf", *stock).answer([long], params).token_ids
    assert peer(name).answer([long], params).token_ids == [expected]
    assert peer(name).answer([(prompt * 120)[:2100]], params).num_tokens == 6
    assert peer(name).answer([long], params).token_ids == [expected]


@pytest.mark.parametrize("name", PEERS)
def test_the_seed_decides_a_sampled_text(peer: Callable[[str], Method], prompt: list[int], name: str) -> None:
    params = SamplingParams(max_new_tokens=24, temperature=1.5, seed=3, ignore_eos=True)
    [first], [again], [other] = (
        peer(name).answer([prompt], each).token_ids for each in (params, params, replace(params, seed=4))
    )
    assert first == again != other


@pytest.mark.parametrize("name", PEERS)
def test_an_end_of_text_ends_the_answer_and_is_kept(
    peer: Callable[[str], Method], prompt: list[int], name: str
) -> None:
    method: Any = peer(name)
    params = SamplingParams(max_new_tokens=24)
    [written] = method.answer([prompt], replace(params, ignore_eos=True)).token_ids
    end = written[5]
    usual, method._stop = method._stop, frozenset({end, 0})
    try:
        [stopped] = method.answer([prompt], params).token_ids
        [whole] = method.answer([prompt], replace(params, ignore_eos=True)).token_ids
    finally:
        method._stop = usual
    assert stopped == written[: written.index(end) + 1]
    assert whole == written


@pytest.mark.parametrize("name", PEERS)
def test_the_stock_model_stays_as_it_was(peer: Callable[[str], Method], stock: Any, name: str) -> None:
    peer(name)
    assert {parameter.dtype for parameter in stock[0].parameters()} == {torch.float32}
    assert not stock[0].training


@pytest.mark.usefixtures("no_packages")
def test_missing_packages_are_left_out_with_their_pip_line(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    result = bench("--prompts", "demo", "--limit", "1", "--baselines", ",".join(NAMES), "--json", str(path))
    assert result.exit_code == 0, result.output
    lines = {line.partition(" is left out: ")[0]: line for line in result.stderr.splitlines()}
    for name in ("llamacpp", "llamacpp-lookup"):
        assert "pip install 'hasten[llamacpp]'" in lines[name]
    assert "pip install openvino-genai" in lines["openvino-genai"]
    for name in (name for name in NAMES if name.startswith("dejavuu")):
        assert "pip install --ignore-requires-python --no-deps dejavuu" in lines[name]
    methods = [record["method"] for record in json.loads(path.read_text())["records"]]
    assert methods == ["plain", "auto"]


def test_a_model_no_peer_can_run_is_left_out() -> None:
    for package in ("llama_cpp", "gguf"):
        pytest.importorskip(package)
    with pytest.raises(ModelError, match="GPT2"):
        llamacpp.LlamaCpp(build_model("gpt2"), 1)
    with pytest.raises(ModelError, match="float64"):
        llamacpp.LlamaCpp(build_model("llama", torch.float64), 1)


@pytest.mark.parametrize(
    ("name", "dtype", "part"),
    [
        ("llama", torch.float64, "float64"),
        ("gemma3", torch.float32, "whole text"),
        ("qwen3-next-hybrid", torch.float32, "whole text"),
        ("mixtral-moe", torch.float32, "histc"),
        ("falcon", torch.float32, "FalconForCausalLM: Sizes of tensors"),
    ],
)
def test_openvino_says_why_it_cannot_run_a_model(name: str, dtype: torch.dtype, part: str) -> None:
    pytest.importorskip("openvino_genai")
    given = Given((build_model(name, dtype), None), None, frozenset())
    with pytest.raises(ModelError, match=part):
        BASELINES["openvino-genai"].make("openvino-genai", given)


@pytest.mark.parametrize("name", ["qwen2", "gpt2"])
def test_openvino_traces_other_architectures(name: str) -> None:
    pytest.importorskip("openvino_genai")
    model, params = build_model(name), SamplingParams(max_new_tokens=12, ignore_eos=True)
    given = Given((model, Numbers()), None, frozenset())
    answers = [
        BASELINES[each].make(each, given).answer([[3, 4, 5]], params) for each in ("hf", "openvino-genai")
    ]
    assert answers[0].token_ids == answers[1].token_ids


class Numbers:
    """A tokenizer without words."""

    def decode(self, token_ids: list[int], **_: object) -> str:
        return " ".join(map(str, token_ids))


def test_another_text_of_a_peer_is_said_but_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for package in ("llama_cpp", "gguf"):
        pytest.importorskip(package)
    write = llamacpp.LlamaCpp.write

    def forge(self: Any, *arguments: Any) -> llamacpp.Written:
        found = write(self, *arguments)
        return replace(found, token_ids=[*found.token_ids[:-1], 7])

    monkeypatch.setattr(llamacpp.LlamaCpp, "write", forge)
    path = tmp_path / "out.json"
    result = bench("--prompts", "demo", "--limit", "1", "--baselines", "hf,llamacpp", "--json", str(path))
    assert result.exit_code == 0, result.output
    assert "1 of 1" in result.stdout
    found = {record["method"]: record for record in json.loads(path.read_text())["records"]}
    assert found["hf"]["identical"]
    assert found["llamacpp"]["different"] == 1
    assert [found[name]["is_peer"] for name in ("plain", "hf", "llamacpp")] == [False, False, True]


@pytest.mark.parametrize("name", PEERS)
def test_peers_take_one_prompt_at_a_time(name: str) -> None:
    with pytest.raises(ConfigError, match="one prompt at a time"):
        BenchConfig(baselines=(name,), batch_sizes=(1, 4))
