"""Typical acceptance (Medusa, arXiv 2401.10774): what the target finds likely enough is kept.

Approximate: the text may differ from plain decoding's, so this rule is only used when it is asked for by
name. A child is kept if the target's probability of its token, temperature and cuts included, is above
min(epsilon, delta exp(-H)), with H the entropy of that law in nats. Of the paths whose nodes are all kept the
longest one is written, the likelier one among equals. The token after it is drawn from the target's law.

Greedy, the law is sure of one token and its entropy is 0: only that token is kept, and the text is plain
decoding's. What differs from the paper: there, the first token of every candidate is the target's own draw;
here drafts begin where the text ends, and the target's own token comes last.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hasten.core import Acceptance, LogitRows, Sequence, System
from hasten.errors import ConfigError
from hasten.laws import Law, draw
from hasten.tree import DraftTree
from hasten.verify.ahead import Place, Round

SYSTEM = System(
    name="typical-acceptance",
    title="Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads",
    arxiv="2401.10774",
    kind="verification rule",
    guarantee="approximate",
    module="hasten.verify.typical",
    summary="keeps drafted tokens that the target finds likely enough (verify typical)",
)


def typical(
    epsilon: float = 0.09, delta: float = 0.3
) -> Callable[[DraftTree, LogitRows, Sequence], Acceptance]:
    """A rule that keeps what the target finds likely enough.

    Args:
        epsilon: a probability above this is always enough; in [0, 1].
        delta: how much of exp(-entropy) is enough; 0 or more. The paper suggests sqrt(epsilon).

    Raises ConfigError for values that cannot work, and in use for a sampler that does not tell its laws.
    """
    if not 0 <= epsilon <= 1:
        raise ConfigError(f"epsilon={epsilon} cannot work; it must be between 0 and 1")
    if not delta >= 0:
        raise ConfigError(f"delta={delta} cannot work; it must be 0 or more")

    def verify(tree: DraftTree, logits: LogitRows, sequence: Sequence) -> Acceptance:
        """logits: [nodes + 1, vocab], root first. Raises ModelError for a NaN at a node it reaches."""
        this_round = Round("typical", tree, logits, sequence)
        place = _longest(tree, this_round.root, epsilon, delta)
        return this_round.keep(place, draw(place.law, this_round.generator))

    return verify


def _longest(tree: DraftTree, root: Place, epsilon: float, delta: float) -> Place:
    """The end of the longest path that is kept, the likeliest among equals."""
    best, best_rank = root, (0, 0.0)
    stack = [(root, best_rank)]
    while stack:
        place, (depth, log_likelihood) = stack.pop()
        if (depth, log_likelihood) > best_rank:
            best, best_rank = place, (depth, log_likelihood)
        children = np.flatnonzero(tree.parents == place.node).tolist()
        if not children:
            continue
        enough = min(epsilon, delta * float(np.exp(-_entropy(place.law))))
        for child in reversed(children):
            prob = float(place.law[tree.token_ids[child]])
            if prob > enough:
                stack.append((place.below(child), (depth + 1, log_likelihood + float(np.log(prob)))))
    return best


def _entropy(law: Law) -> float:
    """In nats."""
    some = law[law > 0]
    return -float((some * np.log(some)).sum())
