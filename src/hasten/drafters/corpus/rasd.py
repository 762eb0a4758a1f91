"""RASD (arXiv 2503.03434): what retrieval finds, pruned by a companion's first step and fused with its tree.

Retrieval looks into a corpus, where one is given, and into the text itself. The companion is any drafter: the
paper's is a draft model, here Token Recycling unless another is given. What the companion expects next
decides which retrieved branches stay. The numbers for this are ours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hasten.core import Sequence, System, TopCandidates
from hasten.drafters.base import Drafter, FusedDrafter, Observation, SelfDrafter, fork_text
from hasten.drafters.corpus.corpus_index import CorpusIndex
from hasten.drafters.corpus.rest import Rest
from hasten.drafters.lookup.copying import PromptLookup
from hasten.errors import ConfigError, StoreError
from hasten.tree import ROOT, DraftTree

SYSTEM = System(
    name="rasd",
    title="RASD: Retrieval-Augmented Speculative Decoding",
    arxiv="2503.03434",
    kind="training-free drafter",
    guarantee="exact",
    module="hasten.drafters.corpus.rasd",
    summary="retrieval from a corpus and the text, pruned by another drafter and fused with its tree",
)

_OWNER = "companion/"


def prune(retrieved: DraftTree, companion: DraftTree, num_best: int, min_product: float) -> DraftTree:
    """The branches whose first token the companion expects, best first.

    A branch stays if its token is among the companion's ``num_best`` first tokens, or if the companion's
    probability of it times its own score is at least ``min_product``. A companion that expects nothing at all
    cannot judge: all stay.
    """
    firsts = np.flatnonzero(companion.parents == ROOT)
    if not len(firsts):
        return retrieved.best(len(retrieved))
    tokens, probs = _first_step(companion, firsts)
    expected = set(tokens[np.argsort(-probs, kind="stable")[:num_best]].tolist())
    prob_of = dict(zip(tokens.tolist(), probs.tolist(), strict=True))
    kept: dict[int, int] = {ROOT: ROOT}
    columns = (retrieved.token_ids, retrieved.parents, retrieved.scores)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    for node, (token, parent, score) in enumerate(rows):
        is_kept = parent in kept
        if parent == ROOT:
            is_kept = token in expected or prob_of.get(token, 0.0) * score >= min_product
        if is_kept:
            kept[node] = len(kept) - 1
    nodes = [node for node in kept if node != ROOT]
    parents = [kept[parent] for parent in retrieved.parents[nodes].tolist()]
    return retrieved.select(nodes, parents).best(len(nodes))


def _first_step(tree: DraftTree, firsts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The companion's first tokens and their probabilities; a draft model's whole law, where it is known."""
    if tree.draft_probs is None:
        return tree.token_ids[firsts], tree.scores[firsts]
    probs = tree.draft_probs[firsts[0]]
    return np.arange(len(probs)), probs


class Rasd:
    """Retrieval and a companion in one tree.

    Args:
        index: the corpus; None: only the text itself.
        companion: what prunes and is fused; told of every step like any drafter.
        num_best: a retrieved branch stays if its first token is among so many of the companion's best.
        min_product: or if the companion's probability times the branch's score is at least this.
        max_retrieved: the most retrieved nodes that are fused.

    Raises ConfigError for a companion that needs rows or caches of the target.
    """

    name = "rasd"

    def __init__(
        self,
        index: CorpusIndex | None,
        companion: Drafter,
        *,
        num_best: int = 8,
        min_product: float = 0.01,
        max_retrieved: int = 64,
    ) -> None:
        if num_best < 0 or min_product <= 0 or max_retrieved < 1:
            raise ConfigError(
                f"num_best={num_best}, min_product={min_product} and max_retrieved={max_retrieved} must be "
                "at least 0, above 0 and at least 1"
            )
        if isinstance(companion, FusedDrafter | SelfDrafter):
            raise ConfigError(f"{companion.name} drafts inside the target; choose another companion for rasd")
        self.companion = companion
        self.top_k = companion.top_k
        self._context = PromptLookup(occurrence="last")
        self._retrievers: list[Drafter] = [self._context] if index is None else [Rest(index), self._context]
        self._num_best = num_best
        self._min_product = min_product
        self._max_retrieved = max_retrieved

    def begin(self, sequence: Sequence, prompt_candidates: TopCandidates | None) -> None:
        for drafter in (*self._retrievers, self.companion):
            drafter.begin(sequence, prompt_candidates)

    def propose(self, sequence: Sequence, budget: int) -> DraftTree:
        drafted = self.companion.propose(sequence, budget)
        found = [drafter.propose(sequence, self._max_retrieved) for drafter in self._retrievers]
        retrieved = prune(DraftTree.fuse(found), drafted, self._num_best, self._min_product)
        fused = DraftTree.fuse([drafted, retrieved.head(self._max_retrieved)]).best(budget)
        return DraftTree(fused.token_ids, fused.parents, fused.scores, source_names=(self.name,))

    def observe(self, sequence: Sequence, observation: Observation) -> None:
        for drafter in (*self._retrievers, self.companion):
            drafter.observe(sequence, observation)

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """See ForkingDrafter."""
        for drafter in (*self._retrievers, self.companion):
            fork_text(drafter, parent, child)

    def end(self, sequence: Sequence) -> None:
        for drafter in (*self._retrievers, self.companion):
            drafter.end(sequence)

    def state(self) -> dict[str, NDArray[np.generic]]:
        return {_OWNER + key: value for key, value in self.companion.state().items()}

    def restore(self, state: dict[str, NDArray[np.generic]]) -> None:
        strange = sorted(key for key in state if not key.startswith(_OWNER))
        if strange:
            raise StoreError(f"rasd keeps only what {self.companion.name} learnt, found {strange}")
        self.companion.restore({key.removeprefix(_OWNER): value for key, value in state.items()})
