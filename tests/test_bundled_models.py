"""The bundled models load from their folders, share one tokenizer but for the lists, and stay small."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hasten.diffusion.canvas import DenoiserSpec
from hasten.diffusion.list_tasks import WORDS, sample_questions
from hasten.errors import ConfigError
from hasten.models.bundled_models import BUNDLED, bundled_path

MAX_TOTAL_BYTES = 39_500_000
TEXT_MODELS = ("demo", "demo-draft", "demo-diffusion")


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_loads_in_bfloat16_with_its_tokenizer(name: str) -> None:
    folder = bundled_path(name)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config.vocab_size == len(tokenizer) == 8192
    assert model.config.eos_token_id == tokenizer.eos_token_id == 0
    assert tokenizer.decode(tokenizer("def main():\n")["input_ids"]) == "def main():\n"


def test_models_of_text_share_one_tokenizer() -> None:
    assert len({(bundled_path(name) / "tokenizer.json").read_bytes() for name in TEXT_MODELS}) == 1


def test_the_model_of_lists_knows_their_words() -> None:
    folder = bundled_path("demo-lists")
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    question = sample_questions("insert_index", 1, seed=0)[0]
    assert tokenizer.decode(tokenizer(question.prompt)["input_ids"]) == question.prompt
    assert tokenizer.unk_token_id not in tokenizer(" ".join(WORDS))["input_ids"]
    assert model.config.vocab_size == len(tokenizer)
    assert model.num_parameters() < 1_000_000


@pytest.mark.parametrize("name", ["demo-diffusion", "demo-lists"])
def test_masked_diffusion_models_say_how_they_are_asked(name: str) -> None:
    folder = bundled_path(name)
    spec = DenoiserSpec.load(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert spec == DenoiserSpec(
        mask_id=tokenizer.mask_token_id, eos_ids=(tokenizer.eos_token_id,), pad_id=tokenizer.pad_token_id
    )
    assert AutoModelForCausalLM.from_pretrained(folder).config.is_causal is False


def test_every_bundled_folder_is_named_and_the_total_is_small() -> None:
    root = bundled_path("demo").parent
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == sorted(BUNDLED)
    assert sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) <= MAX_TOTAL_BYTES


def test_attribution_travels_with_the_weights() -> None:
    notice = Path(bundled_path("demo").parent / "NOTICE.md").read_text(encoding="utf-8")
    assert "Taskmaster-4" in notice
    assert "CC BY 4.0" in notice


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'demo-large'.*demo, demo-draft"):
        bundled_path("demo-large")
