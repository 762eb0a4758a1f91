"""A draft model begins as layers of its target and learns at several depths; loss and report say how well."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from hasten.errors import ConfigError, IncompatibleModels
from hasten.training import cutting
from hasten.training.cutting import ExitLoss, agreements, cut, hidden_states_at

VOCAB = 40


def llama(num_layers: int, seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    options: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "initializer_range": 0.3,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**options | changes))
    model.train(False)
    return model


def token_ids(rows: int = 3, length: int = 7) -> torch.Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("tied", [True, False])
def test_a_cut_model_is_the_source_without_the_other_layers(tied: bool) -> None:
    source, model = llama(4, tie_word_embeddings=tied), llama(2, seed=1, tie_word_embeddings=tied)
    cut(source, model, (0, 3), "big")
    del source.model.layers[1:3]
    for index, layer in enumerate(source.model.layers):
        layer.self_attn.layer_idx = index
    assert torch.equal(model(token_ids()).logits, source(token_ids()).logits)


def test_padding_behind_the_sources_vocabulary_is_left_out() -> None:
    source, model = llama(2, vocab_size=VOCAB + 8), llama(2, seed=1)
    cut(source, model, (0, 1), "big")
    expected = source(token_ids()).logits[..., :VOCAB]
    torch.testing.assert_close(model(token_ids()).logits, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"intermediate_size": 64}, r"intermediate_size=48 .*has 64"),
        ({"num_attention_heads": 4, "head_dim": 8}, r"num_heads=2 .*has 4"),
        ({"tie_word_embeddings": False}, r"tie_word_embeddings=True .*has False"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
            r"rope_theta=10000\.0 .*has 500",
        ),
    ],
)
def test_a_source_of_another_shape_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cut(llama(2, **changes), llama(1), (0,), "big")


def test_a_layer_that_the_source_lacks_is_named() -> None:
    with pytest.raises(ConfigError, match=r"keep_layers=\[0, 2\] .*no layer 2; its layers are 0 to 1"):
        cut(llama(2), llama(2), (0, 2), "big")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_bias": True}, "'attention_bias': True"),
        ({"hidden_act": "gelu"}, "'hidden_act': 'gelu'"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}}, "'linear'"),
    ],
)
def test_a_llama_with_parts_that_a_recipe_cannot_say_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(IncompatibleModels, match=message):
        cut(llama(2, **changes), llama(1), (0,), "big")


def test_only_a_llama_can_be_cut() -> None:
    other = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2))
    with pytest.raises(IncompatibleModels, match="GPT2LMHeadModel"):
        cut(other, llama(1), (0,), "other")


def test_an_exit_is_the_model_that_ends_there() -> None:
    model, shallow = llama(3), llama(1, seed=1)
    cut(model, shallow, (0,), "model")
    early, full = hidden_states_at(model, token_ids(), (1, 3))
    torch.testing.assert_close(model.lm_head(early), shallow(token_ids()).logits)
    torch.testing.assert_close(model.lm_head(full), model(token_ids()).logits)


def plain_loss(
    logits: torch.Tensor, next_ids: torch.Tensor, teacher_logits: torch.Tensor | None, weight: float
) -> torch.Tensor:
    of_text = functional.cross_entropy(logits, next_ids)
    if teacher_logits is None:
        return of_text
    laws = (logits.log_softmax(-1), teacher_logits[..., :VOCAB].log_softmax(-1))
    divergence = functional.kl_div(*laws, reduction="batchmean", log_target=True)
    return (1 - weight) * of_text + weight * divergence


@pytest.mark.parametrize("rows_at_once", [4, 512])
@pytest.mark.parametrize("weight", [None, 0.3, 1.0])
def test_the_loss_and_its_gradients_are_those_of_the_plain_formula(
    weight: float | None, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "_ROWS_AT_ONCE", rows_at_once)
    model, ids = llama(3), token_ids(rows=2, length=9)
    teacher_logits = (
        None if weight is None else llama(2, seed=5, vocab_size=VOCAB + 3)(ids[:, :-1]).logits.detach()
    )
    hidden = hidden_states_at(model, ids[:, :-1], (1, 2, 3))
    loss = ExitLoss(0.25, weight or 0.0)(hidden, model.lm_head, ids[:, 1:], teacher_logits)
    loss.backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()

    flat_ids, theirs = ids[:, 1:].flatten(), None
    if teacher_logits is not None:
        theirs = teacher_logits.flatten(0, 1)
    expected = torch.zeros(())
    exits = zip(hidden_states_at(model, ids[:, :-1], (1, 2, 3)), (4, 4, 1), (0.25, 0.25, 1.0), strict=True)
    for states, stride, share in exits:
        logits = model.lm_head(states).flatten(0, 1)[::stride]
        targets = None if theirs is None else theirs[::stride]
        expected = expected + share * plain_loss(logits, flat_ids[::stride], targets, weight or 0.0) / 1.5
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(found, [parameter.grad for parameter in model.parameters()])


def test_agreement_counts_equal_first_choices() -> None:
    model, ids = llama(3), token_ids(rows=4, length=11)
    theirs = model(ids).logits.argmax(-1)
    early = model.lm_head(hidden_states_at(model, ids, (1,))[0]).argmax(-1)
    counts = agreements(model, model, ids, (1, 3), first=2)
    assert counts.tolist() == [(early == theirs)[:, 2:].sum().item(), 4 * 9]
    assert 0 < counts[0] < counts[1]
