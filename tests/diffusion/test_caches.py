"""Which rows the caches compute, and what that does to texts, on random transformers models."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from diffusion.exact_laws import Written, write
from diffusion.models import BLOCK, BLOCK_CAUSAL, FULL, MASK, build_blind, build_denoiser
from hasten.core import SamplingParams
from hasten.diffusion.base import Reviser, StopPolicy, Strategy
from hasten.diffusion.blocks.fixed import FixedBlocks
from hasten.diffusion.canvas import Block, Canvas, DenoiserSpec, Prediction, Query
from hasten.diffusion.denoisers.masked_lm import MaskedLM
from hasten.diffusion.drawing import Drawing, noise_source
from hasten.diffusion.loop import Writing, denoise
from hasten.diffusion.parse import parse_strategy
from hasten.diffusion.registry import CACHES
from hasten.diffusion.steps import DenoisingStep, Finish, Revision, Selection, Turn
from hasten.errors import ConfigError

PROMPT = (5, 9, 17, 33, 8)
APPROXIMATE = ["prefix", "dual", "dkv", "dkv-greedy", "freecache", "vicinity", "recap"]
KNOWN_ORDER = "static:order=random"


def base(cache: str) -> str:
    """A selector that a cache can work with."""
    return KNOWN_ORDER if cache.startswith("dkv-greedy") else "static"


class Spy:
    """Keeps the queries of every forward pass of a denoiser."""

    def __init__(self, denoiser: MaskedLM) -> None:
        self._denoiser = denoiser
        self.spec, self.vocab_size, self.model = denoiser.spec, denoiser.vocab_size, denoiser.model
        self.max_length = denoiser.max_length
        self.queries: list[list[Query]] = []
        self.predictions: list[list[Prediction]] = []

    def open(self, lengths: Sequence[int], *, keeps_rows: bool) -> Spy:
        self._session = self._denoiser.open(lengths, keeps_rows=keeps_rows)
        return self

    def forward(self, queries: Sequence[Query]) -> list[Prediction]:
        self.queries.append(list(queries))
        self.predictions.append(self._session.forward(queries))
        return self.predictions[-1]


def computed(denoiser: MaskedLM, strategy: str | Strategy, **options: Any) -> tuple[list[list[int]], Written]:
    """The rows of every forward pass, and the text."""
    spy = Spy(denoiser)
    written = write(spy, strategy, prompt=PROMPT, **options)
    rows = [
        list(range(len(one.token_ids))) if one.computed is None else one.computed.tolist()
        for one, *_ in spy.queries
    ]
    return rows, written


def same_predictions(denoiser: MaskedLM, left: str, right: str, length: int, tolerance: float = 1e-9) -> None:
    """Both write the same text, with the same logits in every pass."""
    spies = [Spy(denoiser), Spy(denoiser)]
    texts = [
        write(spy, strategy, prompt=PROMPT, length=length).token_ids
        for spy, strategy in zip(spies, (left, right), strict=True)
    ]
    assert texts[0] == texts[1]
    for (one, *_), (other, *_) in zip(spies[0].predictions, spies[1].predictions, strict=True):
        shared = np.intersect1d(one.positions, other.positions)
        torch.testing.assert_close(one.at(shared).logits, other.at(shared).logits, atol=tolerance, rtol=0)


EVERY_PASS = ["prefix:1", "dual:1", "dkv:1", "dkv-greedy:1", "recap:0", "vicinity:warm_up=1000"]


@pytest.mark.parametrize("cache", EVERY_PASS)
def test_a_cache_that_computes_everything_in_every_pass_is_no_cache(cache: str) -> None:
    for seed in (1, 3):
        denoiser = build_denoiser(seed=seed)
        line = base(cache)
        same_predictions(denoiser, f"{line}+blocks:4/{cache}", f"{line}+blocks:4/none", length=8)
    if not cache.startswith("vicinity"):
        assert parse_strategy(f"{line}/{cache}", FULL).guarantee == "exact"


@pytest.mark.parametrize("cache", ["prefix:1", "dual:1"])
def test_one_block_that_is_refreshed_in_every_pass_is_the_reference(cache: str) -> None:
    denoiser = build_denoiser()
    same_predictions(denoiser, f"static+whole/{cache}", "static+whole/none", length=10)


@pytest.mark.parametrize("cache", APPROXIMATE)
def test_any_cache_is_exact_where_keys_and_values_depend_on_one_token_only(cache: str) -> None:
    denoiser = build_blind()
    intervals = {
        "dkv": ":1000",
        "dkv-greedy": ":interval=1000,window=0",
        "recap": ":1000",
        "vicinity": ":0,warm_up=0",
    }
    line = f"{base(cache)}+blocks:6"
    same_predictions(denoiser, f"{line}/{cache}{intervals.get(cache, '')}", f"{line}/none", length=12)


@pytest.mark.parametrize("cache", APPROXIMATE)
def test_a_cache_computes_fewer_rows_and_is_only_called_approximate(cache: str) -> None:
    denoiser = build_denoiser()
    line = f"{base(cache)}+blocks:8"
    reduced = f"{cache}:radius=2" if cache == "vicinity" else cache
    rows, written = computed(denoiser, f"{line}/{reduced}", length=16)
    assert len(rows) == written.stats.num_forwards == 16
    assert written.stats.num_rows == sum(map(len, rows)) < 16 * 21
    assert parse_strategy(f"{line}/{cache}", FULL).guarantee == "approximate"


# --- the rows that are computed, pass by pass; 5 given positions, 8 open ones in blocks of 4, left to right

LEFT = "static:order=left-to-right+blocks:4"
ALL = list(range(13))


@pytest.mark.parametrize(
    ("cache", "expected"),
    [
        ("prefix", [ALL, ALL[5:], ALL[5:], ALL[5:], ALL, ALL[9:], ALL[9:], ALL[9:]]),
        ("prefix:2", [ALL, ALL[5:], ALL, ALL[5:], ALL, ALL[9:], ALL, ALL[9:]]),
        ("dual", [ALL, ALL[5:9], ALL[5:9], ALL[5:9], ALL, ALL[9:], ALL[9:], ALL[9:]]),
        ("dkv", [ALL, ALL, ALL[6:], ALL[7:], ALL, ALL, ALL[10:], ALL[11:]]),
        ("dkv:3", [ALL, ALL, ALL[6:], ALL, ALL, ALL, ALL[10:], ALL]),
        ("freecache", [ALL, ALL[5:], ALL[5:], ALL[5:], ALL[5:], ALL[9:], ALL[9:], ALL[9:]]),
        ("freecache:1", [ALL, ALL[5:], ALL[5:], ALL[5:], ALL, ALL[9:], ALL[9:], ALL[9:]]),
        ("vicinity:radius=1", [ALL, ALL, ALL, ALL, ALL, ALL[8:], ALL[8:], ALL[8:]]),
        ("vicinity:radius=1,warm_up=2", [ALL, ALL, *[ALL[4:10]] * 2, ALL, *[ALL[8:]] * 3]),
        ("recap", [ALL, ALL[5:9], ALL, ALL[7:9], ALL, ALL[9:], ALL, ALL[11:]]),
        ("recap:2", [ALL, ALL[5:9], ALL[5:9], ALL, ALL, ALL[9:], ALL[9:], ALL]),
        ("dkv-greedy", [ALL, ALL[5:11], ALL, ALL[7:13], ALL, ALL[9:], ALL, ALL[11:]]),
        ("dkv-greedy:interval=4,window=0", [ALL, [5, 6], [6, 7], [7, 8], ALL, [9, 10], [10, 11], [11, 12]]),
        (
            "dkv-greedy:interval=4,window=1",
            [ALL, [5, 6, 7], [6, 7, 8], [7, 8, 9], ALL, [9, 10, 11], [10, 11, 12], [11, 12]],
        ),
    ],
)  # fmt: skip
def test_the_rows_that_are_computed(cache: str, expected: list[list[int]]) -> None:
    rows, _ = computed(build_denoiser(), f"{LEFT}/{cache}", length=8)
    assert rows == expected


def test_greedy_rows_of_a_random_order_follow_the_formula() -> None:
    """Written last, written next, and what is open within the window around both."""
    spy = Spy(build_denoiser())
    written = write(spy, f"{KNOWN_ORDER}+whole/dkv-greedy:interval=3,window=2", prompt=PROMPT, length=14)
    order = [int(record.positions[0]) for record in written.records]
    for number, (query, *_) in enumerate(spy.queries):
        if number % 3 == 0:
            assert query.computed is None
            continue
        centres = order[number - 1 : number + 1]
        near = {place for centre in centres for place in range(centre - 2, centre + 3)}
        assert query.computed is not None
        assert set(query.computed.tolist()) == set(centres) | (near & set(order[number:]))


def test_the_rows_of_a_block_causal_denoiser() -> None:
    """The prompt ends inside a block, whose rows see what is written there."""
    denoiser = build_denoiser(spec=BLOCK_CAUSAL)
    rows, _ = computed(denoiser, "static/blocks", length=9)
    assert rows == [
        *[ALL[:8], ALL[4:8], ALL[4:8]],
        *[ALL[4:12], ALL[8:12], ALL[8:12], ALL[8:12]],
        *[[8, 9, 10, 11, 12, 13], [12, 13]],
    ]


# --- exact


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("llama", "static"),
        ("llama", "threshold:0.3"),
        ("llama", "static:order=random"),
        ("qwen2", "static"),
        ("qwen3", "static:2"),
        ("gemma2", "static"),
    ],
)
def test_finished_blocks_are_kept_without_changing_a_token(name: str, line: str) -> None:
    denoiser = build_denoiser(name, BLOCK_CAUSAL)
    tolerance = 1e-5 if name == "gemma2" else 1e-9
    same_predictions(denoiser, f"{line}/blocks", f"{line}/none", length=13, tolerance=tolerance)


def test_finished_blocks_are_kept_exactly_where_logits_are_shifted() -> None:
    denoiser = build_denoiser(spec=replace(BLOCK_CAUSAL, logits_shift=1))
    same_predictions(denoiser, "static/blocks", "static/none", length=15)


def test_a_sampled_text_is_the_same_with_finished_blocks_kept() -> None:
    denoiser = build_denoiser(spec=BLOCK_CAUSAL)
    params = SamplingParams(temperature=1.0)
    for seed in range(3):
        texts = [
            write(denoiser, f"static/{cache}", prompt=PROMPT, length=11, params=params, seed=seed).token_ids
            for cache in ("blocks", "none")
        ]
        assert texts[0] == texts[1]


CONSTANT = ["none", "prefix", "dual", "freecache", "vicinity:radius=1,warm_up=0"]


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("cache", [*CONSTANT, "blocks"])
def test_freedave_with_a_cache_writes_what_the_cache_writes_without_it(cache: str, shift: int) -> None:
    spec = replace(BLOCK_CAUSAL if cache == "blocks" else FULL, logits_shift=shift)
    blocks = "" if cache == "blocks" else "+blocks:5"
    saved = 0
    for line, seed in [("static", 1), ("static", 3), ("threshold:0.3", 3), ("static:2", 3)]:
        denoiser = build_denoiser(spec=spec, seed=seed)
        plain = write(denoiser, f"{line}{blocks}/{cache}", prompt=PROMPT, length=10)
        drafted = write(denoiser, f"{line}{blocks}+freedave:4/{cache}", prompt=PROMPT, length=10)
        assert drafted.token_ids == plain.token_ids
        saved += plain.stats.num_forwards - drafted.stats.num_forwards
    assert saved > 0 or shift


@pytest.mark.parametrize("cache", ["prefix:2", "dkv", "recap", "vicinity"])
def test_freedave_is_refused_where_a_prediction_depends_on_when_it_is_made(cache: str) -> None:
    with pytest.raises(ConfigError, match="depends on when"):
        parse_strategy(f"static+freedave/{cache}", FULL)


@pytest.mark.parametrize(
    "strategy", ["static/none", "threshold:0.4/dual", "static+freedave:3/prefix", "static/dkv"]
)
def test_canvases_written_side_by_side_are_those_written_alone(strategy: str) -> None:
    side_by_side(build_denoiser(), f"{strategy.replace('/', '+blocks:4/')}")


def test_block_causal_canvases_written_side_by_side_are_those_written_alone() -> None:
    side_by_side(build_denoiser(spec=BLOCK_CAUSAL), "static+freedave:3/blocks")
    side_by_side(build_denoiser(spec=BLOCK_CAUSAL), "threshold:0.4/blocks")


def side_by_side(denoiser: MaskedLM, text: str) -> None:
    prompts, lengths = [(5, 9, 17, 33, 8), (4, 40), (7,) * 9], [8, 12, 4]
    strategy = parse_strategy(text, denoiser.spec)
    noise = noise_source(denoiser.spec, denoiser.vocab_size, 0, 0)
    writings = [
        Writing(
            Canvas.after(prompt, noise(np.arange(length), 0)),
            strategy,
            Drawing(SamplingParams()),
            noise,
            row,
        )
        for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
    ]
    for _ in denoise(denoiser, writings):
        pass
    for writing, prompt, length in zip(writings, prompts, lengths, strict=True):
        alone = write(denoiser, strategy, prompt=prompt, length=length)
        assert writing.canvas.token_ids[len(prompt) :].tolist() == alone.token_ids
        assert writing.stats.num_forwards == alone.stats.num_forwards


# --- what else happens to a canvas


@dataclass(frozen=True)
class Changes(Reviser):
    """Once, after the commit that leaves ``left`` positions open, edits or reopens a position."""

    name: ClassVar[str] = "changes"
    place: int
    left: int
    reopens: bool

    def start(self, canvas: Canvas) -> list[int]:
        return []

    def revise(self, step: DenoisingStep, selection: Selection, state: list[int]) -> Revision:
        if state or step.canvas.num_open != self.left:
            return Revision()
        state.append(self.place)
        places = np.array([self.place])
        if self.reopens:
            return Revision(reopened=places)
        return Revision(edited=places, token_ids=(step.canvas.token_ids[places] + 11) % MASK)


def with_part(text: str, spec: DenoiserSpec, **parts: Any) -> Strategy:
    return replace(parse_strategy(text, spec), **parts)


@pytest.mark.parametrize("reopens", [False, True], ids=["edited", "reopened"])
@pytest.mark.parametrize(
    "cache", ["prefix", "dual", "dkv", "freecache", "recap:5", "vicinity:radius=0,warm_up=0"]
)
def test_a_position_that_was_changed_is_computed_again(cache: str, reopens: bool) -> None:
    """Position 6 of the first block changes while the second is written, two passes after its start."""
    reviser = Changes(6, left=2, reopens=reopens)
    strategy = with_part(f"{LEFT}/{cache}", FULL, revisers=(reviser,))
    spy = Spy(build_denoiser())
    write(spy, strategy, prompt=PROMPT, length=8)
    seen: dict[int, int] = {}
    for query, *_ in spy.queries:
        rows = np.arange(len(query.token_ids)) if query.computed is None else query.computed
        if query.stores:
            seen.update({int(row): int(query.token_ids[row]) for row in rows})
        skipped = np.setdiff1d(np.arange(len(query.token_ids)), rows)
        assert all(seen[row] == query.token_ids[row] for row in skipped)
    after = spy.queries[6][0]
    assert after.token_ids[6] != spy.queries[5][0].token_ids[6]
    assert after.computed is not None
    assert 6 in after.computed


@pytest.mark.parametrize("reopens", [False, True], ids=["edited", "reopened"])
@pytest.mark.parametrize("left", [1, 4, 6])
@pytest.mark.parametrize("place", [5, 8])
def test_finished_blocks_that_were_changed_are_computed_again_with_all_after_them(
    place: int, left: int, reopens: bool
) -> None:
    denoiser = build_denoiser(spec=BLOCK_CAUSAL)
    texts = []
    for cache in ("blocks", "none"):
        strategy = with_part(f"static/{cache}", BLOCK_CAUSAL, revisers=(Changes(place, left, reopens),))
        texts.append(write(denoiser, strategy, prompt=PROMPT, length=15).token_ids)
    plain = write(denoiser, "static/none", prompt=PROMPT, length=15).token_ids
    assert texts[0] == texts[1]
    assert reopens or texts[0] != plain


def test_a_block_that_is_looked_at_again_makes_the_blocks_after_it_stale() -> None:
    """Its own rows are then stored with their last token, so that no token tells that others are old."""
    canvas = Canvas.after((5, 6, 7, 8), np.arange(10, 22))
    policy = CACHES["blocks"]()
    state = policy.start(canvas)

    def rows(start: int, number: int) -> list[int]:
        computed = policy.plan(Turn(canvas, Block(start, start + BLOCK), number), state).computed
        return list(range(16)) if computed is None else computed.tolist()

    assert rows(4, 0) == list(range(8))
    assert rows(8, 0) == list(range(8, 12))
    canvas.token_ids[6] = 50
    assert rows(4, 0) == list(range(4, 8))
    assert rows(12, 0) == list(range(8, 16))


@pytest.mark.parametrize("cache", ["dkv", "dkv-greedy", "recap"])
def test_a_full_block_that_is_looked_at_again_is_computed_whole(cache: str) -> None:
    """Nothing of it is open, and yet a reviser wants to see all of it."""
    canvas = Canvas.after(PROMPT, np.full(8, MASK))
    policy = CACHES[cache]()
    state = policy.start(canvas)
    policy.plan(Turn(canvas, Block(5, 9), 0, np.array([5])), state)
    canvas.commit(np.arange(5, 9), np.arange(20, 24))
    assert policy.plan(Turn(canvas, Block(5, 9), 5, np.array([], dtype=np.int64)), state).computed is None


@dataclass(frozen=True)
class Cut(StopPolicy):
    """Cuts the canvas once, after so many predictions."""

    name: ClassVar[str] = "cut"
    cuts_the_end: ClassVar[bool] = True
    length: int
    after: int

    def after_commit(self, step: DenoisingStep, state: Any) -> Finish | None:
        return Finish(length=self.length) if step.forward == self.after else None


@pytest.mark.parametrize("cache", [*APPROXIMATE, "none"])
def test_a_cut_canvas_is_computed_up_to_its_end(cache: str) -> None:
    strategy = with_part(f"{LEFT}/{cache}", FULL, stops=(Cut(13, 0),))
    rows, written = computed(build_denoiser(), strategy, length=16)
    assert len(written.token_ids) == len(rows) == 8
    assert max(rows[0]) == 20
    assert max(map(max, rows[1:])) == 12


def test_a_state_may_be_copied() -> None:
    canvas = Canvas.after(PROMPT, np.full(8, MASK))
    for name, kind in CACHES.items():
        policy = kind()
        state = policy.start(canvas)
        turn = Turn(canvas, Block(5, 9), 0, np.array([5]))
        first = policy.plan(turn, copy.deepcopy(state))
        second = policy.plan(turn, state)
        assert (first.computed is None) == (second.computed is None), name


# --- what is refused


def test_caches_are_refused_where_they_cannot_work() -> None:
    for text, spec, reason in [
        ("static/blocks", FULL, "finished blocks do change"),
        ("static/prefix", BLOCK_CAUSAL, "choose 'blocks'"),
        ("static/freecache", BLOCK_CAUSAL, "choose 'blocks'"),
        ("static/dkv-greedy", FULL, "does not know in advance"),
        ("threshold/dkv-greedy", FULL, "'dkv'"),
        ("static/dkv:0", FULL, "interval is 1"),
        ("static/recap:-1", FULL, "0 or more"),
        ("static/prefix:-1", FULL, "0 or more"),
        ("static/freecache:-1", FULL, "0 or more"),
        ("static/vicinity:-1", FULL, "0 or more"),
        (f"{KNOWN_ORDER}/dkv-greedy:interval=0", FULL, "the interval is 1"),
    ]:
        with pytest.raises(ConfigError, match=reason):
            parse_strategy(text, spec)


def test_aligned_blocks_begin_where_the_denoiser_s_own_block_does() -> None:
    canvas = Canvas.after(PROMPT, np.full(8, MASK))
    assert FixedBlocks(BLOCK, aligned=True).window(canvas) == (4, 8)
