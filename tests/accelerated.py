"""What the tests of the drop-in share: accelerated models, inputs, and the comparison with `generate`."""

from __future__ import annotations

import copy
import functools

import torch
from transformers import LogitsProcessor, StoppingCriteria

import hasten
from adversaries import Oracle
from conftest import ARCHITECTURES, VOCAB, build_model

PROMPTS = [[5, 9, 13, 22] * 3, [40], [3, 60, 61, 62, 63, 3, 60], [88, 87, 86]]
MASKED = [name for name in ARCHITECTURES if name != "rwkv"]  # rwkv reads padding as text
SOME = ["llama", "gemma3", "gpt2", "mpt-alibi"]


def padded(prompts):
    """input_ids and attention_mask, padded on the left."""
    width = max(map(len, prompts))
    ids = [[0] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


SINGLE, BATCH = padded(PROMPTS[:1]), padded(PROMPTS)


@functools.cache
def accelerated(name="llama"):
    """An accelerated model that drafts nothing unless it is told to."""
    model = build_model(name)
    model.generation_config.update(pad_token_id=0, eos_token_id=None, use_cache=True)
    return hasten.accelerate(model, drafter="off")


def texts_of(inputs, sequences):
    """Token ids of every row without the padding on the left."""
    mask = inputs["attention_mask"]
    copies = len(sequences) // len(mask)
    empty = (mask == 0).sum(1).repeat_interleave(copies).tolist()
    return [row[start:].tolist() for row, start in zip(sequences, empty, strict=True)]


def check(model, inputs, **options):
    """Compare with the original, drafted by oracles that are often right; returns the expected result."""
    options = {"max_new_tokens": 20, **options}
    expected = model.generate.original(**inputs, **copy.deepcopy(options))
    tensor = expected if isinstance(expected, torch.Tensor) else expected.sequences
    oracles = [Oracle(text, error_rate=0.2) for text in texts_of(inputs, tensor)]
    found = model.generate(**inputs, **copy.deepcopy(options), drafter=oracles, num_draft_tokens=16)
    found = found if isinstance(expected, torch.Tensor) else found.sequences
    assert found.dtype == tensor.dtype
    assert found.tolist() == tensor.tolist()
    num_written = tensor.shape[1] - inputs["input_ids"].shape[1]
    if num_written > 6 and model.generate.language_model.target.probe.mode != "off":
        assert sum(stats.num_accepted_tokens for stats in model.generate.stats) > 0
    return expected


def ends_early(inputs, sequences, max_new_tokens=20):
    return sequences.shape[1] < inputs["input_ids"].shape[1] + max_new_tokens or (sequences[:, -1] == 0).any()


def allowed_after(batch_id, text):
    """What may follow depends on the row, on the text and on its length, padding included."""
    step = 1 + (batch_id + len(text) + int(text[-1])) % 3
    return list(range(2 + batch_id, VOCAB, step))


class Counts(LogitsProcessor):
    """Keeps a state for every row of a batch: no token may be written more than twice."""

    def __init__(self):
        self.counts = None

    def __call__(self, input_ids, scores):
        if self.counts is None:
            self.counts = torch.zeros_like(scores)
        else:
            self.counts[range(len(scores)), input_ids[:, -1]] += 1
        return scores.masked_fill(self.counts >= 2, -torch.inf)


class Favours(LogitsProcessor):
    """Looks up something of its own by the number of the row."""

    def __call__(self, input_ids, scores):
        for row in range(len(scores)):
            scores[row, (7 * row + input_ids.shape[1]) % VOCAB] += 4
        return scores


class EndsAfter(StoppingCriteria):
    """Ends a row after three tokens that its length, padding included, selects; counts for itself."""

    def __init__(self, prompt_length):
        self.prompt_length, self.seen = prompt_length, {}

    def __call__(self, input_ids, scores, **kwargs):
        assert input_ids.shape[1] > self.prompt_length
        done = []
        for row, token in enumerate(input_ids[:, -1].tolist()):
            self.seen[row] = self.seen.get(row, 0) + ((token + input_ids.shape[1]) % 2)
            done.append(self.seen[row] >= 3)
        return torch.tensor(done)


class Pieces:
    """A streamer that writes down what it is given."""

    def __init__(self):
        self.pieces = []

    def put(self, value):
        assert value.device.type == "cpu"
        self.pieces.append(value.tolist())

    def end(self):
        self.pieces.append("end")
