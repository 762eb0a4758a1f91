"""A target that is a plain function of the text, run by the real loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch

from hasten.core import Acceptance, SamplingParams, Sequence
from hasten.drafters.base import Drafter
from hasten.policies import FixedPolicy
from hasten.sampling import Sampler
from hasten.stopping import StopConditions
from hasten.text.decode import decode
from hasten.tree import DraftTree
from hasten.verify import Verifier, find_verifier

NextLogits = Callable[[list[int]], torch.Tensor]
"""text, masks included -> logits [vocab] of what follows"""


class FakeTarget:
    """What the loop needs of a model; it is its own session."""

    def __init__(self, next_logits: NextLogits) -> None:
        self.next_logits = next_logits
        self.vocab_size = len(next_logits([0]))
        self.num_rows: list[int] = []

    def open(self, sequences: list[Sequence]) -> FakeTarget:
        return self

    def undisturbed(self):
        return nullcontext()

    is_asynchronous = False

    def synchronize(self) -> None: ...

    def reading(
        self, prompts: list[list[int]], top_k: int = 0, positions: object = None, known: object = None
    ):
        self.texts = [list(prompt) for prompt in prompts]
        yield sum(map(len, prompts))
        return [None] * len(prompts)

    def fit(self, tree: DraftTree) -> DraftTree:
        return tree

    def forward(self, trees: list[DraftTree]) -> list[torch.Tensor]:
        self.num_rows += [len(tree) + 1 for tree in trees]
        return [
            torch.stack(
                [
                    self.next_logits([*text, *tree.token_ids[tree.path_to(node)].tolist()])
                    for node in range(-1, len(tree))
                ]
            )
            for text, tree in zip(self.texts, trees, strict=True)
        ]

    def keep(self, acceptances: list[Acceptance]) -> None:
        for text, acceptance in zip(self.texts, acceptances, strict=True):
            text.extend(acceptance.token_ids)

    def select(self, rows: list[int]) -> None:
        self.texts = [self.texts[row] for row in rows]

    def close(self) -> None: ...


def one_hot(token_id: int, vocab_size: int) -> torch.Tensor:
    """Logits that leave no doubt."""
    logits = torch.full((vocab_size,), -20.0)
    logits[token_id] = 20.0
    return logits


def by_position(vocab_size: int, seed: int = 0) -> NextLogits:
    """A target whose law depends on the position alone: nothing before it needs to be known."""

    def next_logits(text: list[int]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1000 * seed + len(text))
        return 2 * torch.randn(vocab_size, generator=generator)

    return next_logits


def write(
    target: FakeTarget,
    drafter: Drafter,
    prompt: list[int],
    params: SamplingParams,
    *,
    verify: str | Verifier = "follow",
    num_draft_tokens: int = 40,
    seed: int = 3,
) -> tuple[list[int], list[int]]:
    """The new tokens, and how many each step gained."""
    verifier = find_verifier(verify)
    sequence = Sequence(
        token_ids=list(prompt),
        prompt_length=len(prompt),
        max_length=len(prompt) + params.max_new_tokens,
        sampler=Sampler(params, seed),
        stop_rule=StopConditions(frozenset(params.stop_token_ids), params.max_new_tokens, None),
    )
    policy = FixedPolicy(num_draft_tokens)
    steps = list(decode(target, drafter, policy, [sequence], verifier))  # type: ignore[arg-type]
    return sequence.new_token_ids, [len(step.gains[0].acceptance.token_ids) for step in steps]
