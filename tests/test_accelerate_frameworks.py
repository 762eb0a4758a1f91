"""The drop-in under the tools people call `generate` with: pipelines, adapters, compilers, harnesses."""

from __future__ import annotations

import copy
import json
import threading

import pytest
import torch
import transformers
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer, TextStreamer

import hasten
from adversaries import Oracle
from conftest import build_model
from hasten.errors import ModelError
from hasten.models.bundled_models import bundled_path

WARNS = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
PROMPTS = [
    "User: I want to book a table for two in San Jose.\nAssistant:",
    "Once upon a time",
    "def add(a, b):\n",
]
IDS = {"input_ids": torch.tensor([[5, 9, 13, 22] * 3]), "attention_mask": torch.ones(1, 12, dtype=torch.long)}


@pytest.fixture(scope="module")
def demo():
    """(model, tokenizer) of the bundled demo model, accelerated."""
    path = str(bundled_path("demo"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, padding_side="left")
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return hasten.accelerate(model), tokenizer


def batch(tokenizer, prompts=PROMPTS):
    return tokenizer(prompts, return_tensors="pt", padding=True)


@pytest.mark.parametrize("in_call", [True, False])
def test_stop_strings_end_a_text_where_generate_ends_it(demo, in_call):
    model, tokenizer = demo
    hasten.accelerate(model, None if in_call else tokenizer)
    own = {"tokenizer": tokenizer} if in_call else {}
    for inputs in (batch(tokenizer), batch(tokenizer, PROMPTS[:1])):
        plain = model.generate.original(**inputs, max_new_tokens=40, drafter=None)
        written = tokenizer.decode(plain[0, inputs["input_ids"].shape[1] :])
        for stops in (written[11:13], [written[20:24], "the"]):
            options = {"max_new_tokens": 40, "stop_strings": stops}
            expected = model.generate.original(**inputs, **options, tokenizer=tokenizer)
            oracles = [Oracle(row[row != tokenizer.pad_token_id].tolist(), depth=12) for row in plain]
            found = model.generate(**inputs, **options, **own, drafter=oracles, num_draft_tokens=16)
            assert torch.equal(found, expected)
            assert sum(stats.num_accepted_tokens for stats in model.generate.stats) > 0
    hasten.accelerate(model)


def test_stop_strings_of_a_generation_config_count(demo, monkeypatch):
    model, tokenizer = demo
    inputs = batch(tokenizer)
    config = transformers.GenerationConfig(max_new_tokens=40, stop_strings=["the", "to"], pad_token_id=0)
    expected = model.generate.original(**inputs, generation_config=config, tokenizer=tokenizer)
    for drafter in ("off", "auto"):
        found = model.generate(
            **inputs, generation_config=config, tokenizer=tokenizer, drafter=drafter, num_draft_tokens=8
        )
        assert torch.equal(found, expected)
    assert config.stop_strings == ["the", "to"]
    monkeypatch.setattr(model.generation_config, "stop_strings", "a")
    expected = model.generate.original(**inputs, max_new_tokens=40, tokenizer=tokenizer)
    assert torch.equal(model.generate(**inputs, max_new_tokens=40, tokenizer=tokenizer), expected)
    with pytest.raises(ValueError, match="could not locate a tokenizer"):
        model.generate(**inputs, max_new_tokens=40)


def test_text_streamers_print_what_they_print_for_generate(demo, capsys):
    model, tokenizer = demo
    inputs = batch(tokenizer, PROMPTS[:1])
    shown = []
    for generate in (model.generate.original, model.generate):
        streamer = TextStreamer(tokenizer, skip_prompt=True)
        generate(**inputs, max_new_tokens=40, streamer=streamer)
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert len(shown[0]) > 40


def test_texts_can_be_read_while_another_thread_writes_them(demo):
    model, tokenizer = demo
    inputs = batch(tokenizer, PROMPTS[:1])
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    options = dict(inputs, max_new_tokens=40, streamer=streamer)
    thread = threading.Thread(target=model.generate, kwargs=options)
    thread.start()
    pieces = list(streamer)
    thread.join()
    expected = model.generate.original(**inputs, max_new_tokens=40)
    assert len(pieces) > 5
    assert "".join(pieces) == tokenizer.decode(expected[0, inputs["input_ids"].shape[1] :])


def test_a_pipeline_gives_the_same_texts(demo):
    model, tokenizer = demo
    expected = {}
    for accelerated in (False, True):
        (hasten.accelerate if accelerated else hasten.restore)(model)
        pipe = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
        options = {"max_new_tokens": 30, "do_sample": False}
        found = [
            pipe(PROMPTS[0], **options),
            pipe(PROMPTS, **options, batch_size=3, return_full_text=False),
            pipe(PROMPTS[1], **options, stop_sequence=" the"),
            pipe(PROMPTS[1], max_new_tokens=5, do_sample=True, top_k=1, num_return_sequences=2),
        ]
        assert expected.setdefault("texts", found) == found
    assert model.generate.stats[0].num_tokens == 5


def test_chats_in_a_pipeline_are_the_same(demo, monkeypatch):
    model, tokenizer = demo
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}Assistant:"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    pipe = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
    chat = [{"role": "User", "content": "I want to go to a concert."}]
    found = pipe(chat, max_new_tokens=24, do_sample=False)
    hasten.restore(model)
    assert pipe(chat, max_new_tokens=24, do_sample=False) == found
    hasten.accelerate(model)


class WholeBatch(StoppingCriteria):
    """As evaluation harnesses do it: a tracker for the batch, one answer for all rows."""

    def __init__(self, tokenizer, stop, start, size):
        self.tokenizer, self.stop, self.start, self.done = tokenizer, stop, start, [False] * size

    def __call__(self, input_ids, scores, **kwargs):
        for row, text in enumerate(self.tokenizer.batch_decode(input_ids[:, self.start :])):
            self.done[row] = self.done[row] or self.stop in text
        return all(self.done)


def test_trackers_of_a_whole_batch_end_each_row_at_its_own_stop(demo):
    model, tokenizer = demo
    inputs = batch(tokenizer)
    start = inputs["input_ids"].shape[1]

    def write(generate, **options):
        tracker = StoppingCriteriaList([WholeBatch(tokenizer, "the", start, 3)])
        return generate(**inputs, max_new_tokens=60, stopping_criteria=tracker, **options)[:, start:]

    theirs = tokenizer.batch_decode(write(model.generate.original))
    ours = write(model.generate, num_draft_tokens=8)
    for their, our in zip(theirs, ours, strict=True):
        tokens = our[our != tokenizer.pad_token_id]
        text = tokenizer.decode(tokens)
        assert text.split("the")[0] == their.split("the")[0]
        assert "the" not in tokenizer.decode(tokens[:-1])
    assert sum("the" in text for text in tokenizer.batch_decode(ours)) >= 2


def lora(model, peft, **options):
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], **options)
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3)
    return adapted.eval()


@WARNS
@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
def test_adapters_write_their_own_text(task_type):
    peft = pytest.importorskip("peft")
    plain = build_model()
    expected_without = plain.generate(**IDS, max_new_tokens=24, pad_token_id=0)
    model = lora(plain, peft, task_type=task_type)
    expected = model.generate(**IDS, max_new_tokens=24, pad_token_id=0)
    assert not torch.equal(expected, expected_without)
    assert hasten.accelerate(model) is model
    options = {"max_new_tokens": 24, "pad_token_id": 0, "num_draft_tokens": 8}
    assert torch.equal(model.generate(**IDS, **options), expected)
    assert model.generate.stats[0].num_tokens == 24
    with model.disable_adapter():
        assert torch.equal(model.generate(**IDS, **options), expected_without)
    assert torch.equal(model.generate(**IDS, **options), expected)
    assert "generate" not in vars(model.get_base_model())
    with pytest.raises(hasten.ConfigError, match="adapter_names"):
        model.generate(**IDS, **options, adapter_names=["default"])


@WARNS
def test_an_adapter_on_top_of_an_accelerated_model_works_in_both_orders():
    peft = pytest.importorskip("peft")
    base = hasten.accelerate(build_model())
    model = lora(base, peft)
    options = {"max_new_tokens": 24, "pad_token_id": 0}
    expected = base.generate.original(**IDS, **options)
    assert torch.equal(model.generate(**IDS, **options), expected)
    assert base.generate.stats[0].num_tokens == 24
    hasten.accelerate(model)
    base.generate.stats = []
    assert torch.equal(model.generate(**IDS, **options), expected)
    assert not base.generate.stats
    assert model.generate.stats[0].num_tokens == 24


@WARNS
def test_adapters_that_prepend_inputs_are_refused():
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = peft.get_peft_model(build_model(), config).eval()
    with pytest.raises(hasten.ConfigError, match="prepends learnt inputs"):
        hasten.accelerate(model)


def test_a_compiled_model_can_be_accelerated():
    model = build_model()
    expected = model.generate(**IDS, max_new_tokens=24, pad_token_id=0)
    compiled = torch.compile(model, backend="eager")
    assert hasten.accelerate(compiled) is compiled
    found = compiled.generate(**IDS, max_new_tokens=24, pad_token_id=0, num_draft_tokens=8)
    assert torch.equal(found, expected)
    assert hasten.restore(compiled).generate.__func__ is type(model).generate


class QuantisedLinear(torch.nn.Module):
    """Weights as small integers with a scale a row, as quantising libraries put in place of nn.Linear."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 7
        self.register_buffer("scale", scale)
        self.register_buffer("weight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, states):
        return torch.nn.functional.linear(states, self.weight.to(states.dtype) * self.scale, self.bias)


def quantise(model, skip=()):
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear and name not in skip:
                setattr(parent, name, QuantisedLinear(child))
    return model


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt-neox"])
@pytest.mark.parametrize("skip", [(), ("lm_head", "embed_out")])
def test_quantised_layers_write_their_own_text(name, skip):
    plain = build_model(name)
    model = hasten.accelerate(quantise(copy.deepcopy(plain), skip))
    options = {"max_new_tokens": 30, "pad_token_id": 0, "eos_token_id": 96}
    expected = model.generate.original(**IDS, **options)
    assert not torch.equal(expected, plain.generate(**IDS, **options))
    assert torch.equal(model.generate(**IDS, **options, num_draft_tokens=12), expected)
    assert model.generate.language_model.target.probe.mode == "tree"


class SharedScaleLinear(QuantisedLinear):
    """Activations quantised with one scale for the whole pass, so that every row depends on all others."""

    def forward(self, states):
        scale = states.abs().amax() / 127
        return super().forward((states / scale).round() * scale)


def test_layers_that_mix_the_rows_of_a_pass_are_refused():
    model = build_model()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear:
                setattr(parent, name, SharedScaleLinear(child))
    hasten.accelerate(model)
    with pytest.raises(ModelError, match=r"depend on what else is in the pass.*restore"):
        model.generate(**IDS, max_new_tokens=4)


def test_a_harness_measures_the_same(demo, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    (tmp_path / "items.jsonl").write_text(
        "\n".join(json.dumps({"question": prompt, "answer": " I"}) for prompt in PROMPTS * 2)
    )
    task = {
        "task": "short_answers",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "items.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n", " the"], "max_gen_toks": 24, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    model, tokenizer = demo
    answers = []
    for accelerated in (False, True):
        (hasten.accelerate if accelerated else hasten.restore)(model)
        harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3)
        results = evaluator.simple_evaluate(
            harness,
            tasks=[task],
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
            log_samples=True,
        )
        answers.append([sample["filtered_resps"] for sample in results["samples"]["short_answers"]])
    assert answers[0] == answers[1]
    assert len(answers[0]) == 6
    assert model.generate.stats[0].num_tokens > 0
