"""The bundled draft model is what its recipe says, and follows the bundled target."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedModel

from hasten.models.bundled_models import bundled_path
from hasten.training.cutting import agreements
from hasten.training.recipe import TrainingConfig

PROMPTS = (
    "User: I would like to book a table for two in San Jose tonight.\nAssistant:",
    "Once upon a time there was a little girl who",
    "def add(a, b):",
    "User: Tom has 12 apples and gives 5 to Ann. How many apples are left?\nAssistant:",
    "It was late in the evening when the old man",
    "class Stack:\n    def __init__(self):",
)


def load(name: str) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(bundled_path(name), dtype=torch.float32)
    return model


def test_its_exits_are_those_of_the_recipe() -> None:
    recipe = Path(__file__).parents[2] / "models" / "demo-draft.json"
    config = TrainingConfig.load(recipe, output="out")
    draft = load("demo-draft")
    assert type(draft) is LlamaForCausalLM
    assert draft.config.hasten_exits == [*config.exits, config.num_layers]
    assert (config.start_from, config.distill_from) == ("demo", "demo")
    assert len(config.keep_layers) == draft.config.num_hidden_layers


@pytest.fixture(scope="module")
def shares() -> list[float]:
    """Of what `demo` writes greedily, the share that `demo-draft` predicts, by exit."""
    target, draft = load("demo"), load("demo-draft")
    tokenizer = AutoTokenizer.from_pretrained(bundled_path("demo"))
    counts, positions = torch.zeros(3, dtype=torch.long), 0
    for prompt in PROMPTS:
        given = tokenizer(prompt, return_tensors="pt")
        written = target.generate(**given, max_new_tokens=48, do_sample=False)
        first = given["input_ids"].shape[1] - 1
        counts += agreements(draft, target, written[:, :-1], tuple(draft.config.hasten_exits), first)
        positions += written.shape[1] - 1 - first
    return (counts / positions).tolist()


def test_most_of_what_the_target_writes_is_foreseen(shares: list[float]) -> None:
    assert shares[-1] > 0.6


def test_every_layer_adds_to_it(shares: list[float]) -> None:
    assert shares == sorted(shares)
