"""Texts are judged by a stock model: near ties are excused as far as its own rounding explains them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as hf

from conftest import BASE, build_model
from hasten.bench.agreement import (
    Judge,
    LogitsAfter,
    Scores,
    Verdict,
    compare,
    is_exact,
    judge_of,
    most_partings,
    own_judge,
    replay,
    replayed,
)
from hasten.bench.models import OpenModel, open_model
from hasten.bench.programs import InThisProcess
from hasten.bench.prompts import Conversation, PromptSet
from hasten.bench.records import Record, records_of
from hasten.bench.runner import BenchConfig, Benchmark
from hasten.core import SamplingParams
from hasten.models.causal_lm import CausalLM
from hasten.sampling import Sampler
from hasten.text.engine import LanguageModel
from hasten.tree import DraftTree

PLAIN, OTHER = [5, 6, 7, 8], [5, 6, 9, 8]
TRUE = {5: 9.0, 6: 9.0, 8: 9.0}
"""position -> the logit of plain decoding's token there; the third position is the tests' to choose"""


def fixed(noise: float = 0.0, **scores: float) -> Scores:
    """The same logits whatever was written; both texts' tokens are certain around the third."""

    def after(prompt_ids: list[int], written: list[int], count: int) -> torch.Tensor:
        rows = []
        for length in range(len(written) - count + 1, len(written) + 1):
            logits = torch.full((12,), -5.0)
            if length == 2:
                for name, score in scores.items():
                    logits[int(name[1:])] = score
            else:
                logits[PLAIN[length]] = 9.0
            rows.append(logits + noise * torch.tensor([1.0, -1.0]).repeat(6))
        return torch.stack(rows)

    return after


def judge(precise: Scores, rounded: Scores, dtype: torch.dtype = torch.bfloat16) -> Judge:
    return Judge(dtype, rounded, precise)


def verdict(of: Judge, *own: Scores, temperature: float = 0.0, other: list[int] | None = None) -> Verdict:
    ways: list[LogitsAfter] = [lambda p, w, way=way: way(p, w, 1)[0] for way in own]  # type: ignore[misc]
    params = SamplingParams(temperature=temperature)
    chosen = OTHER if other is None else other
    return compare([1, 2], PLAIN, chosen, judge=of, own=ways, params=params, seed=3).verdict


NEAR = judge(fixed(t7=1.0, t9=0.9), fixed(noise=0.05, t7=1.0, t9=0.95))
"""the rounding moves a logit by 0.05, so that gaps of 5 * sqrt(2) * 0.05 = 0.35 are excused"""


def test_equal_texts_ask_nobody() -> None:
    assert verdict(judge(None, None), other=PLAIN) == "same"  # type: ignore[arg-type]


def test_a_tie_within_the_rounding_is_excused_where_every_score_says_so() -> None:
    assert verdict(NEAR) == verdict(NEAR, fixed(t7=0.8, t9=1.0)) == "near tie"
    assert verdict(NEAR, fixed(t7=0.8, t9=1.0), fixed(t7=1.0, t9=0.5)) == "different"


def test_two_tokens_that_are_equally_bad_are_no_tie() -> None:
    """As a broken pass writes them: close to each other by its own scores, and far from the best."""
    of = judge(fixed(t7=1.0, t9=1.0, t3=4.0), fixed(noise=0.05, t7=1.0, t9=1.0, t3=4.0))
    assert verdict(of, fixed(t7=1.0, t9=1.0)) == "different"


def test_the_method_does_not_decide_what_rounding_is() -> None:
    assert verdict(NEAR, fixed(noise=5.0, t7=1.0, t9=-4.0)) == "different"


def test_what_follows_a_parting_is_judged_too() -> None:
    assert verdict(NEAR, other=[*OTHER[:3], 2]) == "different"


def test_the_programs_own_tie_is_none_where_the_judge_sees_none() -> None:
    sure = judge(fixed(t7=1.0, t9=0.5), fixed(noise=0.05, t7=1.0, t9=0.5))
    assert verdict(sure, fixed(t7=1.0, t9=1.0)) == "different"


def test_next_to_nothing_is_excused_in_float32() -> None:
    def exact(gap: float) -> Judge:
        return judge(fixed(t7=1.0, t9=1.0 - gap), fixed(noise=0.05, t7=1.0, t9=1.0 - gap), torch.float32)

    assert verdict(exact(1e-4)) == "near tie"  # of logits of 5
    assert verdict(exact(1e-3)) == "different"
    assert [is_exact(one) for one in (torch.float32, torch.float64, torch.bfloat16)] == [True, True, False]


def test_a_text_that_ends_early_is_different() -> None:
    assert verdict(NEAR, other=PLAIN[:2]) == verdict(NEAR, other=[*PLAIN, 1]) == "different"


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_sampled_scores_hold_the_noise_of_their_position(temperature: float) -> None:
    """With equal logits the tokens are apart by their Gumbel noise; logits that make up for it are a tie."""
    sampler = Sampler(SamplingParams(temperature=temperature), 3, 0)
    noise = temperature * sampler.scores(torch.zeros(12), [1, 2, 5, 6])
    high = 30.0 + float(noise[7] - noise[9])
    level = judge(fixed(t7=30.0, t9=high), fixed(noise=0.01, t7=30.0, t9=high))
    apart = judge(fixed(t7=30.0, t9=30.0), fixed(noise=0.01, t7=30.0, t9=30.0))

    def at(of: Judge) -> Verdict:
        params = SamplingParams(temperature=temperature)
        return compare([1, 2], PLAIN[:3], OTHER[:3], judge=of, params=params, seed=3).verdict

    gap = abs(float(noise[7] - noise[9]))
    assert at(apart) == "different"
    assert gap > 0.1
    found = compare(
        [1, 2], PLAIN[:3], OTHER[:3], judge=level, params=SamplingParams(temperature=temperature), seed=3
    )
    assert found.gap < 1e-4


def test_a_text_is_checked_at_every_position() -> None:
    found = NEAR.check([1, 2], PLAIN, SamplingParams(), 0)
    assert found.agreement.verdict == "same"
    assert 0.1 < found.chance < 0.5  # a gap of 0.1 and rounding of 0.05: either pass flips with 8 %
    assert NEAR.check([1, 2], OTHER, SamplingParams(), 0).agreement.verdict == "near tie"
    wrong = NEAR.check([1, 2], [4, *PLAIN[1:]], SamplingParams(), 0)
    assert (wrong.agreement.verdict, wrong.agreement.position) == ("different", 0)


def test_more_partings_than_the_rounding_explains_are_too_many() -> None:
    assert most_partings([0.0] * 20) == 1
    assert 3 < most_partings([0.1] * 10) < 10
    assert most_partings([0.5] * 4) > 4  # every text may


@pytest.mark.parametrize("num_rows", [1, 4, 24])
def test_replays_agree_with_a_plain_pass(demo: Any, num_rows: int) -> None:
    prompt_ids = demo.encode("User: I want to book a table.\nAssistant:")
    written = demo.generate(prompt_ids, SamplingParams(max_new_tokens=9), drafter="off").token_ids
    with torch.inference_mode():
        expected = demo.target.forward.model(torch.tensor([[*prompt_ids, *written]])).logits[0]
    found = replayed(demo.target, num_rows)(prompt_ids, written, 10)
    torch.testing.assert_close(found, expected[-10:], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(replay(demo.target, num_rows)(prompt_ids, written), found[-1])


def test_a_model_that_transformers_does_not_run_is_judged_by_its_own_passes(demo: Any) -> None:
    written = demo.generate("Once upon a time", SamplingParams(max_new_tokens=9), drafter="off")
    found = own_judge(demo.target).check(written.prompt_ids, written.token_ids, SamplingParams(), 0)
    assert found.agreement.verdict == "same"


def test_a_forged_text_is_caught_in_bfloat16() -> None:
    half = open_model("demo", dtype="bfloat16", device="cpu", forward="stock").language_model
    model = half.target.forward.model
    params = SamplingParams(max_new_tokens=12)
    plain = half.generate("User: I want to book a table.\nAssistant:", params, drafter="off")
    forged = list(plain.token_ids)
    forged[6] = (forged[6] + 1) % half.target.vocab_size
    stock = judge_of(model, lambda dtype: build_like(model, dtype))
    check = stock.check(plain.prompt_ids, plain.token_ids, params, plain.seed)
    assert check.agreement.verdict != "different"
    found = compare(plain.prompt_ids, plain.token_ids, forged, judge=stock, params=params, seed=plain.seed)
    assert (found.verdict, found.position) == ("different", 6)
    assert found.gap > found.noise


def build_like(model: Any, dtype: torch.dtype) -> Any:
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    return copy.to(dtype).eval()


def gemma(seed: int = 0) -> Any:
    """Scaled tied embeddings, as Gemma's are."""
    torch.manual_seed(seed)
    config = hf.Gemma3TextConfig(**BASE | {"num_hidden_layers": 2, "head_dim": 8, "initializer_range": 0.3})
    return hf.Gemma3ForCausalLM(config).eval()


def measured(broken: Any, stock: Any, dtype: torch.dtype) -> list[Record]:
    """The records of plain decoding and of suffix matching on ``broken``, judged by ``stock``."""
    opened = OpenModel("tiny", None, LanguageModel(CausalLM(broken.to(dtype)), drafter="off"), 0, "stock", "")
    config = BenchConfig(methods=("token-recycling",), baselines=(), max_new_tokens=24, ignore_eos=True)
    programs = InThisProcess(lambda: (stock.to(dtype), None))
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(3, 97, (6, 12), generator=generator).tolist()
    benchmark = Benchmark(opened, replace(config, num_draft_tokens=12), programs)
    benchmark.run([PromptSet("some", tuple(Conversation((), False, "", tuple(row)) for row in rows))])
    return records_of(benchmark)


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@DTYPES
@pytest.mark.parametrize("build", [build_model, gemma])
def test_right_models_pass(dtype: torch.dtype, build: Callable[[], Any]) -> None:
    assert [record["identical"] for record in measured(build(), build(), dtype)] == [True, True]


@DTYPES
def test_an_embedding_without_its_scale_is_found(dtype: torch.dtype) -> None:
    broken = gemma()
    weight = broken.model.embed_tokens.weight
    broken.model.embed_tokens = torch.nn.Embedding.from_pretrained(weight.detach().clone(), padding_idx=0)
    plain, _ = measured(broken, gemma(), dtype)
    assert plain["identical"] is False


@DTYPES
def test_a_visible_sibling_is_found(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = DraftTree.attention_mask

    def leaky(self: DraftTree) -> Any:
        found = mask(self).copy()
        for node in range(1, len(self)):
            if self.parents[node] == self.parents[node - 1]:
                found[node, node - 1] = True
        return found

    model = build_model()
    opened = CausalLM(model)
    assert opened.probe.mode == "tree"
    monkeypatch.setattr(CausalLM, "probe", opened.probe)  # the probe would refuse trees
    monkeypatch.setattr(DraftTree, "attention_mask", leaky)
    _, drafted = measured(model, build_model(), dtype)
    assert drafted["identical"] is False
