"""Parts of all kinds together: either refused, with the reason, or every position is written."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from diffusion.exact_laws import GREEDY, write
from diffusion.tables import FunctionDenoiser, table_denoiser, uniform_oracle
from hasten.constraints.base import AllowedTokens
from hasten.core import SamplingParams
from hasten.diffusion.base import (
    BlockPolicy,
    Helpers,
    Reviser,
    Selector,
    Speculator,
    StopPolicy,
    Transform,
)
from hasten.diffusion.canvas import Block, Canvas, Ids, Mask, Prediction, Query
from hasten.diffusion.drawing import Drawing, noise_source
from hasten.diffusion.limits import Limits
from hasten.diffusion.loop import Writing, denoise
from hasten.diffusion.parse import parse_strategy
from hasten.diffusion.registry import CACHES, named
from hasten.errors import ConfigError

HELPERS = Helpers(delimiter_ids=(1,))
LENGTH = 6
MOST_PASSES = 300
TABLES = [table_denoiser(seed, length=LENGTH + 2, eos_ids=(0,)) for seed in range(6)]
UNIFORM = [uniform_oracle(seed) for seed in range(3)]


class Patience:
    """A denoiser that gives up on a canvas that never ends."""

    def __init__(self, denoiser: FunctionDenoiser) -> None:
        self.denoiser, self.spec, self.vocab_size = denoiser, denoiser.spec, denoiser.vocab_size
        self.length, self.max_length, self.num_passes = denoiser.length, None, 0

    def open(self, lengths: Sequence[int], *, keeps_rows: bool) -> Patience:
        return self

    def forward(self, queries: Sequence[Query]) -> list[Prediction]:
        self.num_passes += 1
        assert self.num_passes <= MOST_PASSES
        return self.denoiser.forward(queries)


def some_of(kind: type, most: int) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(sorted(named(kind))), max_size=most, unique=True)


LINES = st.builds(
    lambda kinds, cache: "+".join(name for kind in kinds for name in kind) + f"/{cache}",
    st.tuples(
        st.sampled_from(sorted(named(Selector))).map(lambda name: [name]),
        some_of(BlockPolicy, 1),
        some_of(Transform, 2),
        some_of(StopPolicy, 2),
        some_of(Reviser, 2),
        some_of(Speculator, 1),
    ),
    st.just("none") | st.sampled_from(sorted(CACHES)),
)


def is_refused(line: str, denoiser: FunctionDenoiser) -> bool:
    """Whether it is refused, and if so with a reason that names a part."""
    try:
        parse_strategy(line, denoiser.spec, HELPERS)
    except ConfigError as problem:
        reason = str(problem)
    else:
        return False
    assert any(name in reason for name in re.split(r"[+/]", re.sub(r":[^+/]*", "", line)))
    return True


@settings(deadline=None, max_examples=250, derandomize=True)
@given(LINES, st.sampled_from(TABLES), st.sampled_from([0.0, 1.0]))
def test_a_combination_is_refused_or_writes_every_position(
    line: str, denoiser: FunctionDenoiser, temperature: float
) -> None:
    if is_refused(line, denoiser):
        return
    params = SamplingParams(temperature=temperature)
    text = write(Patience(denoiser), line, length=LENGTH, prompt=[3, 1], params=params, helpers=HELPERS)
    assert denoiser.spec.mask_id not in text.token_ids
    if not {"eos", "eot"} & {part.partition(":")[0] for part in line.partition("/")[0].split("+")}:
        assert len(text.token_ids) == LENGTH
    given = [place for one in text.records for place in (*one.positions, *one.reopened, *one.edited)]
    assert min(given) >= 2


@settings(deadline=None, max_examples=120, derandomize=True)
@given(LINES, st.sampled_from(UNIFORM), st.sampled_from([0.0, 1.0]))
def test_with_uniform_noise_too(line: str, denoiser: FunctionDenoiser, temperature: float) -> None:
    line = line.replace("/", "+editable+fixed-point:7/") if "stable" not in line else line
    if is_refused(line, denoiser):
        return
    params = SamplingParams(temperature=temperature)
    text = write(Patience(denoiser), line, params=params, helpers=HELPERS)
    assert len(text.token_ids) == denoiser.length
    assert set(text.token_ids) <= {0, 1, 2}


TOGETHER = [
    "threshold:0.6+credit+adablock:0.3,size=2",
    "threshold:0.3+unseen+remask:0.5,budget=2,checks_end=1",
    "static:2+edit:0.6",
    "static+cfg+prophet:3,middle=2,late=1",
    "threshold:0.6+eot:0.6",
    "threshold:0.6+credit+eos+freedave:3",
]


@pytest.mark.parametrize("line", TOGETHER)
def test_no_text_depends_on_the_canvases_beside_it(line: str) -> None:
    denoiser = TABLES[0]
    strategy = parse_strategy(line, denoiser.spec, HELPERS)
    prompts, writings = [[0], [3, 1], [2, 2]], []
    for sample, prompt in enumerate(prompts):
        noise = noise_source(denoiser.spec, denoiser.vocab_size, 0, 0)
        canvas = Canvas.after(prompt, noise(np.arange(LENGTH), 0))
        writings.append(Writing(canvas, strategy, Drawing(GREEDY), noise, sequence=sample))
    for _ in denoise(denoiser, writings):
        pass
    for prompt, writing in zip(prompts, writings, strict=True):
        alone = write(denoiser, line, length=LENGTH, prompt=prompt, helpers=HELPERS)
        assert writing.canvas.token_ids[len(prompt) :].tolist() == alone.token_ids
        assert writing.stats.num_forwards == alone.stats.num_forwards


@pytest.mark.parametrize(
    "line",
    [
        "threshold:0.6+credit",
        "static+prophet:3,middle=2,late=1",
        "threshold:0.6+eos",
        "threshold:0.6+eot:0.6",
        "threshold:0.6+cfg",
        "threshold:0.6+adablock:0.3,size=2",
        "threshold:0.6+limit:3",
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_passes_made_ahead_change_no_text(line: str, temperature: float) -> None:
    for seed, denoiser in enumerate(TABLES):
        params = SamplingParams(temperature=temperature)
        kwargs = {"length": LENGTH, "prompt": [3], "params": params, "seed": seed, "helpers": HELPERS}
        plain = write(denoiser, line, **kwargs)
        ahead = write(denoiser, f"{line}+freedave:4", **kwargs)
        assert ahead.token_ids == plain.token_ids
        assert ahead.stats.num_steps == plain.stats.num_steps


class NoTwins:
    """No two equal words side by side; what follows an end of text is one too. Tries every completion."""

    name = "no-twins"

    def start(self, span: tuple[int, int], eos_ids: Sequence[int], vocab_size: int) -> NoTwins:
        self.start_at, self.end, self.vocab_size = span[0], span[1], vocab_size
        every = itertools.product(range(vocab_size - 1), repeat=span[1] - span[0])
        self.texts = np.array([text for text in every if self.accepts(text)])
        return self

    @staticmethod
    def accepts(text: Sequence[int]) -> bool:
        return all(
            (after == 0) if before == 0 else (before != after) for before, after in itertools.pairwise(text)
        )

    def _left(self, token_ids: Ids, is_open: Mask) -> Ids:
        assert len(token_ids) == self.end
        ids, settled = token_ids[self.start_at :], ~is_open[self.start_at :]
        return self.texts[(self.texts[:, settled] == ids[settled]).all(1)]

    def allowed(self, token_ids: Ids, is_open: Mask) -> AllowedTokens:
        left = self._left(token_ids, is_open)
        positions = np.flatnonzero(is_open)
        classes = np.zeros((len(positions), self.vocab_size), dtype=bool)
        for row, position in enumerate(positions):
            classes[row, left[:, position - self.start_at]] = True
        return AllowedTokens(positions, classes, np.arange(self.vocab_size, dtype=np.int32))

    def admit(self, token_ids: Ids, is_open: Mask, position: int, token_id: int) -> bool:
        ids, still_open = token_ids.copy(), is_open.copy()
        ids[position], still_open[position] = token_id, False
        return len(self._left(ids, still_open)) > 0


@pytest.mark.parametrize(
    "line",
    [
        "threshold:0.5+credit+eos",
        "prophet:1,middle=0.5,late=0.1",
        "threshold:0.4+limit:2",
        "threshold:0.4+adablock:0.3,size=2+cfg",
        "threshold:0.3+remask:0.9,budget=2,checks_end=1+eos",
        "threshold:0.3+unseen+remask:0.9,budget=2,checks_end=1",
        "static:3+temperature",
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_part_leaves_the_language_of_a_constraint(line: str, temperature: float) -> None:
    for seed, denoiser in enumerate(TABLES):
        constraint = NoTwins()
        strategy = parse_strategy(line, denoiser.spec, HELPERS).constrained(constraint)
        strategy.check(denoiser.spec)
        noise = noise_source(denoiser.spec, denoiser.vocab_size, seed, 0)
        canvas = Canvas.after([2], noise(np.arange(LENGTH), 0))
        limits = Limits(constraint, [Block(1, len(canvas))], denoiser.spec.eos_ids, denoiser.vocab_size)
        draw = Drawing(SamplingParams(temperature=temperature), seed)
        for _ in denoise(Patience(denoiser), [Writing(canvas, strategy, draw, noise, limits=limits)]):
            pass
        assert canvas.num_open == 0
        assert NoTwins.accepts(canvas.token_ids[1:].tolist())


def test_a_parameter_that_only_code_can_give_is_not_part_of_the_text() -> None:
    with pytest.raises(ConfigError, match="takes tau, size, reach"):
        parse_strategy("adablock:delimiter_ids=3", TABLES[0].spec, HELPERS)
    with pytest.raises(ConfigError, match="takes scale"):
        parse_strategy("cfg:spec=3", TABLES[0].spec)
