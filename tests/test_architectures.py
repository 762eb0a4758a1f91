"""Every causal language model of transformers: the text of its own `generate`, or a refusal that says why.

Alone, in ragged batches, in streams that take turns, drafted and plain, greedy and sampled, given as an
object and as a folder. The ordinary suite runs every architecture once, each in one of the ways, so that all
pairs of ways are covered; the product of all is slow.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch

import hasten
from conftest import each_alone
from small_architectures import LEFT_OUT, NAMES, PARTS, REFUSED, build

PROMPTS = [[5, 9, 13, 22] * 4, [40], [3, 60, 61, 62, 63, 3, 60]]
GREEDY = hasten.SamplingParams(max_new_tokens=20, ignore_eos=True)
SAMPLED = hasten.SamplingParams(max_new_tokens=20, ignore_eos=True, temperature=0.8, seed=11)

DRAFTERS = ("auto", "suffix", "token-recycling")
SIZES = (12, None)
WAYS = ("alone", "batch", "streams")
HOMES = ("object", "folder")
LAWS = ("greedy", "sampled")
COMBINATIONS = list(itertools.product(DRAFTERS, SIZES, WAYS, HOMES, LAWS))
# 29 and the number of combinations, 72, have no common divisor: neighbours differ in everything.
SELECTED = [(name, COMBINATIONS[29 * place % len(COMBINATIONS)]) for place, name in enumerate(NAMES)]


def transformers_greedy(model: Any, prompt: list[int]) -> list[int]:
    """By a model that has read nothing: RecurrentGemma begins a text of one token with the last state."""
    input_ids = torch.tensor([prompt])
    written = copy.deepcopy(model).generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=GREEDY.max_new_tokens,
        do_sample=False,
        eos_token_id=-1,
        pad_token_id=0,
    )
    return written[0, len(prompt) :].tolist()


def in_turns(lm: hasten.LanguageModel, params: Any, **choices: Any) -> list[list[int]]:
    """The texts of three streams that advance by turns."""
    streams = [lm.stream(prompt, params, **choices) for prompt in PROMPTS]
    columns = itertools.zip_longest(*streams)
    return [[piece.token_id for piece in row if piece] for row in zip(*columns, strict=True)]


def written(lm: hasten.LanguageModel, way: str, params: Any, **choices: Any) -> list[list[int]]:
    if way == "streams":
        return in_turns(lm, params, **choices)
    if way == "batch":
        return [output.token_ids for output in lm.generate(PROMPTS, params, **choices)]
    return [lm.generate(prompt, params, **choices).token_ids for prompt in PROMPTS]


def loaded(model: Any, home: str, folder: Any) -> hasten.LanguageModel:
    """The model, or what ``load`` makes of it when it was saved: packed or compiled where that is faster."""
    if home == "folder":
        model.save_pretrained(folder)
        model = folder
    return hasten.load(model)


def check(name: str, model: Any, lm: hasten.LanguageModel, combination: tuple[Any, ...]) -> None:
    drafter, size, way, _, law = combination
    params = GREEDY if law == "greedy" else SAMPLED
    if law == "greedy":
        expected = [transformers_greedy(model, prompt) for prompt in PROMPTS]
    else:
        calls = [PROMPTS] if way == "batch" else [[prompt] for prompt in PROMPTS]  # seeds go with the call
        expected = [output.token_ids for call in calls for output in each_alone(lm, call, params)]
    for _ in range(2):  # with drafts from what was read, and from what was written
        assert written(lm, way, params, drafter=drafter, num_draft_tokens=size) == expected, (
            name,
            combination,
        )


@pytest.mark.parametrize(("name", "combination"), SELECTED, ids=NAMES)
def test_an_architecture_writes_the_text_of_transformers(name, combination, tmp_path):
    model = build(name)
    lm = loaded(model, "object" if name in PARTS else combination[3], tmp_path)
    plain = [transformers_greedy(model, prompt) for prompt in PROMPTS]
    assert written(lm, "batch", GREEDY, drafter="off") == plain
    check(name, model, lm, combination)


@pytest.mark.slow
@pytest.mark.parametrize("home", HOMES)
@pytest.mark.parametrize("name", NAMES)
def test_an_architecture_writes_the_text_of_transformers_in_every_way(name, home, tmp_path):
    model = build(name)
    lm = loaded(model, "object" if name in PARTS else home, tmp_path)
    for combination in COMBINATIONS:
        if combination[3] == home:
            check(name, model, lm, combination)


def test_every_pair_of_ways_is_among_those_selected():
    chosen = [combination for _, combination in SELECTED]
    for one, two in itertools.combinations(range(5), 2):
        pairs = {(combination[one], combination[two]) for combination in COMBINATIONS}
        assert {(combination[one], combination[two]) for combination in chosen} == pairs


@pytest.mark.parametrize("name", REFUSED)
def test_an_architecture_whose_text_cannot_be_promised_is_refused(name):
    lm = hasten.load(build(name))
    with pytest.raises(
        hasten.ModelError, match=r"gives other logits for a text in one pass|cannot run a pass over"
    ):
        lm.generate(PROMPTS[0], GREEDY)


def test_what_is_left_out_has_a_reason():
    assert all(LEFT_OUT.values())
    assert not set(LEFT_OUT) & (set(NAMES) | set(REFUSED))
