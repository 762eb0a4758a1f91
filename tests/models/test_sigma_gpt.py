"""A causal model over any permutation: what its rows see, bursts, chains and the two together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from diffusion.exact_laws import write
from hasten.core import SamplingParams
from hasten.diffusion.canvas import DenoiserSpec, Query
from hasten.diffusion.denoisers.loading import load_denoiser
from hasten.diffusion.denoisers.sigma_gpt import POSITIONS_FILE, PermutedRows, SigmaGPT
from hasten.errors import ConfigError, ModelError
from hasten.training.tokenizer import train_tokenizer

WORDS, LENGTH = 7, 10
MASK = WORDS
SPEC = DenoiserSpec(mask_id=MASK, attention="any-order")
SHAPE = LlamaConfig(
    vocab_size=WORDS + 1,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=LENGTH,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)


@pytest.fixture(scope="module")
def model():
    made = SigmaGPT.new(SHAPE, SPEC, seed=1).double().eval()
    with torch.no_grad():  # far from uniform laws
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(parameter.numel()))
    return made


@pytest.fixture(scope="module")
def session(model):
    return model.open([LENGTH], keeps_rows=False)


def canvas(tokens):
    """From "2.41......": a digit a token, a dot an open position."""
    return np.array([MASK if one == "." else int(one) for one in tokens.ljust(LENGTH, ".")])


def burst(token_ids, wanted=None):
    wanted = np.flatnonzero(token_ids == MASK) if wanted is None else np.array(wanted)
    return Query(sequence=0, token_ids=token_ids, wanted=wanted)


def chain(token_ids, order):
    order = np.array(order)
    return Query(sequence=0, token_ids=token_ids, wanted=np.sort(order), chain=order)


def ask(session, *queries):
    return [one.logits[:, :WORDS] for one in session.forward(queries)]


def same(found, expected):
    return torch.allclose(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("known", ["", "2", "24.1", "3321"])
def test_a_chain_from_left_to_right_behind_what_is_known_is_the_burst_of_each_canvas_on_its_way(
    session, known
):
    start = canvas(known)
    text = start.copy()
    text[len(known) :] = np.random.default_rng(0).integers(0, WORDS, LENGTH - len(known))
    order = [place for place in range(len(known), LENGTH) if place not in {5, 8}]
    text[[5, 8]] = MASK
    (rows,) = ask(session, chain(text, order))
    for row, place in enumerate(order):
        (expected,) = ask(session, burst(start, [place]))
        assert same(rows[row], expected[0])
        start[place] = text[place]


def test_the_first_row_of_any_chain_is_the_burst(session):
    text = canvas("2.4.61")
    text[[1, 3, 9]] = 5, 0, 2
    (expected,) = ask(session, burst(canvas("2.4.61"), [1, 3, 9]))
    for order in ([9, 1, 3], [3, 9, 1], [1, 3, 9]):
        (rows,) = ask(session, chain(text, order))
        assert same(rows[0], expected[[1, 3, 9].index(order[0])])


def test_another_order_of_the_same_tokens_is_another_reading(session):
    """Where chain and canvas cannot agree: what is known of a canvas is read from left to right."""
    text = canvas("1235")
    (rows,) = ask(session, chain(text, [2, 1, 3]))
    for row, place, known in ((1, 1, "1.3"), (2, 3, "123")):
        (expected,) = ask(session, burst(canvas(known), [place]))
        assert same(rows[row], expected[0]) == (row == 1)


def test_wanted_positions_of_a_burst_do_not_see_each_other(session):
    token_ids = canvas("2.4.61")
    (together,) = ask(session, burst(token_ids))
    for row, place in enumerate(np.flatnonzero(token_ids == MASK)):
        (alone,) = ask(session, burst(token_ids, [place]))
        assert same(together[row], alone[0])


def test_a_chain_row_sees_the_tokens_before_it_and_no_later_one(session):
    text = canvas("2.4561")
    order = [5, 1, 4, 3]
    text[1] = 0
    (rows,) = ask(session, chain(text, order))
    for changed in range(len(order)):
        other = text.copy()
        other[order[changed]] = (other[order[changed]] + 1) % WORDS
        (found,) = ask(session, chain(other, order))
        assert same(found[: changed + 1], rows[: changed + 1])
        assert (found[changed + 1 :] - rows[changed + 1 :]).abs().amax(-1).gt(1e-6).all()


def test_every_known_token_and_its_place_count(session):
    (rows,) = ask(session, burst(canvas("2.461"), [8]))
    for other in ("3.461", "24.61", "2.46", "2.641"):
        (found,) = ask(session, burst(canvas(other), [8]))
        assert not torch.allclose(found, rows, atol=1e-6)


@pytest.mark.parametrize("part", ["token_ids", "own", "upcoming"])
def test_a_row_tells_its_token_its_place_and_the_next_place(model, part):
    rows = PermutedRows.chain(canvas("2461"), np.array([0, 2]), np.array([3, 1]), MASK)
    values = getattr(rows, part).copy()
    values[1] += 1
    with torch.no_grad():
        found, expected = model([replace(rows, **{part: values}), rows])
    assert (found - expected)[:, :WORDS].abs().amax(-1).gt(1e-6).all()


def test_a_written_position_is_predicted_from_all_tokens_but_its_own(session):
    (rows,) = ask(session, burst(canvas("2.461"), [0, 1, 3]))
    (without,) = ask(session, burst(canvas("..461"), [0]))
    (beside,) = ask(session, burst(canvas("2.461"), [1]))
    assert same(rows[0], without[0])
    assert same(rows[1], beside[0])


def test_queries_of_one_pass_do_not_see_each_other(session):
    queries = [
        burst(canvas("2.4.61")),
        chain(canvas("1234"), [3, 1]),
        burst(canvas("")),
        burst(canvas("0123456012"), [4]),
    ]
    together = ask(session, *queries)
    for query, found in zip(queries, together, strict=True):
        assert same(found, ask(session, query)[0])


def test_predictions_are_ascending_and_those_of_chains_in_their_order(session):
    both = session.forward([burst(canvas("2.4"), [0, 1, 2, 3]), chain(canvas("2345"), [3, 0])])
    assert both[0].positions.tolist() == [0, 1, 2, 3]
    assert both[1].positions.tolist() == [3, 0]
    assert all((one.logits[:, MASK] == -torch.inf).all() for one in both)


@pytest.mark.parametrize(
    "strategy", ["burst", "burst:3", "burst+blocks:4", "static:order=random+speculative", "threshold:0.6"]
)
def test_it_writes_canvases(model, strategy):
    written = write(model, strategy, length=8, prompt=(1, 2), params=SamplingParams(temperature=1.0), seed=3)
    assert len(written.token_ids) == 8
    assert max(written.token_ids) < WORDS
    assert written.stats.num_tokens == 8


def test_freedave_writes_the_same_text(model):
    for seed in range(5):
        options = {"length": 8, "params": SamplingParams(temperature=1.0), "seed": seed}
        plain = write(model, "static", **options)
        assert write(model, "static+freedave", **options).token_ids == plain.token_ids


def test_a_saved_model_predicts_the_same(tmp_path):
    made = SigmaGPT.new(SHAPE, SPEC).eval()
    made.save(tmp_path)
    model = type(made.model).from_pretrained(tmp_path)
    again = SigmaGPT.of(model, DenoiserSpec.load(tmp_path), tmp_path)
    query = burst(canvas("2.4"))
    found, expected = (ask(one.open([LENGTH], keeps_rows=False), query)[0] for one in (again, made))
    assert found.equal(expected)
    assert again.max_length == LENGTH


def test_a_saved_model_is_loaded_by_its_folder(tmp_path):
    tokenizer = train_tokenizer(["the old mill by the stream"], 265)
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    spec = DenoiserSpec(mask_id=tokenizer.mask_token_id, attention="any-order")
    shape = {**SHAPE.to_diff_dict(), "vocab_size": len(tokenizer)}
    made = SigmaGPT.new(LlamaConfig(**shape), spec).eval()
    made.save(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, _ = load_denoiser(str(tmp_path))
    assert loaded.spec.attention == "any-order"
    query = Query(sequence=0, token_ids=np.full(5, spec.mask_id), wanted=np.arange(5))
    found, expected = (one.open([5], keeps_rows=False).forward([query])[0] for one in (loaded, made))
    assert found.logits.equal(expected.logits)
    (tmp_path / POSITIONS_FILE).unlink()
    with pytest.raises(ModelError, match=POSITIONS_FILE):
        load_denoiser(str(tmp_path))


def test_missing_positions_are_named(tmp_path):
    made = SigmaGPT.new(SHAPE, SPEC)
    with pytest.raises(ModelError, match="sigma_positions"):
        SigmaGPT.of(made.model, SPEC, tmp_path)


def test_it_keeps_no_rows(model, session):
    with pytest.raises(ModelError, match="'none'"):
        model.open([LENGTH], keeps_rows=True)
    with pytest.raises(ValueError, match="keeps no rows"):
        session.forward([Query(sequence=0, token_ids=canvas(""), wanted=np.array([0]), stores=True)])


@pytest.mark.parametrize("spec", [DenoiserSpec(mask_id=MASK)])
def test_another_kind_of_spec_is_refused(spec):
    with pytest.raises(ConfigError, match="any-order"):
        SigmaGPT.new(SHAPE, spec)
