"""When a text ends early: Prophet, foreseen and written ends of text, a bound on passes."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion.exact_laws import JointOracle, Written, random_joint, write
from diffusion.tables import FunctionDenoiser, table_denoiser
from hasten.constraints.base import Constraint
from hasten.core import SamplingParams
from hasten.diffusion.canvas import Canvas, DenoiserSpec
from hasten.diffusion.parse import parse_strategy
from hasten.errors import ConfigError

SAMPLED = SamplingParams(temperature=1.0)
EOS = 0
BASES = ["static", "static:2", "threshold:0.6", "threshold:0.6+blocks:4", "static:order=left-to-right"]


def visible(token_ids: list[int]) -> list[int]:
    """Up to the first end of text, that one included."""
    return token_ids[: token_ids.index(EOS) + 1] if EOS in token_ids else token_ids


def smooth_joint(seed: int, length: int = 6) -> JointOracle:
    """No token is impossible, so that gaps between logits are finite."""
    return JointOracle(random_joint(seed, length=length).probs + 1e-6, eos_ids=(EOS,))


def written_tokens(text: Written) -> list[dict[int, int]]:
    """After each step: position -> token of what is not open."""
    return [
        {place: int(one.canvas_ids[place]) for place in np.flatnonzero(~one.is_open)} for one in text.records
    ]


# Prophet


@pytest.mark.parametrize("params", [SamplingParams(), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("base", BASES)
def test_prophet_that_asks_for_an_endless_gap_is_its_base(base: str, params: SamplingParams) -> None:
    base = base.replace("blocks:4", "blocks:3")
    for seed in range(10):
        oracle = smooth_joint(seed)
        plain = write(oracle, base, params=params)
        patient = write(oracle, f"{base}+prophet:inf,middle=inf,late=inf", params=params)
        assert patient.token_ids == plain.token_ids
        assert patient.stats.num_forwards == plain.stats.num_forwards


def test_a_certain_canvas_is_written_at_once() -> None:
    logits = np.zeros((12, 4))
    logits[np.arange(12), np.arange(12) % 4] = 30.0
    text = write(FunctionDenoiser(lambda token_ids: logits, 4, length=12), "prophet+blocks:4")
    assert text.stats.num_forwards == 1
    assert text.token_ids == [place % 4 for place in range(12)]


@pytest.mark.parametrize("name", ["early", "middle", "late"])
def test_a_smaller_gap_never_takes_more_passes(name: str) -> None:
    num_fewer = 0
    for seed in range(30):
        denoiser = table_denoiser(seed)
        passes = [
            write(denoiser, f"static+prophet:{name}={gap}").stats.num_forwards for gap in (30, 7.5, 5, 2.5, 0)
        ]
        assert passes == sorted(passes, reverse=True)
        num_fewer += passes[0] > passes[-1]
    assert num_fewer > 0


def test_tokens_before_the_exit_are_those_of_the_base() -> None:
    for seed in range(20):
        oracle = smooth_joint(seed)
        plain, early = write(oracle, "static"), write(oracle, "prophet")
        last = len(early.records) - 1
        for before, after in zip(plain.records[:last], early.records[:last], strict=True):
            assert before.positions.tolist() == after.positions.tolist()
            assert before.token_ids.tolist() == after.token_ids.tolist()


def test_less_is_asked_for_later() -> None:
    logits = np.zeros((6, 3))
    logits[:, 1] = 5.5
    text = write(FunctionDenoiser(lambda token_ids: logits, 3, length=6), "static+prophet")
    assert [len(one.positions) for one in text.records] == [1, 1, 4]
    in_blocks = write(FunctionDenoiser(lambda token_ids: logits, 3, length=6), "static+prophet+blocks:2")
    assert [len(one.positions) for one in in_blocks.records] == [1, 1, 4]
    logits[:, 1] = 3.0
    text = write(FunctionDenoiser(lambda token_ids: logits, 3, length=6), "static+prophet")
    assert [len(one.positions) for one in text.records] == [1, 1, 1, 1, 1, 1]
    text = write(FunctionDenoiser(lambda token_ids: logits[:1].repeat(12, 0), 3, length=12), "static+prophet")
    assert [len(one.positions) for one in text.records] == [1] * 9 + [3]


def test_the_gap_is_the_mean_over_everything_that_is_open() -> None:
    logits = np.zeros((4, 3))
    logits[:, 1] = 9.0, 9.0, 1.0, 1.0
    denoiser = FunctionDenoiser(lambda token_ids: logits, 3, length=4)
    assert len(write(denoiser, "static+prophet+blocks:2").records[0].positions) == 1
    assert len(write(denoiser, "static+prophet:5+blocks:2").records[0].positions) == 4


# a foreseen end of text


@pytest.mark.parametrize("likeliest", [0, 1])
@pytest.mark.parametrize("base", BASES)
def test_no_written_token_before_the_cut_is_ever_lost(base: str, likeliest: int) -> None:
    num_cut = 0
    for seed in range(20):
        text = write(table_denoiser(seed, eos_ids=(EOS,)), f"{base}+eot:0.6,likeliest={likeliest}")
        known: dict[int, int] = {}
        for tokens in written_tokens(text):
            end = max(tokens, default=0)
            assert {place: known[place] for place in known if place <= end}.items() <= tokens.items()
            known = tokens
        assert len(known) == len(text.token_ids)
        num_cut += len(text.token_ids) < 8
    assert num_cut > 0


def test_the_canvas_is_cut_behind_the_first_sure_end() -> None:
    logits = np.zeros((8, 3))
    logits[:, 1] = 1.0
    logits[[3, 5, 6], EOS] = 6.0, 9.0, 2.0
    denoiser = FunctionDenoiser(lambda token_ids: logits, 3, eos_ids=(EOS,), length=8)
    text = write(denoiser, "static+eot")
    assert text.token_ids == [1, 1, 1, EOS]
    assert [len(query.token_ids) for [query] in denoiser.queries] == [8, 4, 4, 4]
    surer = write(denoiser, "static+eot:0.9995")
    assert surer.token_ids == [1, 1, 1, EOS, 1, EOS]


def test_an_unsure_end_is_left_alone_unless_the_likeliest_is_asked_for() -> None:
    logits = np.zeros((8, 3))
    logits[:, 1] = 1.0
    logits[[2, 5], EOS] = 1.1, 1.5
    denoiser = FunctionDenoiser(lambda token_ids: logits, 3, eos_ids=(EOS,), length=8)
    assert write(denoiser, "static+eot").token_ids == write(denoiser, "static").token_ids
    denoiser.queries.clear()
    text = write(denoiser, "static+eot:likeliest=1")
    assert [len(query.token_ids) for [query] in denoiser.queries] == [8, 6, 6, 6, 6, 6]
    assert text.token_ids == [1, 1, EOS]


def test_without_a_sure_end_nothing_changes() -> None:
    for seed in range(10):
        denoiser = table_denoiser(seed, eos_ids=(EOS,))
        assert (
            write(denoiser, "threshold:0.5+eot:1.01").token_ids == write(denoiser, "threshold:0.5").token_ids
        )


# a written end of text


@pytest.mark.parametrize("params", [SamplingParams(), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("base", [*BASES, "threshold:0.6+freedave:3", "credit+threshold:0.8"])
def test_stopping_at_a_written_end_leaves_the_visible_text(base: str, params: SamplingParams) -> None:
    num_saved = 0
    for seed in range(25):
        denoiser = table_denoiser(seed, eos_ids=(EOS,), length=9)
        kwargs = {"length": 8, "prompt": [EOS], "params": params, "seed": seed}
        plain = write(denoiser, base, **kwargs)
        stopped = write(denoiser, f"{base}+eos", **kwargs)
        assert visible(stopped.token_ids) == stopped.token_ids == visible(plain.token_ids)
        assert stopped.stats.num_forwards <= plain.stats.num_forwards
        num_saved += plain.stats.num_forwards - stopped.stats.num_forwards
    assert num_saved > 0


def test_open_positions_before_an_end_are_written_first() -> None:
    logits = np.zeros((6, 3))
    logits[:, 1] = 1.0 + np.arange(6)
    logits[3, EOS] = 20.0
    denoiser = FunctionDenoiser(lambda token_ids: logits, 3, eos_ids=(EOS,), length=6)
    text = write(denoiser, "static+eos")
    assert text.token_ids == [1, 1, 1, EOS]
    assert text.records[0].positions.tolist() == [3]
    assert text.stats.num_forwards == 6


def test_a_written_end_is_exact_and_a_foreseen_one_is_not() -> None:
    spec = DenoiserSpec(mask_id=9, eos_ids=(EOS,))
    assert parse_strategy("static+eos", spec).guarantee == "exact"
    assert parse_strategy("static+eot", spec).guarantee == "approximate"
    assert parse_strategy("static+eos+remask", spec).guarantee == "approximate"


@pytest.mark.parametrize("name", ["eos", "eot"])
def test_a_gap_inside_given_text_is_not_cut(name: str) -> None:
    spec = DenoiserSpec(mask_id=9, eos_ids=(EOS,))
    canvas = Canvas.with_gaps(np.array([1, 9, 9, 1]), np.array([False, True, True, False]))
    with pytest.raises(ConfigError, match=f"{name} cuts the end"):
        parse_strategy(f"static+{name}", spec).check_canvas(canvas)


# a bound on passes


@pytest.mark.parametrize("base", [*BASES, "threshold:0.6+freedave:4"])
def test_a_limit_bounds_the_steps(base: str) -> None:
    for seed in range(5):
        denoiser = table_denoiser(seed)
        for passes in (1, 3, 20):
            text = write(denoiser, f"{base}+limit:{passes}")
            assert text.stats.num_steps <= passes
            assert len(text.token_ids) == 8
            assert denoiser.spec.mask_id not in text.token_ids
        assert text.token_ids == write(denoiser, base).token_ids


# refusals


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("limit:0", "at least one pass"),
        ("eos", "eos_ids"),
        ("eot", "eos_ids"),
        ("fixed-point:0", "at least one pass"),
        ("stable:0", "at least one pass"),
        ("stable:steps=0", "at least one pass"),
        ("static+fixed-point", "uniform noise"),
        ("static+stable", "uniform noise"),
    ],
)
def test_what_cannot_work_is_refused(line: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_strategy(line, table_denoiser(0).spec)


def test_a_foreseen_end_and_a_constraint_do_not_go_together() -> None:
    spec = DenoiserSpec(mask_id=9, eos_ids=(EOS,))

    class Anything:
        name = "anything"
        start = None

    constraint: Constraint = Anything()
    with pytest.raises(ConfigError, match=r"eot.*constraint"):
        parse_strategy("static+eot", spec).constrained(constraint).check(spec)


def test_prophet_and_limit_need_a_denoiser_that_sees_to_the_end() -> None:
    spec = DenoiserSpec(mask_id=9, attention="block-causal", block_size=4)
    with pytest.raises(ConfigError, match=r"prophet.*no later block"):
        parse_strategy("prophet", spec)
    spec = DenoiserSpec(mask_id=None, attention="encoder-decoder", block_size=4, noise="uniform")
    with pytest.raises(ConfigError, match=r"limit.*no later block.*stable"):
        parse_strategy("renoise+limit", spec)
