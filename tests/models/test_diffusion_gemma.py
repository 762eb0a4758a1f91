"""DiffusionGemma as a denoiser: its predictions are those of direct calls of the transformers model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from denoiser_checkpoints import write_tokenizer
from diffusion_gemmas import CANVAS, END, VOCAB, build_diffusion_gemma
from hasten.diffusion.canvas import DenoiserSpec, Prediction, Query
from hasten.diffusion.denoisers.diffusion_gemma import DiffusionGemma
from hasten.diffusion.denoisers.loading import load_denoiser
from hasten.errors import ConfigError, ModelError, PromptError
from hasten.models.checkpoints import is_denoiser
from hasten.models.weights import WEIGHTS_FILE

SPEC = DenoiserSpec(mask_id=None, attention="encoder-decoder", block_size=CANVAS, noise="uniform")
TEXT = np.random.default_rng(3).integers(2, VOCAB - 3, 3 * CANVAS + 11)
PROMPT = 11


@pytest.fixture(scope="module")
def model() -> Any:
    return build_diffusion_gemma()


@pytest.fixture(scope="module")
def denoiser(model) -> DiffusionGemma:
    return DiffusionGemma(model, SPEC)


def piece(start: int, end: int, **options: Any) -> Query:
    """About these positions of the text, which ends with them."""
    query = Query(sequence=0, token_ids=TEXT[:end], wanted=np.arange(start, end))
    return replace(query, **options)


def predict(denoiser: DiffusionGemma, *queries: Query) -> list[Prediction]:
    return denoiser.open([len(TEXT)], keeps_rows=False).forward(queries)


@torch.no_grad()
def directly(model: Any, start: int, end: int, conditioning: Tensor | None = None) -> Tensor:
    """The whole text so far encoded at once, nothing kept."""
    token_ids = torch.from_numpy(TEXT)[None]
    output = model(
        input_ids=token_ids[:, :start],
        decoder_input_ids=token_ids[:, start:end],
        self_conditioning_logits=conditioning,
    )
    found: Tensor = output.logits[0]
    return found


def test_the_first_prediction_is_that_of_the_model(model, denoiser):
    [found] = predict(denoiser, piece(PROMPT, PROMPT + CANVAS))
    torch.testing.assert_close(found.logits, directly(model, PROMPT, PROMPT + CANVAS))
    assert found.positions.tolist() == list(range(PROMPT, PROMPT + CANVAS))


def test_later_predictions_are_conditioned_on_the_last_one_as_it_was_decided_on(model, denoiser):
    [first] = predict(denoiser, piece(PROMPT, PROMPT + CANVAS))
    warmed = first.with_logits(first.logits / 0.7)
    [second] = predict(denoiser, piece(PROMPT, PROMPT + CANVAS, previous=warmed))
    expected = directly(model, PROMPT, PROMPT + CANVAS, warmed.logits[None])
    torch.testing.assert_close(second.logits, expected)
    assert (second.logits - first.logits).abs().max() > 0.1
    assert (expected - directly(model, PROMPT, PROMPT + CANVAS, first.logits[None])).abs().max() > 1e-3


def test_finished_pieces_go_through_the_encoder(model, denoiser):
    session = denoiser.open([len(TEXT)], keeps_rows=False)
    for start in (PROMPT, PROMPT, PROMPT + CANVAS, PROMPT + 2 * CANVAS):
        [found] = session.forward([piece(start, start + CANVAS)])
        expected = directly(model, start, start + CANVAS)
        torch.testing.assert_close(found.logits, expected, atol=1e-4, rtol=1e-4)


def test_the_encoder_reads_nothing_twice(model, denoiser, monkeypatch):
    read: list[int] = []
    forward = model.model.encoder.forward

    def listening(*arguments: Any, **options: Any) -> Any:
        read.append(options["input_ids"].shape[1])
        return forward(*arguments, **options)

    monkeypatch.setattr(model.model.encoder, "forward", listening)
    session = denoiser.open([len(TEXT)] * 2, keeps_rows=False)
    other = replace(piece(4, 9), token_ids=TEXT[::-1][:9].copy(), sequence=1)
    for start in (PROMPT, PROMPT, PROMPT + CANVAS, PROMPT + CANVAS):
        session.forward([piece(start, start + CANVAS), other])
    assert read == [PROMPT, 4, CANVAS]


def test_a_short_last_piece_is_predicted_too(model, denoiser):
    [found] = predict(denoiser, piece(PROMPT, PROMPT + 3))
    torch.testing.assert_close(found.logits, directly(model, PROMPT, PROMPT + 3))


def test_canvases_do_not_know_of_each_other(denoiser):
    queries = [
        piece(PROMPT, PROMPT + CANVAS),
        Query(sequence=1, token_ids=TEXT[5:20], wanted=np.arange(9, 15)),
        piece(4, 4 + CANVAS, sequence=2),
    ]
    together = denoiser.open([40, 40, 40], keeps_rows=False)
    for _ in range(2):
        for query, found in zip(queries, together.forward(queries), strict=True):
            [alone] = denoiser.open([40, 40, 40], keeps_rows=False).forward([query])
            assert torch.equal(found.logits, alone.logits)


def test_another_text_beside_a_canvas_leaves_it_as_it_was(denoiser):
    session = denoiser.open([len(TEXT)], keeps_rows=False)
    query = piece(PROMPT, PROMPT + CANVAS)
    other = replace(query, token_ids=np.where(np.arange(PROMPT + CANVAS) < 3, 5, query.token_ids))
    first, beside = session.forward([query, other])
    later = session.forward([query])[0]
    assert not torch.equal(first.logits, beside.logits)
    assert torch.equal(first.logits, later.logits)
    [alone] = predict(denoiser, other)
    torch.testing.assert_close(beside.logits, alone.logits)


@pytest.mark.parametrize(
    "query",
    [
        piece(PROMPT, PROMPT + CANVAS + 1),
        piece(PROMPT, PROMPT + CANVAS, wanted=np.array([PROMPT, PROMPT + 2])),
        piece(PROMPT, PROMPT + CANVAS, computed=np.arange(PROMPT, PROMPT + CANVAS)),
        piece(PROMPT, PROMPT + CANVAS, stores=True),
        piece(PROMPT, PROMPT + CANVAS, wants_hidden=True),
        piece(PROMPT, PROMPT + CANVAS, chain=np.array([PROMPT])),
    ],
    ids=["too long", "gap", "computed", "stores", "hidden", "chain"],
)
def test_what_a_decoder_of_pieces_cannot_answer_is_refused(denoiser, query):
    with pytest.raises(ConfigError, match="DiffusionGemma"):
        predict(denoiser, query)


def test_a_text_without_a_prompt_is_refused(denoiser):
    with pytest.raises(PromptError, match="at least one token"):
        predict(denoiser, piece(0, CANVAS))


def test_caches_that_choose_rows_are_refused(denoiser):
    with pytest.raises(ConfigError, match="cache 'none'"):
        denoiser.open([20], keeps_rows=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"mask_id": 3},
        {"noise": "absorbing", "mask_id": 3},
        {"attention": "block-causal"},
        {"block_size": CANVAS + 1},
    ],
    ids=str,
)
def test_another_spec_is_refused(model, changes):
    with pytest.raises(ConfigError, match="DiffusionGemma"):
        DiffusionGemma(model, replace(SPEC, **changes))


def test_a_folder_loads_with_what_its_config_says(tmp_path, model, denoiser):
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    assert is_denoiser(str(tmp_path))
    loaded, tokenizer = load_denoiser(str(tmp_path), "float32", "cpu")
    assert loaded.spec == replace(SPEC, eos_ids=(END,), pad_id=0)
    assert (loaded.vocab_size, loaded.max_length) == (VOCAB, 256)
    assert tokenizer("ab")["input_ids"]
    query = piece(PROMPT, PROMPT + CANVAS)
    assert torch.equal(predict(loaded, query)[0].logits, predict(denoiser, query)[0].logits)
    with pytest.raises(ConfigError, match="no mask token"):
        load_denoiser(str(tmp_path), "float32", "cpu", spec="mask_id=3")


def test_a_folder_with_a_weight_too_few_is_refused(tmp_path, model):
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    weights = load_file(tmp_path / WEIGHTS_FILE)
    gone = next(name for name in weights if "self_conditioning.gate_proj" in name)
    del weights[gone]
    save_file(weights, tmp_path / WEIGHTS_FILE, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"do not have the weights of .*self_conditioning\.gate_proj"):
        load_denoiser(str(tmp_path), "float32", "cpu")
