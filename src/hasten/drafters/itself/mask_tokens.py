"""Mask tokens in the verify pass: what stands in their rows is the next draft.

A group of k mask tokens is a chain below a node of the draft tree: mask j sees the text, the node with its
ancestors and the masks before it, at the position of its depth, and nothing sees the group. The row of a
node predicts the token after it; so if a node is the last that is accepted, its own row is the bonus
token, and mask j of its group predicts the token j places after the bonus token. Drafting costs rows, not
a pass of its own.

SPACE (arXiv 2402.11809) hangs a group below every candidate; here the groups go where they are likeliest
to be needed. Lexical unit decoding, LUD (arXiv 2405.15208), puts one group of pads after the last token;
verified, as here by default, it is lossless, and ``verify="confident"`` (hasten/verify/confident.py) is
its unverified mode.

Both papers fine-tune the model on mask tokens. A model that was not knows nothing of them, and few drafts
will be accepted. Knows trees and logits; knows nothing of how a pass is run.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from hasten.core import Sequence, System, TopCandidates
from hasten.drafters.base import Forgetful, Observation
from hasten.errors import ConfigError
from hasten.logits import top_candidates
from hasten.tree import ROOT, DraftTree
from hasten.values import known_ids

if TYPE_CHECKING:
    from hasten.models.causal_lm import CausalLM
    from hasten.models.target import Target

SPACE_SYSTEM = System(
    name="space",
    title="Generation Meets Verification: Accelerating Large Language Model Inference with Smart Parallel "
    "Auto-Correct Decoding",
    arxiv="2402.11809",
    kind="fused drafter",
    guarantee="exact",
    module="hasten.drafters.itself.mask_tokens",
    summary="mask tokens below the draft, in the pass that verifies it, predict the next draft",
)
LUD_SYSTEM = System(
    name="lud",
    title="Decoding at the Speed of Thought: Harnessing Parallel Decoding of Lexical Units for LLMs",
    arxiv="2405.15208",
    kind="fused drafter",
    guarantee="exact",
    module="hasten.drafters.itself.mask_tokens",
    summary='pads after the last token predict the next draft; verify="confident" keeps sure ones unverified',
)

Candidate = tuple[int, float]
"""A token and its probability."""


@dataclass(slots=True)
class _Text:
    """What is known of one sequence."""

    candidates: list[list[Candidate]] = field(default_factory=list)
    """for each depth of the next draft, the likeliest token first"""
    groups: dict[int, list[int]] = field(default_factory=dict)
    """of the pass under way: a node -> the rows of its masks"""
    num_rows: int = 0
    """of the pass under way, if it takes the masks"""


class MaskTokens(Forgetful):
    """Drafts what the rows of mask tokens predict.

    Args:
        name: which system it is.
        num_masks: k, the masks of a group and the depth of a draft.
        num_groups: how many nodes, the root among them, have a group: those likeliest to be accepted last.
        width: candidates of each depth; 1 drafts a chain.
        mask_token_id: None repeats the token that the group hangs below.
        beta: in a text whose drafts are not verified, nothing less likely is drafted.

    Raises ConfigError for a value that cannot work.
    """

    top_k = 0

    def __init__(
        self,
        name: str = "space",
        *,
        num_masks: int = 3,
        num_groups: int = 5,
        width: int = 3,
        mask_token_id: int | None = None,
        beta: float = 0.9,
    ) -> None:
        counts = {"num_masks": num_masks, "num_groups": num_groups, "width": width}
        for key, value in counts.items():
            if value < 1:
                raise ConfigError(f"{key}={value} cannot work; it must be at least 1")
        if mask_token_id is not None and mask_token_id < 0:
            raise ConfigError(
                f"mask_token_id={mask_token_id} is no token; give one, or None to repeat the last"
            )
        self.name = name
        self._num_masks = num_masks
        self._num_groups = num_groups
        self._width = width
        self._mask_token_id = mask_token_id
        self._beta = beta
        self._texts: dict[Sequence, _Text] = {}

    def begin(self, sequence: Sequence, prompt_candidates: TopCandidates | None) -> None:
        self._texts[sequence] = _Text()

    def propose(self, sequence: Sequence, budget: int) -> DraftTree:
        candidates = self._texts[sequence].candidates
        if sequence.guarantee == "approximate":
            unsure = (depth for depth, [(_, prob), *_] in enumerate(candidates) if prob < self._beta)
            candidates = candidates[: next(unsure, len(candidates))]
        token_ids, parents, scores = _grow(candidates, budget)
        return DraftTree(token_ids, parents, scores, source_names=(self.name,))

    def extend(self, sequence: Sequence, tree: DraftTree) -> DraftTree:
        """The tree with its groups. A node that a mask would double is the mask: its row is the same."""
        text = self._texts[sequence]
        token_ids, parents = tree.token_ids.tolist(), tree.parents.tolist()
        places = {place: node for node, place in enumerate(zip(parents, token_ids, strict=True))}
        depths = tree.depths()
        for host in self._hosts(sequence, tree):
            last_id = sequence.token_ids[-1] if host == ROOT else token_ids[host]
            mask_id = last_id if self._mask_token_id is None else self._mask_token_id
            room = sequence.num_remaining - (0 if host == ROOT else int(depths[host]))
            node, rows = host, []
            for _ in range(min(self._num_masks, room)):
                place = (node, mask_id)
                node = places.setdefault(place, len(token_ids))
                if node == len(token_ids):
                    parents.append(place[0])
                    token_ids.append(mask_id)
                rows.append(node + 1)
            text.groups[host] = rows
        text.num_rows = len(token_ids) + 1
        num_extra = len(token_ids) - len(tree)
        scores = np.concatenate((tree.scores, np.zeros(num_extra, np.float32)))
        sources = np.concatenate((tree.sources, np.zeros(num_extra, np.int64)))
        return DraftTree(token_ids, parents, scores, sources, tree.source_names)

    def _hosts(self, sequence: Sequence, tree: DraftTree) -> list[int]:
        """The nodes with a group, ROOT among them."""
        if sequence.guarantee == "approximate":
            return [_end_of_best_path(tree)]
        chances = last_accepted_chances(tree)
        best = np.argsort(-chances, kind="stable")[: self._num_groups]
        return [int(row) - 1 for row in best]

    def observe(self, sequence: Sequence, observation: Observation) -> None:
        text = self._texts[sequence]
        path, logits = observation.acceptance.path, observation.logits
        rows = text.groups.get(path[-1] if path else ROOT, [])
        is_taken = logits is not None and len(logits) == text.num_rows
        text.candidates = []
        if logits is not None and is_taken and rows:
            likeliest = top_candidates(logits[rows], self._width)
            for depth, row in enumerate(rows):
                guess = sequence.sampler.guess(logits[row], len(sequence.token_ids) + depth)
                text.candidates.append(_with_guess(guess, likeliest, depth))
        text.groups, text.num_rows = {}, 0

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """See ForkingDrafter."""
        self._texts[child] = copy.deepcopy(self._texts[parent])

    def end(self, sequence: Sequence) -> None:
        self._texts.pop(sequence, None)


def default_mask_token(target: Target | None) -> int | None:
    """The model's mask, pad, unknown or end token, the first that its config names; None if it names none."""
    from hasten.models.llamacpp.target import GgufLM

    if target is None:
        return None
    if isinstance(target, GgufLM):
        return target.mask_token_id
    forward = cast("CausalLM", target).forward
    configs = (forward.text_config, forward.model.generation_config)
    for name in ("mask_token_id", "pad_token_id", "unk_token_id", "eos_token_id"):
        for config in configs:
            first = next(iter(known_ids(getattr(config, name, None), name)), None)
            if first is not None and first < target.vocab_size:
                return first
    return None


def last_accepted_chances(tree: DraftTree) -> NDArray[np.float64]:
    """float64 [nodes + 1], root first: how likely each is the last accepted, if the scores are right."""
    chances = np.append(1.0, tree.scores.astype(np.float64))
    np.subtract.at(chances, tree.parents + 1, tree.scores)
    return chances


def _end_of_best_path(tree: DraftTree) -> int:
    node = ROOT
    while True:
        children = np.flatnonzero(tree.parents == node)
        if not len(children):
            return node
        node = int(children[np.argmax(tree.scores[children])])


def _with_guess(guess: int, likeliest: TopCandidates, row: int) -> list[Candidate]:
    """The guess, and then the likeliest others; as many as are known."""
    token_ids, probs = likeliest.token_ids[row].tolist(), likeliest.probs[row].tolist()
    others = [pair for pair in zip(token_ids, probs, strict=True) if pair[0] != guess]
    # Sampled, the guess is drawn with the target's noise, so that nothing else is likelier.
    return [(guess, probs[0]), *others][: len(probs)]


def _grow(candidates: list[list[Candidate]], budget: int) -> tuple[list[int], list[int], list[float]]:
    """The likeliest paths, one candidate a depth: the rows of a group do not know each other's tokens."""
    token_ids: list[int] = []
    parents: list[int] = []
    scores: list[float] = []
    waiting: list[tuple[float, int, int, int]] = []  # minus the score, parent, depth, rank

    def wait(parent: int, depth: int, rank: int) -> None:
        if depth < len(candidates) and rank < len(candidates[depth]):
            above = 1.0 if parent == ROOT else scores[parent]
            heappush(waiting, (-above * candidates[depth][rank][1], parent, depth, rank))

    wait(ROOT, 0, 0)
    while waiting and len(token_ids) < budget:
        negative_score, parent, depth, rank = heappop(waiting)
        parents.append(parent)
        token_ids.append(candidates[depth][rank][0])
        scores.append(-negative_score)
        wait(parent, depth, rank + 1)
        wait(len(token_ids) - 1, depth + 1, 0)
    return token_ids, parents, scores
