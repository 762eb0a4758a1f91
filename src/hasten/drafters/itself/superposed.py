"""Superposed Decoding (arXiv 2405.18400) as a drafter: its k drafts, as a tree that the target verifies.

Each depth of the tree is one pass of the source model over a mixture of the drafts so far, so a draft of
depth n costs n passes that wait for each other. With the target as its own source, which is the default,
that is as many passes as plain decoding runs, and the cost policy will mostly choose not to draft: it pays
with a smaller source model of the same vocabulary. The source keeps a cache of its own for every sequence and
reads what was written when it is next asked. ``LanguageModel.autocomplete`` shows the drafts, unverified.

A node's score is what the model gave its path, each token by the pass of its depth; only the first pass saw
no mixture. Knows no session: what the target caches is not touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.core import Sequence, System, TopCandidates
from hasten.drafters.base import Forgetful, Observation
from hasten.errors import ConfigError
from hasten.tree import DraftTree

if TYPE_CHECKING:
    from hasten.models.causal_lm import CausalLM
    from hasten.models.superposed import MixedText, NgramTables

SYSTEM = System(
    name="superposed",
    title="Superposed Decoding: Multiple Generations from a Single Autoregressive Inference Pass",
    arxiv="2405.18400",
    kind="training-free drafter",
    guarantee="exact",
    module="hasten.drafters.itself.superposed",
    summary="several drafts from one pass a token, verified (autocomplete() shows them unverified)",
)


class Superposed(Forgetful):
    """Trees of superposed drafts.

    Args:
        model: the source.
        num_drafts: k, and the most children of a node.
        depth: passes of the source a step.
        num_kept: the likeliest tokens of a pass that drafts may go on with.
        ngrams: tables that tell drafts apart; they learn every prompt and text this drafter sees. Without
            any, drafts differ by the model's law alone. They outlive requests, but belong to the caller.
        alpha: weight of the tables' law.

    ``why_no_drafts`` says what keeps the source from drafting; nothing is proposed then.

    Raises ConfigError for a value that cannot work, or no model.
    """

    name = "superposed"
    top_k = 0

    def __init__(
        self,
        model: CausalLM | None,
        *,
        num_drafts: int = 3,
        depth: int = 3,
        num_kept: int = 9,
        ngrams: NgramTables | None = None,
        alpha: float = 0.54,
    ) -> None:
        if model is None:
            raise ConfigError("superposed drafts with a model, and none was given; load one, or pass model=")
        for key, value in (("num_drafts", num_drafts), ("depth", depth), ("num_kept", num_kept)):
            if value < 1:
                raise ConfigError(f"{key}={value} cannot work; it must be at least 1")
        if not 0 <= alpha < 1:
            raise ConfigError(f"alpha={alpha} cannot work; it must be at least 0 and less than 1")
        self._model = model
        self._num_drafts = num_drafts
        self._depth = depth
        self._num_kept = num_kept
        self._ngrams = ngrams
        self._alpha = alpha
        self._texts: dict[Sequence, MixedText] = {}
        self.why_no_drafts = ""

    def begin(self, sequence: Sequence, prompt_candidates: TopCandidates | None) -> None:
        from hasten.models.superposed import MixedText, why_not_mixed

        self.why_no_drafts = why_not_mixed(self._model)
        if not self.why_no_drafts:
            self._texts[sequence] = MixedText(self._model)
        if self._ngrams is not None:
            self._ngrams.learn(sequence.token_ids)

    def propose(self, sequence: Sequence, budget: int) -> DraftTree:
        from hasten.models.superposed import Superposition

        text = self._texts.get(sequence)
        depth = min(self._depth, budget, sequence.num_remaining - 1)
        if self._model.max_length is not None:
            depth = min(depth, self._model.max_length - len(sequence.token_ids) + 1)
        if text is None or depth < 1:
            return DraftTree(source_names=(self.name,))
        guesses: list[int] = []

        def guess(logits: torch.Tensor) -> int:
            guesses.append(sequence.sampler.guess(logits, len(sequence.token_ids) + len(guesses)))
            return guesses[-1]

        superposition = Superposition(
            text,
            sequence.token_ids,
            num_drafts=self._num_drafts,
            ngrams=self._ngrams,
            alpha=self._alpha,
            num_kept=self._num_kept,
            first_token=guess,
        )
        for _ in range(depth):
            superposition.grow()
        tree = DraftTree.from_paths(draft.token_ids for draft in superposition.best())
        tree.scores = _path_probs(tree, superposition.logits, guesses)
        tree.source_names = (self.name,)
        return best_nodes(tree, budget)

    def observe(self, sequence: Sequence, observation: Observation) -> None:
        if self._ngrams is not None:
            num_written = len(observation.acceptance.token_ids)
            self._ngrams.learn(sequence.token_ids, len(sequence.token_ids) - num_written)

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """See ForkingDrafter."""
        if parent in self._texts:
            self._texts[child] = type(self._texts[parent])(self._model)  # which reads it when it is asked

    def end(self, sequence: Sequence) -> None:
        self._texts.pop(sequence, None)


def _path_probs(tree: DraftTree, logits: list[torch.Tensor], guesses: list[int]) -> NDArray[np.float32]:
    """float32 [nodes], each token's probability in the pass of its depth, times its parent's."""
    laws = [torch.softmax(row.double(), -1).cpu().numpy() / 2 for row in logits]
    for law, token_id in zip(laws, guesses, strict=True):
        law[token_id] = 0.5 + law.max()  # drawn with the target's own noise, so right where the logits are
    rows = zip(tree.token_ids.tolist(), tree.parents.tolist(), (tree.depths() - 1).tolist(), strict=True)
    scores = np.ones(len(tree) + 1, np.float32)  # the root's is the last
    for node, (token_id, parent, depth) in enumerate(rows):
        scores[node] = scores[parent] * laws[depth][token_id]
    return scores[:-1]


def best_nodes(tree: DraftTree, budget: int) -> DraftTree:
    """The best-scored nodes, best first; closed, as no child scores above its parent or comes before it."""
    order = np.argsort(-tree.scores, kind="stable")[: max(budget, 0)]
    place = np.full(len(tree) + 1, -1, np.int64)  # the root's is the last, and stays -1
    place[order] = np.arange(len(order))
    return tree.select(order.tolist(), place[tree.parents[order]])
