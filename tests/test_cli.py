"""Every command does its job on the bundled model, and every mistake ends in one line and exit code 2."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

import hasten
from hasten.cli import app
from hasten.cli.live import legend, style_of
from hasten.models.bundled_models import bundled_path
from hasten.text.engine import LanguageModel

SMALL = ["--dtype", "float32", "--device", "cpu", "--forward", "stock"]
PROMPT = "User: I want to book a table.\nAssistant:"


def run(*arguments: str, typed: str | None = None) -> Result:
    return CliRunner().invoke(app, [*arguments], input=typed)


def generate(*arguments: str) -> Result:
    return run("generate", "demo", *SMALL, "--max-new-tokens", "8", *arguments)


def require_error(result: Result, *parts: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.splitlines()[-1].startswith("error: "), result.stderr
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr


@pytest.fixture(scope="module")
def expected(demo: LanguageModel) -> Any:
    return demo.generate(PROMPT, hasten.SamplingParams(max_new_tokens=8), drafter="off")


def test_help_needs_no_torch() -> None:
    code = "import sys, hasten.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    result = run("--help")
    for command in ("demo", "generate", "chat", "info", "systems", "bench", "train"):
        assert command in result.output


def test_shells_complete_commands_and_options() -> None:
    for words, expected in (
        ("hasten gen", "generate"),
        ("hasten generate demo --freq", "--frequency-penalty"),
    ):
        asked = {
            "_HASTEN_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
        }
        result = CliRunner().invoke(app, [], env=asked, prog_name="hasten")
        assert result.stdout.split() == [expected]


def test_version() -> None:
    assert run("--version").output.strip() == hasten.__version__


def test_generate_streams_the_text(expected: Any) -> None:
    result = generate("-p", PROMPT)
    assert result.exit_code == 0
    assert result.stdout == expected.text + "\n"
    assert "8 tokens in" in result.stderr


def test_generate_under_another_policy(expected: Any) -> None:
    for policy in ("ems", "bass"):
        assert generate("-p", PROMPT, "--policy", policy).stdout == expected.text + "\n"
        result = generate("-p", PROMPT, "-p", "Once", "--json", "--batch", "2", "--policy", policy)
        assert json.loads(result.stdout.splitlines()[0])["token_ids"] == expected.token_ids


def test_generate_json_of_several_prompts(expected: Any) -> None:
    result = generate("-p", PROMPT, "-p", "Once", "--json", "--batch", "2", "--drafter", "off")
    first, second = map(json.loads, result.stdout.splitlines())
    assert first["token_ids"] == expected.token_ids
    assert first["text"] == expected.text
    assert first["stats"]["num_steps"] == 8
    assert second["prompt"] == "Once"


def test_generate_from_files(tmp_path: Path, expected: Any) -> None:
    (tmp_path / "one.txt").write_text(PROMPT)
    assert generate("--file", str(tmp_path / "one.txt")).stdout == expected.text + "\n"
    (tmp_path / "two.jsonl").write_text('{"question": "I want to book a table."}\n{"prompt": "Once"}\n')
    lines = generate("--file", str(tmp_path / "two.jsonl"), "--json").stdout.splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == [PROMPT, "Once"]
    assert json.loads(lines[0])["text"] == expected.text


def test_generate_stops_at_a_string(expected: Any) -> None:
    word = expected.text.split()[2]
    result = generate("-p", PROMPT, "--stop", word, "--json")
    assert json.loads(result.stdout)["text"] == expected.text.split(word)[0]


def test_generate_takes_all_that_sampling_params_take(demo: LanguageModel) -> None:
    """Every field has an option, and what it says arrives."""
    params = hasten.SamplingParams(
        max_new_tokens=8,
        temperature=0.8,
        top_k=50,
        top_p=0.95,
        min_p=0.01,
        typical_p=0.9,
        seed=3,
        repetition_penalty=1.2,
        frequency_penalty=0.5,
        presence_penalty=-0.5,
        logit_bias={262: 2.0, 14: float("-inf")},
        min_tokens=3,
        stop_token_ids=(7, 9),
        ignore_eos=True,
        logprobs=2,
        stop=("the end",),
    )
    plain = hasten.SamplingParams()
    others = {"n", "logits_processors"}
    assert {name for name in plain.__slots__ if getattr(params, name) == getattr(plain, name)} == others
    options = ["--temperature", "0.8", "--top-k", "50", "--top-p", "0.95", "--min-p", "0.01", "--seed", "3"]
    options += ["--typical-p", "0.9", "--repetition-penalty", "1.2", "--frequency-penalty", "0.5"]
    options += ["--presence-penalty", "-0.5", "--logit-bias", "262=2", "--logit-bias", "14=-inf"]
    options += ["--min-tokens", "3", "--stop-token-id", "7", "--stop-token-id", "9", "--ignore-eos"]
    result = generate("-p", PROMPT, "--json", "--logprobs", "2", "--stop", "the end", *options)
    found, output = json.loads(result.stdout), demo.generate(PROMPT, params)
    assert found["token_ids"] == output.token_ids
    assert [each["token_id"] for each in found["logprobs"]] == output.token_ids
    assert [len(each["top"]) for each in found["logprobs"]] == [2] * len(output.token_ids)


def test_sampling_can_be_repeated() -> None:
    options = ["-p", PROMPT, "--temperature", "0.9", "--top-k", "40", "--top-p", "0.9", "--min-p", "0.01"]
    texts = [generate(*options, "--seed", "5", "--drafter", name).stdout for name in ("auto", "off")]
    assert texts[0] == texts[1]
    assert texts[0] != generate(*options, "--seed", "6").stdout


def test_trace_has_a_line_a_step(tmp_path: Path, expected: Any) -> None:
    path = tmp_path / "trace.jsonl"
    result = generate("-p", PROMPT, "--trace", str(path), "--num-draft-tokens", "6", "--drafter", "suffix")
    assert result.exit_code == 0
    steps = [json.loads(line) for line in path.read_text().splitlines()]
    written = [token for step in steps for token in step["sequences"][0]["written_token_ids"]]
    assert written == expected.token_ids
    assert [step["step"] for step in steps] == list(range(len(steps)))
    for step in steps:
        assert {"draft", "forward", "verify", "other"} <= set(step["milliseconds"])
        tree = step["sequences"][0]["tree"]
        assert len({len(values) for values in tree.values()}) == 1
        assert all(isinstance(source, str) for source in tree["sources"])


def test_store_is_made_and_used_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "some.store"
    steps = []
    for _ in range(2):
        result = generate("-p", PROMPT, "--store", str(path), "--json", "--num-draft-tokens", "8")
        assert result.exit_code == 0
        steps.append(json.loads(result.stdout)["stats"]["num_steps"])
    assert path.is_file()
    assert steps[1] < steps[0]


@pytest.mark.parametrize("options", [["-p", PROMPT], ["-p", PROMPT, "-p", "Once", "--json"]])
def test_interrupt_keeps_text_and_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: Any, options: list[str]
) -> None:
    from hasten.drafters import NoDrafter

    seen = []

    def observe(self: NoDrafter, *_: object) -> None:
        seen.append(1)
        if len(seen) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(NoDrafter, "observe", observe)
    path = tmp_path / "some.store"
    result = generate(*options, "--drafter", "off", "--store", str(path))
    assert result.exit_code == 130
    assert path.is_file()
    text = (
        json.loads(result.stdout.splitlines()[0])["text"]
        if "--json" in options
        else result.stdout.rstrip("\n")
    )
    assert text
    assert expected.text.startswith(text)


def test_mistakes_in_generate(tmp_path: Path) -> None:
    require_error(run("generate", str(tmp_path / "nothing"), "-p", "x"), "no model at")
    require_error(run("generate", str(tmp_path), "-p", "x"), "config.json")
    require_error(generate("-p", "x", "--drafter", "psychic"), "psychic", "suffix")
    require_error(generate("-p", "x", "--policy", "none"), "policy='none'", "cost, ems, bass")
    require_error(generate("-p", "x", "--policy", "ems", "--num-draft-tokens", "3"), "give one of them")
    require_error(generate("-p", "", "-p", "x"), "prompt is empty")
    require_error(generate(), "--prompt")
    require_error(generate("-p", "x", "--file", "y"), "--prompt")
    require_error(generate("--file", str(tmp_path / "no.txt")), "cannot read")
    require_error(generate("-p", "x", "--temperature", "-1"), "temperature=-1")
    require_error(generate("-p", "x", "--logit-bias", "5:2"), "--logit-bias '5:2'", "42=-1.5")
    require_error(generate("-p", "x", "--logprobs", "2"), "--logprobs 2", "--json")
    require_error(generate("-p", "x", "--min-tokens", "9"), "min_tokens=9", "max_new_tokens=8")
    require_error(generate("-p", "word " * 3000), "the context holds 2048")
    require_error(run("generate", "demo", "-p", "x", "--dtype", "float16", "--device", "cpu"), "float16")


def test_a_corrupt_store_is_an_error_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "some.store"
    path.write_bytes(b"not a store")
    require_error(generate("-p", "x", "--store", str(path)), "some.store")
    assert path.read_bytes() == b"not a store"


def test_chat_remembers_and_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = []
    stream = LanguageModel.stream

    def spy(self: LanguageModel, prompt: Any, *arguments: Any, **options: Any) -> Any:
        prompts.append(prompt)
        return stream(self, prompt, *arguments, **options)

    monkeypatch.setattr(LanguageModel, "stream", spy)
    typed = "/stats\nHello!\n/stats\nA latte, please.\n/reset\nHello!\n/what\n/exit\n"
    result = run("chat", "demo", *SMALL, "--max-new-tokens", "8", typed=typed)
    assert result.exit_code == 0
    assert prompts[0] == prompts[2] == "User: Hello!\nAssistant:"
    assert prompts[1].startswith("User: Hello!\nAssistant: ")
    assert prompts[1].endswith("\nUser: A latte, please.\nAssistant:")
    for part in ("nothing was answered yet", "tokens a step", "is forgotten", "/what is unknown"):
        assert part in result.output


def test_ctrl_c_stops_the_answer_not_the_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[str] = []

    def interrupted(self: LanguageModel, prompt: str, *_: object) -> Any:
        prompts.append(prompt)
        yield hasten.Piece(" Half an", 5, "target")
        raise KeyboardInterrupt

    monkeypatch.setattr(LanguageModel, "stream", interrupted)
    result = run("chat", "demo", *SMALL, typed="Hello!\nGo on.\n")
    assert result.exit_code == 0
    assert prompts[1] == "User: Hello!\nAssistant: Half an\nUser: Go on.\nAssistant:"


def test_chat_survives_errors() -> None:
    long = "word " * 3000
    result = run("chat", "demo", *SMALL, "--max-new-tokens", "4", typed=f"{long}\nHello!\n/stats\n")
    assert result.exit_code == 0
    assert "the context holds 2048" in result.stderr
    assert "4 tokens in" in result.output


def test_info() -> None:
    result = run("info", "demo-draft", *SMALL, "--json")
    facts = json.loads(result.stdout)
    assert facts["probe"]["mode"] == "tree"
    assert facts["forward"].pop("startup_seconds") >= 0
    assert facts["forward"] == {"chosen": "stock", "reason": "as asked"}
    assert facts["architecture"] == "LlamaForCausalLM"
    assert facts["cost_ratio"]["1"] == 1
    assert set(facts["cost_ms"]) >= {"1", "16", "64"}
    table = run("info", "demo-draft", *SMALL).output
    assert (
        table.index("LlamaForCausalLM")
        < table.index("measuring passes")
        < table.index("milliseconds of a pass")
    )
    assert re.search(
        r"differ from those of plain passes by \d\S* % of what a wrong token", " ".join(table.split())
    )
    quick = json.loads(run("info", "demo-draft", "--quick", "--json").stdout)
    assert quick["parameters"] == facts["parameters"]
    assert (quick["probe"], quick["forward"], "cost_ms" in quick) == (None, None, False)
    assert "vocabulary" in run("info", "demo-draft", "--quick").output
    require_error(run("info", "demo", "--shape", "9z"), "9z")


def test_systems() -> None:
    from hasten import drafters, models, policies

    rows = json.loads(run("systems", "--json").stdout)
    names = [row["name"] for row in rows]
    assert len(set(names)) == len(names)
    for package in (drafters, policies, models):
        assert {system.name for system in package.SYSTEMS} <= set(names)
    shown = run("systems").output
    for row in rows:
        assert {"title", "arxiv", "kind", "guarantee", "module", "summary"} <= set(row)
        assert importlib.util.find_spec(row["module"]), row["module"]
        assert row["name"] in shown
    asked_as = {row["name"]: row["asked_as"] for row in rows}
    assert asked_as["rsd-s"] == "draft-rsd-s"
    assert asked_as["fast-dllm-threshold"] == "threshold"


def test_demo_shows_a_table() -> None:
    result = run("demo", "--shape", "none", "--dtype", "float32", "--max-new-tokens", "6")
    assert result.exit_code == 0
    for part in (
        "booking",
        "answer repeats prompt",
        "speed-up",
        "geometric mean",
        "hasten generate MODEL",
        "yes",
    ):
        assert part in result.output
    require_error(run("demo", "--shape", "huge"), "huge", "135m")


def test_demo_of_another_model(tmp_path: Path) -> None:
    """A folder without a chat template is given texts to go on with, one with a template is asked."""
    model = str(bundled_path("demo-draft"))
    small = ("--dtype", "float32", "--forward", "stock", "--max-new-tokens", "3")
    shown = run("demo", model, *small).output
    for part in ("def fibonacci(n):", "the same text", "geometric mean", "stock, for both"):
        assert part in shown
    shutil.copytree(model, tmp_path / "chat")
    (tmp_path / "chat" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    (tmp_path / "one.jsonl").write_text('{"turns": ["Hello"]}\n{"prompt": "Once upon"}\n')
    chat = run("demo", str(tmp_path / "chat"), *small).output
    assert "Tell me a short story" in chat
    assert "NO" not in chat
    own = run("demo", model, *small, "--prompts", str(tmp_path / "one.jsonl")).output
    assert "Hello" in own
    assert "Once upon" in own
    require_error(run("demo", model, "--shape", "135m"), "--shape is for the bundled model")
    require_error(run("demo", "demo-diffusion"), "diffusion model", "hasten generate")


def test_warmup_says_what_takes_how_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shown = run(
        "warmup", "demo-draft", "--dtype", "float32,bfloat16", "--forward", "stock", "--drafter", "suffix"
    )
    assert shown.exit_code == 0
    steps = [line.partition(" ... ") for line in shown.output.splitlines()]
    written = [
        "write plainly",
        "write with suffix, greedy",
        "write with suffix, sampled",
        "write 2 texts side by side",
    ]
    tried = "try what it can verify in one pass"
    expected = [[f"load demo-draft in {dtype}", tried, *written] for dtype in ("float32", "bfloat16")]
    assert [step for step, _, _ in steps[:-1]] == expected[0] + expected[1]
    assert all(re.fullmatch(r"(.*, )?\d+\.\d s", result) for _, _, result in steps[:-1])
    assert steps[-1][0].startswith("ready after")
    prices = [json.loads(path.read_text()) for path in (tmp_path / "hasten" / "prices").iterdir()]
    assert len(prices) == 2  # of both dtypes
    assert all(kept["passes"] for kept in prices)
    require_error(run("warmup", "demo", "--batch", "0"), "batch=0")
    require_error(run("warmup", "demo-diffusion"), "diffusion model")


def test_sources_have_colours() -> None:
    assert style_of("target") == ""
    assert len({style_of(name) for name in ("suffix", "aded", "token-recycling", "suffix+aded", "own")}) == 5
    assert "several of them" in legend(("suffix", "aded")).plain


def test_train_lm(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat and the dog sat on the cat. " * 200)
    recipe = {"files": ["text.txt"], "tokenizer": "demo", "hidden_size": 32, "intermediate_size": 32}
    recipe |= {"num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16, "steps": 4}
    recipe |= {"batch_size": 2, "sequence_length": 16, "warmup_steps": 1, "held_out_fraction": 0}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    options = ["--data", str(tmp_path), "--output", str(tmp_path / "out"), "--device", "cpu"]
    result = run("train", "lm", str(tmp_path / "recipe.json"), *options, "--steps", "2")
    assert result.exit_code == 0, result.output
    assert "2/2" in result.output
    assert (tmp_path / "out" / "model.safetensors").is_file()
    require_error(run("train", "lm", str(tmp_path / "none.json"), *options), "none.json")
