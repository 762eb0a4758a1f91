"""The drop-in runs passes as `load` does, and gives the model back as it was."""

from __future__ import annotations

import pytest
import torch

import hasten
from compiled_models import decoder, needs_mkldnn
from hasten.errors import ConfigError, ModelError
from hasten.models.forwards.compiled.executor import CompiledForward
from hasten.models.forwards.stand_in import StandIn

WAYS = ["compiled", pytest.param("packed", marks=needs_mkldnn)]
PROMPT = torch.tensor([[5, 9, 13, 22, 5, 9, 13]])


def greedy(model, **options):
    given = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, **options}
    return model.generate(PROMPT, attention_mask=torch.ones_like(PROMPT), **given).tolist()


def tied_gemma():
    model = decoder("gemma3")
    model.get_output_embeddings().weight = model.get_input_embeddings().weight
    return model


@pytest.mark.parametrize("way", [*WAYS, "auto"])
def test_the_text_is_that_of_generate_in_every_forward(way):
    expected = greedy(tied_gemma())
    model = hasten.accelerate(tied_gemma(), forward=way)
    assert greedy(model) == expected
    assert greedy(model, drafter="off") == expected
    if way == "compiled":
        assert isinstance(model.generate.language_model.target.forward, CompiledForward)
    assert model.generate.original(PROMPT, max_new_tokens=4, do_sample=False).shape == (1, 11)


@pytest.mark.parametrize("way", WAYS)
def test_restore_gives_the_model_back_as_it_was(way):
    model, stock = tied_gemma(), tied_gemma()
    before = {name: id(module) for name, module in model.named_modules()}
    parameters = {name: id(parameter) for name, parameter in model.named_parameters()}
    hasten.accelerate(model, forward=way)
    assert any(isinstance(module, StandIn) for module in model.modules())
    with pytest.raises(ConfigError, match=r"hasten.restore\(model\)"):
        model.train()
    assert hasten.restore(model) is model
    assert {name: id(module) for name, module in model.named_modules()} == before
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == parameters
    assert model.state_dict().keys() == stock.state_dict().keys()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in stock.state_dict().items())
    assert "generate" not in vars(model)
    model.train()(PROMPT, labels=PROMPT).loss.backward()


@pytest.mark.parametrize("way", ["stock", *WAYS])
def test_a_changed_model_is_prepared_again(way):
    model, stock = tied_gemma(), tied_gemma()
    hasten.accelerate(model, forward=way)
    greedy(model)
    for one in (model, stock):
        with torch.no_grad():
            one.model.norm.weight.mul_(-3)
            one.model.layers[0].input_layernorm.weight.add_(2)
    assert greedy(model) == greedy(stock)


def test_resized_embeddings_are_used():
    model, stock = tied_gemma(), tied_gemma()
    hasten.accelerate(model)
    greedy(model)
    for one in (model, stock):
        torch.manual_seed(0)
        one.resize_token_embeddings(48, mean_resizing=False)
    assert greedy(model) == greedy(stock)
    assert model.generate.language_model.target.vocab_size == 48


def test_a_loaded_model_that_was_changed_is_refused():
    lm = hasten.load(tied_gemma())
    lm.target.forward.model.resize_token_embeddings(48, mean_resizing=False)
    with pytest.raises(ModelError, match="changed after it was prepared"):
        lm.generate([5, 6, 7], hasten.SamplingParams(max_new_tokens=2))
