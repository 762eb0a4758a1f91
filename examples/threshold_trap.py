"""The trap of fixed thresholds: many tokens, each of them sure, and all of them together wrong.

The task is to replace any one item of a list by X. All n answers are right, so that an ideal model is sure of
each item by 1 - 1/n. Here is that model; no weights are needed.
"""

import numpy as np
import torch

from hasten.core import SamplingParams
from hasten.diffusion.canvas import Canvas, DenoiserSpec, Prediction
from hasten.diffusion.drawing import Drawing
from hasten.diffusion.loop import Writing, denoise
from hasten.diffusion.parse import parse_strategy


class ReplaceAnyItem:
    """The items are 0 .. n - 1, X is n, and n + 1 is the mask."""

    max_length = None

    def __init__(self, size):
        self.answers = np.tile(np.arange(size), (size, 1))
        np.fill_diagonal(self.answers, size)
        self.vocab_size = size + 2
        self.spec = DenoiserSpec(mask_id=size + 1)

    def open(self, lengths, *, keeps_rows):
        return self

    def forward(self, queries):
        return [self.predict(query) for query in queries]

    def predict(self, query):
        agrees = (self.answers == query.token_ids) | (query.token_ids == self.spec.mask_id)
        left = self.answers[agrees.all(axis=1)][:, query.wanted]  # the answers that are still possible
        shares = (left[:, :, None] == np.arange(self.vocab_size)).mean(axis=0)
        return Prediction(query.wanted, torch.tensor(shares).log())


def write(size, policy):
    model = ReplaceAnyItem(size)
    strategy = parse_strategy(policy, model.spec)
    canvas = Canvas.after([], np.full(size, model.spec.mask_id))
    writing = Writing(canvas, strategy, Drawing(SamplingParams()), lambda positions, forward: positions)
    list(denoise(model, [writing]))
    is_right = (canvas.token_ids == model.answers).all(axis=1).any()
    return f"{'right' if is_right else 'WRONG'} in {writing.stats.num_forwards:2}"


policies = {
    "one a forward": "static",
    "threshold": "threshold:0.9",
    "factor": "factor",
    "freedave": "static+freedave:16",
}
print("items  " + "  ".join(f"{name:>13}" for name in policies))
for size in (4, 8, 9, 10, 11, 16):
    print(f"{size:5}  " + "  ".join(f"{write(size, policy):>13}" for policy in policies.values()))
