"""Naming a draft model: in Python, on the command line, and what is said where it cannot work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

import hasten
from conftest import VOCAB, build_model
from hasten.cli import app
from hasten.drafters import AUTO, DRAFT, Resources, draft_of, make_drafter, parts_of
from hasten.errors import ConfigError, StoreError
from hasten.models.draft.draft_lm import load_draft
from hasten.models.forwards.packed import PackedLinear
from hasten.text.engine import LanguageModel
from seq2seq_models import build_seq2seq

SMALL = ["--dtype", "float32", "--device", "cpu", "--forward", "stock"]
PROMPT = "User: I want to book a table.\nAssistant:"
PARAMS = hasten.SamplingParams(max_new_tokens=16)


def run(*arguments: object, typed: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=typed)


def require_error(result: Result, *parts: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr


@pytest.fixture(scope="module")
def pair() -> LanguageModel:
    return hasten.load(
        "demo", draft="demo-draft", drafter="off", dtype="float32", device="cpu", forward="stock"
    )


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trimmed vocabulary made by the command, of a text like those that are asked for."""
    folder = tmp_path_factory.mktemp("trim")
    (folder / "text.txt").write_text(
        "What time would you like the reservation to be? I want to book a table. " * 9
    )
    options = ["--data", folder / "text.txt", "--keep", 12, "-o", folder / "kept.safetensors"]
    result = run("train", "trim", "demo-draft", *options)
    assert result.exit_code == 0, result.output
    assert "12 tokens" in result.stdout
    assert f"--draft demo-draft --draft-vocab {folder / 'kept.safetensors'}" in result.stdout
    return folder / "kept.safetensors"


# In Python


def test_a_draft_model_is_loaded_as_the_target_is(pair):
    draft = pair.resources.draft
    assert draft is not None
    assert draft.name == "demo-draft"
    assert draft.model.dtype == torch.float32
    assert draft.vocabulary.is_same
    assert not any(isinstance(module, PackedLinear) for module in draft.model.forward.model.modules())
    packed = hasten.load("demo-draft", draft="demo-draft", dtype="float32", device="cpu", forward="packed")
    assert packed.resources.draft is not None
    layers = packed.resources.draft.model.forward.model.modules()
    assert any(isinstance(module, PackedLinear) for module in layers)


def test_without_one_there_is_none(demo):
    assert demo.resources.draft is None


def test_a_language_model_takes_any_draft(pair):
    target, tokenizer = pair.target, pair.tokenizer
    by_name = LanguageModel(target, tokenizer, drafter="off", draft="demo-draft").resources.draft
    assert by_name is not None
    assert by_name.name == "demo-draft"
    again = LanguageModel(target, tokenizer, drafter="off", draft=by_name)
    assert again.resources.draft is by_name


def test_model_objects_need_no_tokenizer_for_equal_vocabularies():
    lm = hasten.load(build_model(), draft=build_model(seed=1), drafter="off")
    assert lm.resources.draft is not None
    assert lm.resources.draft.target_vocab_size == VOCAB
    with pytest.raises(ConfigError, match="no tokenizer"):
        hasten.load(build_model(), draft=build_model(vocab_size=50))
    with pytest.raises(ConfigError, match="name or folder"):
        hasten.load(build_model(), draft=build_model(), draft_device="cpu")


def test_a_name_may_draft_for_an_object(pair):
    lm = hasten.load(
        pair.target.forward.model,
        tokenizer=pair.tokenizer,
        draft="demo-draft",
        draft_device="cpu",
        drafter="off",
    )
    assert lm.resources.draft is not None
    assert lm.resources.draft.model.dtype == torch.bfloat16


def test_a_trimmed_vocabulary_is_taken_along(kept):
    lm = hasten.load("demo", draft="demo-draft", draft_vocab=kept, drafter="off", device="cpu")
    assert lm.resources.draft is not None
    assert lm.resources.draft.num_proposable == 12


@pytest.mark.parametrize("drafter", ["auto", "draft", "suffix+draft"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_the_draft_model_guesses_and_the_text_stays(pair, drafter, temperature):
    params = hasten.SamplingParams(max_new_tokens=24, temperature=temperature, seed=3)
    plain = pair.generate(PROMPT, params, drafter="off")
    found = pair.generate(PROMPT, params, drafter=drafter, num_draft_tokens=8)
    assert found.token_ids == plain.token_ids
    has_drafted = any("draft" in source for source in found.stats.tokens_per_source)
    assert has_drafted or found.stats.resting_steps["draft"]  # on a small target it does not pay


def test_a_trimmed_draft_proposes_only_what_was_kept(pair, kept):
    draft = load_draft(
        "demo-draft", target=pair.target, target_tokenizer=pair.tokenizer, draft_vocab=kept, dtype="float32"
    )
    lm = LanguageModel(pair.target, pair.tokenizer, drafter="draft", draft=draft)
    proposed: set[int] = set()

    def note(step: Any) -> None:
        proposed.update(token for gain in step.gains for token in gain.tree.token_ids.tolist())

    found = lm.generate(PROMPT, PARAMS, num_draft_tokens=8, trace=note)
    assert proposed
    assert proposed <= set(draft.head_ids.tolist())
    assert found.token_ids == pair.generate(PROMPT, PARAMS, drafter="off").token_ids


def test_auto_is_joined_by_the_draft_model_where_there_is_one(pair):
    assert parts_of("auto", has_draft=False) == AUTO
    assert parts_of("auto", has_draft=True) == (*AUTO, DRAFT)
    assert parts_of("off", has_draft=True) == ()
    assert parts_of("suffix+draft", has_draft=False) == ("suffix", "draft")
    assert pair.drafter("auto").name == "auto"


def test_what_needs_a_draft_model_says_how_to_give_one(demo):
    with pytest.raises(ConfigError, match=r"draft=MODEL / --draft MODEL"):
        draft_of(Resources(VOCAB))
    for name in ("draft", "suffix+draft"):
        with pytest.raises(ConfigError, match=r"--draft MODEL"):
            make_drafter(name, demo.resources)


def test_a_store_is_for_auto_with_a_draft_model_or_without(pair, demo, tmp_path):
    for writer, reader in ((pair, demo), (demo, pair)):
        writer.save_store(tmp_path / "store", "auto")
        with pytest.raises(StoreError, match="auto with a draft model is another than auto without"):
            reader.load_store(tmp_path / "store", "auto")


def test_options_of_a_draft_model_need_one(kept):
    for options in ({"draft_device": "cpu"}, {"draft_vocab": kept}):
        with pytest.raises(ConfigError, match="give draft= too"):
            hasten.load("demo-draft", **options)


def test_an_encoder_decoder_model_takes_no_draft_model():
    with pytest.raises(ConfigError, match="reads with an encoder"):
        hasten.load(build_seq2seq("t5"), draft="demo-draft")


# On the command line


def generate(*arguments: object) -> Result:
    return run("generate", "demo", *SMALL, "--max-new-tokens", 16, "-p", PROMPT, *arguments)


@pytest.mark.parametrize("drafter", ["auto", "draft"])
def test_generate_with_a_draft_model(kept, drafter):
    plain = json.loads(generate("--json", "--drafter", "off").stdout)
    options = ["--draft", "demo-draft", "--num-draft-tokens", 8, "--drafter", drafter]
    for more in ([], ["--draft-device", "cpu"], ["--draft-vocab", kept]):
        result = generate("--json", *options, *more)
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        assert found["token_ids"] == plain["token_ids"]
        assert any("draft" in source for source in found["stats"]["tokens_per_source"])


def test_chat_with_a_draft_model(monkeypatch):
    seen = []
    stream = LanguageModel.stream

    def spy(self: LanguageModel, *arguments: Any, **options: Any) -> Any:
        seen.append(self.resources.draft)
        return stream(self, *arguments, **options)

    monkeypatch.setattr(LanguageModel, "stream", spy)
    result = run("chat", "demo", *SMALL, "--max-new-tokens", 4, "--draft", "demo-draft", typed="Hello!\n")
    assert result.exit_code == 0, result.output
    assert [draft.name for draft in seen] == ["demo-draft"]


def test_info_tells_about_the_draft_model(kept):
    options = ["info", "demo-draft", *SMALL, "--draft", "demo-draft"]
    facts = json.loads(run(*options, "--json").stdout)["draft"]
    assert facts["shared_tokens"] == facts["proposable_tokens"] == 8192
    assert facts["same_tokenizer"] is True
    assert list(facts["pass_ms"]) == [str(number) for number in facts["exits"]]
    assert all(spent > 0 for spent in facts["pass_ms"].values())
    assert (facts["model"], facts["dtype"], facts["device"]) == ("demo-draft", "float32", "cpu")
    shown = " ".join(run(*options, "--draft-vocab", kept).output.split())
    for part in ("the same tokenizer", "12 of them may be proposed", f"ms after {facts['exits'][-1]} layers"):
        assert part in shown
    assert json.loads(run("info", "demo-draft", *SMALL, "--json").stdout)["draft"] is None


def test_mistakes_on_the_command_line(kept, tmp_path):
    require_error(generate("--drafter", "draft"), "--draft MODEL")
    require_error(
        generate("--drafter", "suffix", "--draft", "demo-draft"), "'suffix' does not use a draft model"
    )
    require_error(generate("--drafter", "off", "--draft", "demo-draft"), "does not use a draft model")
    require_error(generate("--draft-device", "cpu"), "give --draft MODEL too")
    require_error(generate("--draft-vocab", kept), "give --draft MODEL too")
    require_error(generate("--draft", tmp_path / "none"), "no model at")
    require_error(generate("--draft", "demo-draft", "--draft-device", "cuda:99"), "cuda:99")
    require_error(generate("--draft", "demo-draft", "--draft-vocab", tmp_path / "no"), "train trim")
    require_error(run("info", "demo-draft", "--draft-device", "cpu"), "give --draft MODEL too")
