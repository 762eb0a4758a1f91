"""TokenSwift (arXiv 2502.18890) without its trained heads: the target drafts over part of its own cache.

For long texts, where the cache is what a pass waits for. A few tokens are drafted by as many passes of the
target itself over a PartialCache: the first tokens of the text, those the last query attends to, and what was
written since. Drafts of several tokens that followed one of the likeliest next tokens before, by an exact
n-gram count (NgramPool), are merged in. The paper drafts with one pass and three heads it trains; without
them every drafted depth is a pass of one row, for each sequence, which the cost policy sees as drafting time.

A text no longer than the budget is drafted from the pool alone, because a pass over all of a text is plain
decoding; and so is every text where a partial cache cannot be had (``why_no_self_draft``). The pool and the
partial cache are those of one text, and end with it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from hasten.core import Sequence, System, TopCandidates
from hasten.drafters.base import Forgetful, Observation
from hasten.drafters.itself.superposed import best_nodes
from hasten.drafters.tables.ngram_pool import Continuation, NgramPool
from hasten.errors import ConfigError
from hasten.logits import top_candidates
from hasten.tree import ROOT, DraftTree

if TYPE_CHECKING:
    import torch

    from hasten.models.causal_lm import CausalLM
    from hasten.models.draft.partial_cache import PartialCache, Ranking
    from hasten.models.sessions.session import CopiesRows, Session

SYSTEM = System(
    name="tokenswift",
    title="From Hours to Minutes: Lossless Acceleration of Ultra Long Sequence Generation up to 100K Tokens",
    arxiv="2502.18890",
    kind="training-free drafter",
    guarantee="exact",
    module="hasten.drafters.itself.tokenswift",
    summary="drafts with the target over part of its cache, and with counted n-grams; no trained heads",
)

NUM_CANDIDATES = 10
"""Of every self-drafted position."""
OTHER_BRANCH_TRUST = 0.3
"""Of a candidate whose parent is not the token it was drafted after."""

Candidate = tuple[int, float]
"""A token and its probability; the first of a position is the one the next position was drafted after."""


@dataclass(slots=True)
class _Text:
    """What is known of one sequence."""

    pool: NgramPool
    session: CopiesRows | None = None
    row: int = 0
    partial: PartialCache | None = None


@dataclass(slots=True)
class _Trie:
    """Paths of several kinds in one tree; a node's score is the best any of them gives it."""

    token_ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    places: dict[tuple[int, int], int] = field(default_factory=dict)

    def add(self, parent: int, token_id: int, score: float) -> int:
        """The node below ``parent`` with this token; never better than its parent."""
        score = score if parent == ROOT else min(score, self.scores[parent])
        node = self.places.setdefault((parent, token_id), len(self.token_ids))
        if node == len(self.token_ids):
            self.token_ids.append(token_id)
            self.parents.append(parent)
            self.scores.append(score)
        self.scores[node] = max(self.scores[node], score)
        return node


class TokenSwift(Forgetful):
    """Self-drafts of long texts, and n-grams.

    Args:
        target: the model whose text is drafted; None drafts n-grams only.
        gamma: self-drafted tokens, each a pass.
        budget: tokens the partial cache is cut down to; texts no longer are not self-drafted.
        num_sink: first tokens of a text that are always kept.
        widths: candidates of each self-drafted position in the tree.
        num_ngrams: the most n-grams in the tree.
        penalty_window: the latest tokens, which a repetition penalty applies to, teach no n-grams; 0: all do.

    Raises ConfigError for a value that cannot work.
    """

    name = "tokenswift"
    top_k = 0

    def __init__(
        self,
        target: CausalLM | None,
        *,
        gamma: int = 4,
        budget: int = 4096,
        num_sink: int = 16,
        widths: tuple[int, ...] = (1, 3, 3, 3),
        num_ngrams: int = 20,
        penalty_window: int = 0,
    ) -> None:
        for key, value in (("gamma", gamma), ("num_sink", num_sink), ("num_ngrams", num_ngrams)):
            if value < 1:
                raise ConfigError(f"{key}={value} cannot work; it must be at least 1")
        if budget <= num_sink:
            raise ConfigError(f"budget={budget} cannot work; it must be more than num_sink={num_sink}")
        if not widths or not all(1 <= width <= NUM_CANDIDATES for width in widths):
            raise ConfigError(f"widths={widths} cannot work; give numbers from 1 to {NUM_CANDIDATES}")
        if penalty_window < 0:
            raise ConfigError(f"penalty_window={penalty_window} cannot work; it must be at least 0")
        self._target = target
        self._gamma = gamma
        self._budget = budget
        self._num_sink = num_sink
        self._widths = widths
        self._num_ngrams = num_ngrams
        self._penalty_window = penalty_window
        self._texts: dict[Sequence, _Text] = {}
        self.why_no_self_draft = "no pass has run yet"
        self.ranking: Ranking | None = None
        """how the last partial cache was chosen; "recency" where the model does not say what it attends to"""

    def attach(self, session: Session, sequences: list[Sequence]) -> None:
        from hasten.models.draft.partial_cache import why_not_partial
        from hasten.models.sessions.session import CopiesRows

        if self._target is None:
            self.why_no_self_draft = "no target was given"
            return
        self.why_no_self_draft = why_not_partial(self._target.forward, session)
        if not self.why_no_self_draft and isinstance(session, CopiesRows):
            for row, sequence in enumerate(sequences):
                text = self._texts.get(sequence)
                if text is not None:  # others are drafted by others
                    text.session, text.row = session, row

    def begin(self, sequence: Sequence, prompt_candidates: TopCandidates | None) -> None:
        text = self._texts[sequence] = _Text(
            NgramPool(num_best=self._num_ngrams, window=self._penalty_window)
        )
        text.pool.learn(sequence.token_ids)

    def propose(self, sequence: Sequence, budget: int) -> DraftTree:
        text = self._texts[sequence]
        depth = min(self._gamma, budget, sequence.num_remaining - 1)
        drafted = self._self_draft(sequence, text, depth) if depth > 0 else []
        trie = _Trie()
        self._grow(trie, drafted, budget)
        after_root = text.pool.best(sequence.token_ids[-1:])
        _add_paths(trie, [(continuation, share) for _, continuation, share in after_root])
        likely = dict(drafted[0]) if drafted else {}
        after_next = text.pool.best(list(likely))
        for token_id, _, _ in after_next:
            trie.add(ROOT, token_id, likely[token_id])
        _add_paths(trie, [((token, *rest), likely[token] * share) for token, rest, share in after_next])
        tree = DraftTree(trie.token_ids, trie.parents, trie.scores, source_names=(self.name,))
        return best_nodes(tree, budget)

    def _self_draft(self, sequence: Sequence, text: _Text, depth: int) -> list[list[Candidate]]:
        """The candidates of the next positions; none for a text within the budget."""
        if text.session is None or len(sequence.token_ids) <= self._budget:
            return []
        partial = self._partial(sequence, text, text.session)
        drafted: list[list[Candidate]] = []
        token_id = sequence.token_ids[-1]
        for position in range(len(sequence.token_ids), len(sequence.token_ids) + depth):
            logits = partial.step(token_id)
            token_id = sequence.sampler.guess(logits, position)
            drafted.append(_candidates(token_id, logits))
        partial.forget()
        return drafted

    def _partial(self, sequence: Sequence, text: _Text, session: CopiesRows) -> PartialCache:
        """The text's partial cache, up to date; chosen anew when a budget of tokens was written behind it."""
        from hasten.models.draft.partial_cache import PartialCache

        assert self._target is not None
        partial = text.partial
        num_cached = len(sequence.token_ids) - 1
        if partial is None or num_cached - partial.num_selected_from > self._budget - self._num_sink:
            text.partial = partial = PartialCache(
                self._target.forward,
                session.cached(text.row),
                sequence.token_ids[-1],
                budget=self._budget,
                num_sink=self._num_sink,
            )
            self.ranking = partial.ranking
        elif partial.num_tokens < num_cached:
            partial.append(session.cached(text.row, partial.num_tokens))
        return partial

    def _grow(self, trie: _Trie, drafted: list[list[Candidate]], budget: int) -> None:
        """The best paths of candidates, ``widths`` of each position: one after another, best first."""
        waiting: list[
            tuple[float, int, int, int, bool]
        ] = []  # minus the score, parent, depth, rank, on the chain

        def wait(parent: int, depth: int, rank: int, on_chain: bool) -> None:
            if depth < len(drafted) and rank < self._widths[min(depth, len(self._widths) - 1)]:
                above = 1.0 if parent == ROOT else trie.scores[parent]
                trust = 1.0 if on_chain else OTHER_BRANCH_TRUST
                heappush(waiting, (-above * trust * drafted[depth][rank][1], parent, depth, rank, on_chain))

        wait(ROOT, 0, 0, True)
        while waiting and len(trie.token_ids) < budget:
            negative_score, parent, depth, rank, on_chain = heappop(waiting)
            node = trie.add(parent, drafted[depth][rank][0], -negative_score)
            wait(parent, depth, rank + 1, on_chain)
            wait(node, depth + 1, 0, on_chain and rank == 0)

    def observe(self, sequence: Sequence, observation: Observation) -> None:
        self._texts[sequence].pool.learn(sequence.token_ids)

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """See ForkingDrafter."""
        self._texts[child] = _Text(copy.deepcopy(self._texts[parent].pool))

    def end(self, sequence: Sequence) -> None:
        self._texts.pop(sequence, None)


def _candidates(guess: int, logits: torch.Tensor) -> list[Candidate]:
    """The guess, and then the likeliest others.

    The guess was drawn with the noise that the target will draw with. However flat its law, it is the token
    where the logits are right; so it has half of the probability, and the law the other half.
    """
    likeliest = top_candidates(logits[None], NUM_CANDIDATES)
    pairs = list(zip(likeliest.token_ids[0].tolist(), (likeliest.probs[0] / 2).tolist(), strict=True))
    return [(guess, 0.5 + pairs[0][1]), *(pair for pair in pairs if pair[0] != guess)]


def _add_paths(trie: _Trie, paths: list[tuple[Continuation, float]]) -> None:
    """Paths below the root and how likely each is; what several begin with is as likely as all of them."""
    chances: dict[Continuation, float] = {}
    for path, chance in paths:
        for length in range(1, len(path) + 1):
            chances[path[:length]] = chances.get(path[:length], 0.0) + chance
    nodes: dict[Continuation, int] = {(): ROOT}
    for path, chance in chances.items():
        nodes[path] = trie.add(nodes[path[:-1]], path[-1], chance)
