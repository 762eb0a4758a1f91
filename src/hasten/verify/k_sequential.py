"""SpecTr's k-sequential selection (arXiv 2310.15141), for candidates drawn independently from one law.

Of k draws x_1, x_2, ... from q the first is accepted for which u_j < min(1, p(x_j) / (rho q(x_j))). With
b = sum min(q, p / rho) and A = 1 - (1 - b)^k, the token after k rejections is drawn from
norm(p - min(q, p / rho) A / b). That is a law where A <= rho b; the smallest such rho in [1, k] accepts most,
at least 1 - (1 - 1/k)^k of what the best rule there is accepts. One draw is the rule of a single draft.

A tree of several sampled sequences draws below a node as often as sequences go through it, so k is counted
anew at each node, repeats included. Where the draws of a node are not all from one law, as with chosen
children or without replacement, the recursive rule of ``residual`` judges them, which is exact for those too.
"""

from __future__ import annotations

import numpy as np

from hasten.core import Acceptance, LogitRows, Sequence, System
from hasten.laws import STREAM, Law, acceptance_of, draft_law, draw, law_sampler
from hasten.tree import DraftTree
from hasten.verify.residual import try_children
from hasten.verify.walk import walk

SYSTEM = System(
    name="spectr",
    title="SpecTr: Fast Speculative Decoding via Optimal Transport",
    arxiv="2310.15141",
    kind="verification rule",
    guarantee="distribution",
    module="hasten.verify.k_sequential",
    summary="several independent drafts, accepted nearly as often as any rule can (verify k-sequential)",
)

_HALVINGS = 48


def k_sequential(tree: DraftTree, logits: LogitRows, sequence: Sequence) -> Acceptance:
    """A path whose tokens have the law of plain sampling; greedy, the path of plain decoding.

    Args:
        logits: [nodes + 1, vocab], root first.

    Raises ConfigError for a sampler that does not tell its laws.
    """
    sampler = law_sampler(sequence, "k-sequential")

    def choose(node: int, token_ids: list[int]) -> tuple[int, int | None]:
        law = sampler.law(logits[node + 1], token_ids)
        generator = sampler.generator(len(token_ids), STREAM)
        draws = tree.drawn_below(node)
        if _are_from_one_law(tree, draws):
            return _select(tree, draws, law, generator)
        return try_children(tree, node, law, generator)

    return walk(sequence, choose)


def _are_from_one_law(tree: DraftTree, draws: list[int]) -> bool:
    if not draws or tree.draft_probs is None:
        return False
    first = tree.draft_probs[draws[0]]
    return all(np.array_equal(first, tree.draft_probs[node]) for node in {*draws})


def _select(
    tree: DraftTree, draws: list[int], law: Law, generator: np.random.Generator
) -> tuple[int, int | None]:
    drafted = draft_law(tree, draws[0], len(law))
    rho = best_rho(law, drafted, len(draws))
    for node in draws:
        token_id = int(tree.token_ids[node])
        if generator.random() < acceptance_of(float(law[token_id]), rho * float(drafted[token_id])):
            return token_id, node
    return draw(after_rejections(law, drafted, len(draws), rho), generator), None


def best_rho(law: Law, draft: Law, k: int) -> float:
    """The smallest rho in [1, k] with A(rho) <= rho b(rho), from above; laws [vocab]."""
    # Outside of 1 < p/q < k the minimum of q and p / rho is the same one for every rho.
    is_below, is_above = law <= draft, law >= k * draft
    fixed_target, fixed_draft = float(law[is_below].sum()), float(draft[is_above & ~is_below].sum())
    between = ~(is_below | is_above)
    some_law, some_draft = law[between], draft[between]

    def is_valid(rho: float) -> bool:
        each = float(np.minimum(some_draft, some_law / rho).sum()) + fixed_target / rho + fixed_draft
        return _accepted(each, k) <= rho * each

    low, high = 1.0, float(k)
    if is_valid(low):
        return low
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if is_valid(middle) else (middle, high)
    return high


def accepted_by(law: Law, draft: Law, k: int, rho: float) -> float:
    """A(rho): the probability that one of k draws is accepted; laws [vocab]."""
    return _accepted(float(np.minimum(draft, law / rho).sum()), k)


def after_rejections(law: Law, draft: Law, k: int, rho: float) -> Law:
    """The law [vocab] of the token after all k draws were rejected."""
    each = np.minimum(draft, law / rho)
    total = float(each.sum())
    if total == 0:
        return law
    rest = np.maximum(law - each * (_accepted(total, k) / total), 0.0)
    # Nothing is left only where both laws are the same, and then only rounding rejects.
    return rest / rest.sum() if rest.any() else law


def _accepted(each: float, k: int) -> float:
    return float(1.0 - (1.0 - min(each, 1.0)) ** k)
