"""Rows that are kept, replaced where they lie, and read by unmodified attention."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import build_model
from diffusion.models import BIDIRECTIONAL, BLOCK, BLOCK_CAUSAL, FULL, MASK, build_blind, build_denoiser
from hasten.diffusion.canvas import Query
from hasten.diffusion.denoisers.masked_lm import MaskedLM, MaskedSession
from hasten.errors import ModelError

LENGTH = 12


def text(length: int = LENGTH, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, MASK, length)


def changed(tokens: np.ndarray, *places: int) -> np.ndarray:
    tokens = tokens.copy()
    for place in places:
        tokens[place] = (tokens[place] + 7) % MASK
    return tokens


def query(
    tokens: np.ndarray, computed: list[int] | None = None, *, stores: bool = False, sequence: int = 0
) -> Query:
    rows = np.arange(len(tokens)) if computed is None else np.array(computed, dtype=np.int64)
    return Query(
        sequence=sequence,
        token_ids=tokens,
        wanted=rows,
        computed=None if computed is None else rows,
        stores=stores,
    )


def one(session: MaskedSession, asked: Query) -> torch.Tensor:
    return session.forward([asked])[0].logits


def same(left: torch.Tensor, right: torch.Tensor) -> None:
    torch.testing.assert_close(left, right, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_rows_of_unchanged_tokens_come_out_again(name: str) -> None:
    denoiser = build_denoiser(name)
    session = denoiser.open([LENGTH], keeps_rows=True)
    whole = one(session, query(text(), stores=True))
    same(whole, one(denoiser.open([LENGTH], keeps_rows=False), query(text())))
    close = 1e-5 if name.startswith("gemma2") else 1e-9  # its eager attention takes the softmax in float32
    for rows in ([3], [0, 5, 11], list(range(LENGTH)), [4, 5, 6, 7]):
        for stores in (False, True):
            found = one(session, query(text(), rows, stores=stores))
            torch.testing.assert_close(found, whole[rows], atol=close, rtol=0)


def test_rows_that_are_not_computed_are_seen_as_they_were() -> None:
    """The same as a model whose other tokens are still the old ones, at every layer."""
    denoiser = build_denoiser()
    session = denoiser.open([LENGTH], keeps_rows=True)
    one(session, query(text(), stores=True))
    new = changed(text(), 3, 8)
    stale = one(session, query(new, [3]))
    fresh = one(denoiser.open([LENGTH], keeps_rows=False), query(new))
    half_new = one(denoiser.open([LENGTH], keeps_rows=False), query(changed(text(), 3)))
    assert (stale - fresh[[3]]).abs().nan_to_num(0).max() > 1e-2
    assert (stale - half_new[[3]]).abs().nan_to_num(0).max() > 1e-2  # the others have not seen token 3 either
    alone = build_blind()
    session = alone.open([LENGTH], keeps_rows=True)
    one(session, query(text(), stores=True))
    same(one(session, query(new, [3])), one(alone.open([LENGTH], keeps_rows=False), query(new))[[3]])


def test_stored_rows_replace_the_old_ones() -> None:
    session = build_denoiser().open([LENGTH], keeps_rows=True)
    one(session, query(text(), stores=True))
    new = changed(text(), 3)
    before = one(session, query(new, [5]))
    one(session, query(new, [3]))
    same(one(session, query(new, [5])), before)  # only computed
    one(session, query(new, [3], stores=True))
    after = one(session, query(new, [5]))
    assert (after - before).abs().nan_to_num(0).max() > 1e-2
    whole = one(session, query(new, stores=True))
    same(one(session, query(new, [5])), whole[[5]])


def test_drafts_of_a_canvas_are_answered_like_single_queries_and_leave_nothing_behind() -> None:
    denoiser = build_denoiser()
    rows = [4, 5, 6, 7]
    drafts = [changed(text(), *places) for places in ([], [4], [4, 6], [4, 5, 6])]
    queries = [query(tokens, rows, stores=number == 0) for number, tokens in enumerate(drafts)]
    sessions = [denoiser.open([LENGTH], keeps_rows=True) for _ in range(2)]
    for session in sessions:
        one(session, query(text(), stores=True))
    together = [prediction.logits for prediction in sessions[0].forward(queries)]
    alone = [one(sessions[1], asked) for asked in reversed(queries)][::-1]
    for found, expected in zip(together, alone, strict=True):
        same(found, expected)
    reread = query(drafts[3], [2, 9])
    same(one(sessions[0], reread), one(sessions[1], reread))


@pytest.mark.parametrize("spec", [FULL, BLOCK_CAUSAL, replace(FULL, logits_shift=1)])
def test_canvases_side_by_side_are_answered_like_alone(spec) -> None:
    denoiser = build_denoiser(spec=spec)
    lengths = [12, 9, 15]
    texts = [text(length, seed) for seed, length in enumerate(lengths)]
    shared = denoiser.open(lengths, keeps_rows=True)
    alone = [denoiser.open([length], keeps_rows=True) for length in lengths]
    new = [changed(tokens, 2, 5) for tokens in texts]
    rounds = [
        [query(tokens, stores=True, sequence=row) for row, tokens in enumerate(texts)],
        [query(tokens, [1, 2, 5, 7], stores=True, sequence=row) for row, tokens in enumerate(new)],
        [query(changed(texts[row], 2), [2, 3][: 2 - row], stores=row == 1, sequence=row) for row in (1, 0)],
        [query(texts[2], [0, 8, 14], sequence=2), query(texts[0][:8], [1, 7], sequence=0)],
        [query(changed(texts[row], row), [0, 3], stores=True, sequence=row) for row in (0, 2)],
    ]  # fmt: skip
    for queries in rounds:
        together = shared.forward(queries)
        for asked, found in zip(queries, together, strict=True):
            own = replace(asked, sequence=0)
            same(found.logits, one(alone[asked.sequence], own))


def test_a_pass_that_needs_several_calls_reads_what_was_stored_before_it() -> None:
    session = build_denoiser().open([300, 300], keeps_rows=True)
    long = text(300)
    for sequence in (0, 1):
        one(session, query(long, stores=True, sequence=sequence))
    new = changed(long, 5)
    few, many = [*range(4, 20)], list(range(300))
    own, reader = query(new, few, stores=True), query(new, many[50:290])
    expected = one(session, reader)
    found = session.forward([own, reader])
    same(found[1].logits, expected)
    assert (one(session, reader) - expected).abs().nan_to_num(0).max() > 1e-4


def test_a_shortened_canvas_does_not_see_what_was_cut_off() -> None:
    denoiser = build_denoiser()
    session = denoiser.open([LENGTH], keeps_rows=True)
    one(session, query(text(), stores=True))
    short = text()[:7]
    one(session, query(short, stores=True))
    fresh = one(denoiser.open([7], keeps_rows=False), query(short))
    same(one(session, query(short, [2, 6])), fresh[[2, 6]])


def test_a_row_that_was_never_stored_is_not_read() -> None:
    session = build_denoiser().open([LENGTH, LENGTH], keeps_rows=True)
    one(session, query(text(), stores=True))
    with pytest.raises(ValueError, match=r"rows \[ 0  1  3 .* of canvas 1 would be read"):
        one(session, query(text(), [2], sequence=1))
    one(session, query(text(7), stores=True, sequence=1))
    with pytest.raises(ValueError, match=r"rows \[ 7  8  9 10 11\]"):
        one(session, query(text(), [2], sequence=1))


def test_a_block_needs_only_the_rows_before_its_end() -> None:
    """Finished blocks are kept, and the present one is computed: exactly what one whole pass gives."""
    denoiser = build_denoiser(spec=BLOCK_CAUSAL)
    whole = one(denoiser.open([LENGTH], keeps_rows=False), query(text()))
    session = denoiser.open([LENGTH], keeps_rows=True)
    one(session, query(text(), list(range(BLOCK)), stores=True))
    for start in (BLOCK, 2 * BLOCK):
        rows = list(range(start, start + BLOCK))
        same(one(session, query(text(), rows, stores=True)), whole[rows])
    with pytest.raises(ValueError, match="never stored"):
        one(denoiser.open([LENGTH], keeps_rows=True), query(text(), list(range(BLOCK, 2 * BLOCK))))


def test_a_shifted_model_computes_the_row_before_the_wanted_one_as_well() -> None:
    denoiser = build_denoiser(spec=replace(FULL, logits_shift=1))
    whole = one(denoiser.open([LENGTH], keeps_rows=False), query(text()))
    session = denoiser.open([LENGTH], keeps_rows=True)
    one(session, query(text(), stores=True))
    same(one(session, query(text(), [0, 4, 9], stores=True)), whole[[0, 4, 9]])


@pytest.mark.parametrize("others", [0, 1])
def test_the_row_before_a_wanted_one_is_run_for_its_logits_only(others: int) -> None:
    """What is stored depends on the computed rows, whatever was wanted of them."""
    denoiser = build_denoiser(spec=replace(FULL, logits_shift=1))
    new = changed(text(), 3, 7)
    found = []
    for wanted in ([4], []):
        session = denoiser.open([LENGTH], keeps_rows=True)
        one(session, query(text(), stores=True))
        own = replace(query(new, [4], stores=True), wanted=np.array(wanted, dtype=np.int64))
        session.forward([own, *[query(new, [4, 5])] * others])
        found.append(one(session, query(new, [9, 10])))
    same(found[0], found[1])


def test_a_model_that_ignores_its_cache_is_refused_where_rows_shall_be_kept() -> None:
    model = build_model()
    stock = model.forward

    def forgetful(input_ids, past_key_values=None, **arguments):
        return stock(input_ids, **arguments)

    model.forward = forgetful
    denoiser = MaskedLM(model, FULL)
    denoiser.open([LENGTH], keeps_rows=False)
    with pytest.raises(ModelError, match="cannot keep rows"):
        denoiser.open([LENGTH], keeps_rows=True)
