"""What users pass in is read once: converted where it means the same, refused by name otherwise."""

from __future__ import annotations

import array

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from transformers import BatchEncoding, LogitsProcessorList, TemperatureLogitsWarper

import hasten
from conftest import VOCAB, build_model
from hasten.core import SamplingParams, prompt_seeds
from hasten.errors import ConfigError, ModelError, PromptError
from hasten.models.causal_lm import CausalLM
from hasten.policies import FixedPolicy
from hasten.prompts import read_prompts
from hasten.text.engine import LanguageModel

TEXT = [5, 6, 7, 8]
PARAMS = SamplingParams(max_new_tokens=8, ignore_eos=True)


def twice(input_ids, scores):
    return scores * 2


GOOD_PARAMS = {
    "max_new_tokens": [3, np.int64(3), np.uint8(3), torch.tensor(3)],
    "temperature": [0.5, np.float64(0.5), np.float16(0.5), torch.tensor(0.5)],
    "top_k": [7, np.int32(7), torch.tensor(7)],
    "top_p": [1, 1.0, np.float32(1)],
    "min_p": [0, 0.0, np.int64(0)],
    "n": [2, np.int8(2)],
    "seed": [3, np.int64(3), np.uint64(3), torch.tensor(3)],
    "ignore_eos": [True, np.bool_(True), torch.tensor(True)],
    "stop": ["ab", ["ab"], ("ab",), {"ab"}, iter(["ab"]), np.array(["ab"]), (each for each in ["ab"])],
    "stop_token_ids": [
        *(4, [4], (4,), {4}, iter([4]), np.int64(4), np.array([4]), torch.tensor(4), torch.tensor([4])),
        *([np.int64(4)], [torch.tensor(4)], array.array("l", [4]), (each for each in [4])),
    ],
    "logits_processors": [twice, [twice], (twice,), iter([twice]), LogitsProcessorList([twice])],
}
CANONICAL = {"stop": ("ab",), "stop_token_ids": (4,), "logits_processors": (twice,), "ignore_eos": True}


@pytest.mark.parametrize("name", GOOD_PARAMS)
def test_values_that_mean_the_same_are_the_same(name):
    for value in GOOD_PARAMS[name]:
        found = getattr(SamplingParams(**{name: value}), name)
        assert found == CANONICAL.get(name, GOOD_PARAMS[name][0])
        assert type(found) in (int, float, bool, tuple)


BAD_PARAMS = {
    "max_new_tokens": [2.5, 2.0, "2", True, None, np.float64(2), float("nan"), torch.tensor([2, 3]), [2]],
    "temperature": ["0.5", True, None, np.float64("nan"), 1j, [0.5], torch.tensor([0.5, 0.5])],
    "top_k": [2.5, "2", True, 0, -1],
    "top_p": ["1", True, None, float("nan"), 0, 1.5],
    "min_p": ["0", None, -0.1, 1.1],
    "n": [1.5, "1", True, None, 0],
    "seed": [1.5, "1", True, -1, 2**64, np.float32(1)],
    "ignore_eos": ["false", 0, None, 1],
    "stop": ["", ["a", ""], b"a", [b"a"], 5, [5], {"a": 1}, [None]],
    "stop_token_ids": ["5", ["5"], b"5", 2.5, [2.5], True, [True], -1, [-1], [[4]], torch.tensor([0.5])],
    "logits_processors": [5, [5], "twice", {"a": twice}, [None]],
}


@pytest.mark.parametrize("name", BAD_PARAMS)
def test_values_that_mean_something_else_are_refused_by_name(name):
    for value in BAD_PARAMS[name]:
        with pytest.raises(ConfigError, match=rf"^{name}=.* cannot work; it must be "):
            SamplingParams(**{name: value})


scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.binary())


@given(st.sampled_from(sorted(GOOD_PARAMS)), st.one_of(scalars, st.lists(scalars, max_size=3)))
def test_any_value_becomes_canonical_or_is_refused(name, value):
    try:
        params = SamplingParams(**{name: value})
    except ConfigError:
        return
    assert params == SamplingParams(**{name: getattr(params, name)})
    assert isinstance(params.stop, tuple)
    assert all(type(each) is str for each in params.stop)
    assert all(type(each) is int and each >= 0 for each in params.stop_token_ids)


def test_an_iterator_of_processors_or_stops_is_not_used_up(models):
    def ban(input_ids, scores):
        scores[:, plain[3]] = -torch.inf
        return scores

    lm = models()
    plain = lm.generate(TEXT, PARAMS).token_ids
    params = SamplingParams(max_new_tokens=8, ignore_eos=True, logits_processors=iter([ban]))
    for _ in range(2):
        assert plain[3] not in lm.generate(TEXT, params).token_ids
    params = SamplingParams(max_new_tokens=8, ignore_eos=True, stop_token_ids=iter([plain[2]]))
    for _ in range(2):
        assert lm.generate(TEXT, params).finish_reason == "stop"


def test_a_stop_token_outside_the_vocabulary_is_refused(models):
    with pytest.raises(ConfigError, match=rf"{VOCAB} is outside the vocabulary of {VOCAB} tokens"):
        models().generate(TEXT, SamplingParams(stop_token_ids=[4, VOCAB]))


SAME_PROMPT = {
    "tuple": (5, 6, 7, 8),
    "generator": (each for each in TEXT),
    "range": range(5, 9),
    "numpy": np.array(TEXT),
    "numpy small": np.array(TEXT, np.uint8),
    "numpy objects": np.array(TEXT, object),
    "torch": torch.tensor(TEXT),
    "torch int32": torch.tensor(TEXT, dtype=torch.int32),
    "numpy scalars": [np.int64(each) for each in TEXT],
    "torch scalars": list(torch.tensor(TEXT)),
    "array": array.array("h", TEXT),
    "encoding": {"input_ids": TEXT, "attention_mask": [1, 1, 1, 1]},
    "padded encoding": {"input_ids": [0, 0, *TEXT, 0], "attention_mask": [0, 0, 1, 1, 1, 1, 0]},
}


@pytest.mark.parametrize("name", SAME_PROMPT)
def test_one_prompt_in_many_shapes(models, name):
    expected = models().generate(TEXT, PARAMS)
    found = models().generate(SAME_PROMPT[name], PARAMS)
    assert (found.prompt_ids, found.token_ids) == (TEXT, expected.token_ids)


OTHER = [40, 41]
SAME_PROMPTS = {
    "tuple of tuples": (tuple(TEXT), tuple(OTHER)),
    "generator": (each for each in (TEXT, OTHER)),
    "generators": [iter(TEXT), iter(OTHER)],
    "tensors": [torch.tensor(TEXT), torch.tensor(OTHER)],
    "numpy": [np.array(TEXT), np.array(OTHER)],
    "numpy objects": np.array([TEXT, OTHER], object),
    "encoding": BatchEncoding(
        {
            "input_ids": torch.tensor([TEXT, [0, 0, *OTHER]]),
            "attention_mask": torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]]),
        }
    ),
}


@pytest.mark.parametrize("name", SAME_PROMPTS)
def test_several_prompts_in_many_shapes(models, name):
    found = models().generate(SAME_PROMPTS[name], PARAMS)
    assert [one.prompt_ids for one in found] == [TEXT, OTHER]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_an_array_of_two_dimensions_is_a_list(dtype):
    rows = torch.tensor([TEXT, TEXT], dtype=dtype)
    assert read_prompts(rows) == read_prompts(rows.numpy()) == ([TEXT, TEXT], False)
    assert read_prompts(rows[:1]) == ([TEXT], False)
    assert read_prompts(np.array("a text")) == (["a text"], True)
    assert read_prompts(np.array(["one", "two"])) == (["one", "two"], False)
    assert read_prompts([]) == read_prompts(iter([])) == ([], False)


@pytest.mark.parametrize("row", [[0, *TEXT], [*TEXT, 0]])
def test_padding_without_its_mask_is_not_read_as_text(row):
    for rows in (torch.tensor([[9, *TEXT], row]), np.array([row]), torch.tensor(row)):
        with pytest.raises(PromptError, match=r"begins or ends with the pad token \(0\).*attention_mask"):
            read_prompts(rows, pad_token_id=0)


BAD_PROMPTS = {
    "bytes": (b"hello", "bytes.*decode"),
    "bytes in a list": ([b"hello"], "bytes.*decode"),
    "bytearray": (bytearray(b"hello"), "bytes.*decode"),
    "booleans": ([True, False], "not True"),
    "a boolean": ([5, True], "not True"),
    "boolean tensor": (torch.tensor([True, False]), "not True"),
    "fractions": ([5.0, 6.0], "not 5.0"),
    "float tensor": (torch.tensor([5.0, 6.0]), "not 5.0"),
    "text ids": (["5", "6"], "without a tokenizer"),
    "mixed": ([5, "6"], "not '6'"),
    "none": (None, "no prompts"),
    "nones": ([None], "not None"),
    "set": ({5, 6}, "no prompts"),
    "number": (5, "no prompts"),
    "nested": ([[[5, 6]]], r"not \[5, 6\]"),
    "deep array": (np.zeros((1, 2, 3), int), r"shape \[2, 3\]"),
    "empty": ([], "no prompts"),
    "empty tensor": (torch.empty(0, dtype=torch.long), "no prompts"),
    "empty rows": ([[], []], "no tokens"),
    "empty columns": (torch.empty(2, 0, dtype=torch.long), "no tokens"),
    "messages": ([{"role": "user", "content": "hi"}], "apply_chat_template"),
    "a message": ({"role": "user"}, "no input_ids"),
    "images": ({"input_ids": [5], "pixel_values": [1]}, "pixel_values"),
    "holes": ({"input_ids": [5, 6, 7], "attention_mask": [1, 0, 1]}, "inside a prompt"),
    "all hidden": ({"input_ids": [5, 6], "attention_mask": [0, 0]}, "no tokens"),
    "other mask": ({"input_ids": [5, 6], "attention_mask": [1]}, "differ in shape"),
}


@pytest.mark.parametrize("name", BAD_PROMPTS)
def test_what_is_no_prompt_is_refused(models, name):
    prompt, reason = BAD_PROMPTS[name]
    with pytest.raises(PromptError, match=reason):
        models().generate(prompt, PARAMS)


ids = st.one_of(st.integers(-3, VOCAB + 2), st.booleans(), st.floats(), st.text(max_size=1), st.none())
nested = st.recursive(
    ids, lambda inner: st.one_of(st.lists(inner, max_size=3), st.tuples(inner)), max_leaves=6
)


@given(nested)
def test_any_prompt_is_read_or_refused(prompt):
    lm = LanguageModel(TARGET, drafter="off")
    try:
        found = lm.generate(prompt, SamplingParams(max_new_tokens=1))
    except PromptError:
        return
    rows = [one.prompt_ids for one in found] if isinstance(found, list) else found.prompt_ids
    assert rows == (list(map(list, prompt)) if isinstance(found, list) else list(prompt))


TARGET = CausalLM(build_model(), mode="tree")


@pytest.mark.parametrize("value", [2.5, "2", True, None])
def test_sizes_are_whole_numbers(models, value):
    with pytest.raises(ConfigError, match=r"batch_size=.*whole number"):
        models().generate(TEXT, PARAMS, batch_size=value)
    with pytest.raises(ConfigError, match=r"num_draft_tokens=.*whole number"):
        FixedPolicy(value)
    with pytest.raises(ConfigError, match=r"k=.*whole number"):
        models().autocomplete(TEXT, k=value)


@pytest.mark.parametrize("form", [int, list, tuple, torch.tensor, np.array])
def test_end_tokens_of_a_config_in_any_form(form):
    model = build_model()
    lm = LanguageModel(CausalLM(model, mode="tree"), drafter="off")
    text = lm.generate(TEXT, PARAMS).token_ids
    ends = text[3] if form is int else [text[3], 96]
    model.generation_config.eos_token_id = form(ends)
    found = lm.generate(TEXT, SamplingParams(max_new_tokens=8))
    assert found.token_ids == text[: text.index(text[3]) + 1]
    assert found.finish_reason == "stop"
    model.generation_config.eos_token_id = -1  # as some configs say none
    assert lm.target.stop_token_ids == frozenset()


def test_equal_prompts_of_a_call_have_independent_noise(models):
    params = SamplingParams(max_new_tokens=8, ignore_eos=True, temperature=1.0)
    for seed in (None, 7):
        found = models().generate([TEXT] * 4, SamplingParams(**sampled(seed)))
        assert len({tuple(one.token_ids) for one in found}) == 4
        for one in found:
            again = models().generate(TEXT, SamplingParams(**sampled(one.seed)), drafter="suffix")
            assert again.token_ids == one.token_ids
    assert params.seed is None


def sampled(seed, n=1):
    return {"max_new_tokens": 8, "ignore_eos": True, "temperature": 1.0, "seed": seed, "n": n}


def test_samples_of_several_prompts_are_those_of_their_seeds(models):
    both = models().generate([TEXT, TEXT], SamplingParams(**sampled(7, n=2)))
    assert len({tuple(one.token_ids) for one in both}) == 4
    assert [one.seed for one in both[:2]] == [7, 7]
    alone = models().generate([TEXT], SamplingParams(**sampled(both[2].seed, n=2)))
    assert [one.token_ids for one in alone] == [one.token_ids for one in both[2:]]


def test_seeds_of_prompts_are_those_of_splitmix64():
    """The outputs of the reference implementation, started at 1234567."""
    assert prompt_seeds(1234567, 4) == [
        *(1234567, 6457827717110365317, 3203168211198807973, 9817491932198370423)
    ]
    assert len(set(prompt_seeds(2**64 - 1, 1000))) == 1000
    assert all(0 <= seed < 2**64 for seed in prompt_seeds(2**64 - 1, 1000))
    drawn = prompt_seeds(None, 3)
    assert len(set(drawn)) == 3
    assert set(drawn).isdisjoint(prompt_seeds(None, 3))


@pytest.mark.parametrize("seed", [np.int64(3), np.uint64(2**64 - 1), 2**64 - 1, torch.tensor(3)])
def test_any_seed_has_several_samples(models, seed):
    found = models().generate([TEXT, OTHER], SamplingParams(**sampled(seed, n=2)))
    assert len({tuple(one.token_ids) for one in found}) == 4
    again = models().generate([TEXT, OTHER], SamplingParams(**sampled(int(seed), n=2)))
    assert [one.token_ids for one in again] == [one.token_ids for one in found]


def test_a_processor_list_of_transformers_is_several(models):
    processors = LogitsProcessorList([twice, TemperatureLogitsWarper(2.0)])
    params = SamplingParams(**sampled(3), logits_processors=processors)
    assert len(params.logits_processors) == 2
    plain = models().generate(TEXT, SamplingParams(**sampled(3)))
    assert models().generate(TEXT, params).token_ids == plain.token_ids


BAD_ARGUMENTS = {
    "verify": [5, ["follow"], {}, b"follow"],
    "drafter": [5, ["off"], b"off", True],
    "policy": [None, ["cost"], {}],
    "params": ["greedy", {"max_new_tokens": 3}, 5],
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_arguments_of_another_type_are_refused_by_name(models, name):
    for value in BAD_ARGUMENTS[name]:
        with pytest.raises(ConfigError, match=rf"^{name}="):
            models().generate(TEXT, **{"params": PARAMS} | {name: value})


@pytest.mark.parametrize("form", [torch.tensor([TEXT]), {"input_ids": TEXT}, [TEXT], iter(TEXT)])
def test_one_prompt_in_any_shape_is_streamed(models, form):
    *_, last = models().stream(form, PARAMS)
    assert last.output.prompt_ids == TEXT
    with pytest.raises(PromptError, match="2 prompts cannot be streamed at once"):
        models().stream([TEXT, TEXT], PARAMS)


def test_what_is_no_model_is_refused():
    for wrong in (None, 5, b"demo"):
        with pytest.raises(ModelError, match="is no model: give a name"):
            hasten.load(wrong)
    with pytest.raises(ConfigError, match="tokenizer='demo' is no tokenizer"):
        hasten.load(build_model(), tokenizer="demo")
    lm = hasten.load("demo", dtype=torch.float32, device=torch.device("cpu"), forward="stock", drafter="off")
    assert lm.target.dtype is torch.float32
