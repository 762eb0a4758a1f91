"""A recipe is read whole or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hasten.errors import ConfigError
from hasten.training.recipe import TrainingConfig

GIVEN: dict[str, Any] = {"files": ("a.txt",), "output": "out", "vocab_size": 300}
RECIPES = Path(__file__).parents[2] / "models"


def write(folder: Path, options: object) -> Path:
    path = folder / "recipe.json"
    path.write_text(json.dumps(options), encoding="utf-8")
    return path


def test_overrides_win_and_none_leaves_the_recipe(tmp_path: Path) -> None:
    recipe = write(tmp_path, {"files": ["a.txt", "b.txt"], "steps": 5, "vocab_size": 300})
    config = TrainingConfig.load(recipe, output="out", steps=7, seed=None)
    assert config.files == ("a.txt", "b.txt")
    assert (config.steps, config.seed, config.output) == (7, 0, "out")


def test_a_given_tokenizer_takes_the_place_of_a_vocabulary_size(tmp_path: Path) -> None:
    recipe = write(tmp_path, {"files": ["a.txt"], "output": "out", "vocab_size": 300})
    assert TrainingConfig.load(recipe, tokenizer="demo").vocab_size is None
    recipe = write(tmp_path, {"files": ["a.txt"], "output": "out", "tokenizer": "demo"})
    assert TrainingConfig.load(recipe, vocab_size=400).tokenizer is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"files": ["a"], "output": "o", "vocab_size": 300, "step": 3}, "unknown option step;.*steps"),
        ({"output": "o", "vocab_size": 300}, "files must be given"),
        ([1, 2], "must be a JSON object"),
    ],
)
def test_bad_recipes_are_refused(options: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainingConfig.load(write(tmp_path, options))


def test_unknown_override_broken_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="overrides: unknown option widht"):
        TrainingConfig.load(write(tmp_path, {}), widht=None)
    with pytest.raises(ConfigError, match=r"none\.json cannot be read"):
        TrainingConfig.load(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="is not JSON"):
        TrainingConfig.load(tmp_path / "broken.json")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("steps", "10"),
        ("steps", True),
        ("learning_rate", 0.0),
        ("files", ()),
        ("files", "a.txt"),
        ("num_kv_heads", 3),
        ("sequence_length", 4096),
        ("held_out_fraction", 1.0),
        ("precision", "float16"),
        ("vocab_size", None),
        ("distill_weight", 1.5),
    ],
)
def test_values_that_cannot_work_are_named(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{name}="):
        TrainingConfig(**{**GIVEN, name: value})


def test_a_tokenizer_is_used_or_trained_but_not_both() -> None:
    with pytest.raises(ConfigError, match="tokenizer='demo' and vocab_size=300"):
        TrainingConfig(**GIVEN, tokenizer="demo")


def test_a_resumed_run_may_move_but_not_change() -> None:
    config = TrainingConfig(**GIVEN)
    TrainingConfig(**GIVEN, device="cpu", report_every=1).require_same_run(config.as_dict())
    with pytest.raises(ConfigError, match="batch_size was 32 and is 8 now"):
        TrainingConfig(**GIVEN, batch_size=8).require_same_run(config.as_dict())


@pytest.mark.parametrize("name", ["demo", "demo-draft"])
def test_recipes_have_the_shape_of_the_bundled_models(name: str) -> None:
    from transformers import AutoConfig

    from hasten.models.bundled_models import bundled_path

    config = TrainingConfig.load(RECIPES / f"{name}.json", output="out")
    bundled = AutoConfig.from_pretrained(bundled_path(name))
    assert config.tokenizer == "demo"
    assert config.hidden_size == bundled.hidden_size
    assert config.intermediate_size == bundled.intermediate_size
    assert config.num_layers == bundled.num_hidden_layers
    assert config.num_heads == bundled.num_attention_heads
    assert config.num_kv_heads == bundled.num_key_value_heads
    assert config.head_dim == bundled.head_dim
    assert config.tie_word_embeddings == bundled.tie_word_embeddings
    assert config.max_position_embeddings == bundled.max_position_embeddings
    assert config.rms_norm_eps == bundled.rms_norm_eps
    assert config.rope_theta == bundled.rope_parameters["rope_theta"]
