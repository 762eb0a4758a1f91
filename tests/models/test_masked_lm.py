"""A stock decoder as a denoiser: what it sees, and that canvases do not notice each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import VOCAB, build_model
from diffusion.models import BIDIRECTIONAL, BLOCK, BLOCK_CAUSAL, FULL, MASK, build_denoiser
from hasten.diffusion.canvas import DenoiserSpec, Query
from hasten.diffusion.denoisers.masked_lm import MaskedLM
from hasten.errors import ModelError
from hasten.models.sessions.attention import additive_mask


def text(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, MASK, length)


def ask(token_ids: np.ndarray, wanted: list[int] | None = None, **changes: object) -> Query:
    rows = np.arange(len(token_ids)) if wanted is None else np.array(wanted, dtype=np.int64)
    return Query(sequence=0, token_ids=token_ids, wanted=rows, **changes)


def logits(denoiser: MaskedLM, *queries: Query) -> list[torch.Tensor]:
    session = denoiser.open([len(query.token_ids) for query in queries], keeps_rows=False)
    return [one.logits for one in session.forward(queries)]


def count_calls(denoiser: MaskedLM, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of all model calls from now on."""
    shapes: list[tuple[int, ...]] = []
    stock = denoiser.model.forward

    def counting(input_ids, **arguments):
        shapes.append(tuple(input_ids.shape))
        assert arguments["attention_mask"] is None or len(arguments["attention_mask"].shape) == 4
        return stock(input_ids, **arguments)

    monkeypatch.setattr(denoiser.model, "forward", counting)
    return shapes


@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_a_decoder_sees_the_whole_canvas(name: str) -> None:
    denoiser = build_denoiser(name, dtype=torch.float32)
    tokens = text(9)
    (found,) = logits(denoiser, ask(tokens))
    everything = additive_mask(np.ones((1, 9, 9), dtype=bool), torch.float32, torch.device("cpu"))
    with torch.no_grad():
        plain = build_model(name, torch.float32, 3, **BIDIRECTIONAL[name])
        expected = plain(torch.from_numpy(tokens)[None], attention_mask=everything).logits[0]
    expected[:, MASK] = -torch.inf
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mistral-sliding", "sliding_attention of 6"),
        ("llama4-chunked", "chunked_attention of 6"),
        ("gpt-neo-local", "left to right"),
        ("rwkv", "left to right"),
        ("lfm2-hybrid", "'conv'"),
        ("mpt-alibi", "does not run"),
    ],
)
def test_models_that_cannot_look_ahead_are_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        MaskedLM(build_model(name), FULL)


def test_a_model_that_stays_causal_is_found_out() -> None:
    model = build_model()
    stock = model.forward

    def causal(input_ids, attention_mask=None, **arguments):
        arguments.pop("is_causal", None)
        return stock(input_ids, attention_mask=attention_mask, is_causal=True, **arguments)

    model.forward = causal
    with pytest.raises(ModelError, match="left to right"):
        MaskedLM(model, FULL)


def test_a_model_that_ignores_masks_runs_one_shape_at_a_time_and_knows_no_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build_model(dtype=torch.float64)
    stock = model.forward

    def unmasked(input_ids, attention_mask=None, **arguments):
        return stock(input_ids, attention_mask=None, **arguments)

    model.forward = unmasked
    denoiser = MaskedLM(model, FULL)
    assert not denoiser.findings.can_pad
    queries = [ask(text(6)), ask(text(9)), ask(text(6, seed=1))]
    shapes = count_calls(denoiser, monkeypatch)
    together = logits(denoiser, *queries)
    assert sorted(shapes) == [(1, 9), (2, 6)]
    for query, found in zip(queries, together, strict=True):
        torch.testing.assert_close(found, logits(denoiser, query)[0], atol=1e-10, rtol=0)
    with pytest.raises(ModelError, match="later blocks"):
        MaskedLM(model, BLOCK_CAUSAL)


@pytest.mark.parametrize("spec", [FULL, BLOCK_CAUSAL, replace(FULL, logits_shift=1)])
@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral-sliding", "gpt2"])
def test_canvases_of_different_lengths_share_a_call_and_do_not_notice(
    name: str, spec: DenoiserSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser = build_denoiser(name, spec)
    queries = [ask(text(7), [2, 6]), ask(text(11, seed=1), [0, 4, 10]), ask(text(4, seed=2), [])]
    shapes = count_calls(denoiser, monkeypatch)
    together = logits(denoiser, *queries)
    assert shapes == [(3, 11)]
    for query, found in zip(queries, together, strict=True):
        assert found.shape == (len(query.wanted), VOCAB)
        torch.testing.assert_close(found, logits(denoiser, query)[0], atol=1e-10, rtol=0)


def test_canvases_of_one_shape_need_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = build_denoiser()
    masks = []
    stock = denoiser.model.forward

    def spying(input_ids, **arguments):
        masks.append(arguments["attention_mask"])
        return stock(input_ids, **arguments)

    monkeypatch.setattr(denoiser.model, "forward", spying)
    logits(denoiser, ask(text(8)), ask(text(8, seed=1)))
    assert masks == [None]


def test_a_call_is_not_mostly_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = build_denoiser()
    shapes = count_calls(denoiser, monkeypatch)
    queries = [ask(text(200)), *(ask(text(20 + seed, seed)) for seed in range(6))]
    together = logits(denoiser, *queries)
    assert shapes == [(6, 25), (1, 200)]
    torch.testing.assert_close(together[0], logits(denoiser, queries[0])[0], atol=1e-10, rtol=0)
    torch.testing.assert_close(together[3], logits(denoiser, queries[3])[0], atol=1e-10, rtol=0)


def test_a_block_sees_itself_and_what_is_before_it() -> None:
    denoiser = build_denoiser(spec=BLOCK_CAUSAL)
    tokens = text(3 * BLOCK)
    (before,) = logits(denoiser, ask(tokens))
    for place in range(len(tokens)):
        changed = tokens.copy()
        changed[place] = 3 + changed[place] % 5
        if changed[place] == tokens[place]:
            continue
        (after,) = logits(denoiser, ask(changed))
        touched = ((before - after).abs().nan_to_num(0).amax(-1) > 1e-9).numpy()
        assert (touched == (np.arange(len(tokens)) >= place // BLOCK * BLOCK)).all()


def test_shifted_logits_predict_the_position_after_their_row() -> None:
    plain, shifted = build_denoiser(), build_denoiser(spec=replace(FULL, logits_shift=1))
    tokens = text(6)
    (rows,) = logits(plain, ask(tokens))
    (found,) = logits(shifted, ask(tokens, [0, 1, 5]))
    torch.testing.assert_close(found, rows[[0, 0, 4]], atol=1e-10, rtol=0)


def test_the_mask_token_is_never_a_candidate_and_logits_may_be_written_to() -> None:
    denoiser = build_denoiser(dtype=torch.bfloat16)
    (found,) = logits(denoiser, ask(text(6)))
    assert found.dtype == torch.float32
    assert (found[:, MASK] == -torch.inf).all()
    found[0, 0] = -torch.inf
    assert found.requires_grad_().softmax(-1).sum().requires_grad


def test_hidden_states_are_what_the_head_reads() -> None:
    denoiser = build_denoiser()
    query = ask(text(6), [1, 4], wants_hidden=True)
    (found,) = denoiser.open([6], keeps_rows=False).forward([query])
    assert found.hidden is not None
    assert found.hidden.shape == (6, 32)
    read = found.hidden[[1, 4]] @ denoiser.model.lm_head.weight.T
    torch.testing.assert_close(read[:, :MASK], found.logits[:, :MASK].to(read), atol=1e-10, rtol=0)


def test_uniform_noise_leaves_every_token_possible() -> None:
    denoiser = build_denoiser(spec=DenoiserSpec(mask_id=None, noise="uniform"))
    assert torch.isfinite(logits(denoiser, ask(text(5)))[0]).all()


@pytest.mark.parametrize("spec", [replace(FULL, mask_id=VOCAB), replace(FULL, attention="any-order")])
def test_specs_that_do_not_fit_the_model_are_refused(spec: DenoiserSpec) -> None:
    with pytest.raises(ModelError):
        build_denoiser(spec=spec)


def test_rows_are_neither_read_nor_stored_where_none_are_kept() -> None:
    session = build_denoiser().open([6], keeps_rows=False)
    for query in (ask(text(6), [1], computed=np.array([1])), ask(text(6), stores=True)):
        with pytest.raises(ValueError, match="keeps no rows"):
            session.forward([query])
