"""Block verification (arXiv 2403.10444): a drafted path is judged as a whole, from its end.

On the path x_1 .. x_n, the weight of a prefix is a_0 = 1, a_i = min(1, a_{i-1} p(x_i) / q(x_i)), which may
recover what an earlier token lost. With s_i the sum of max(0, a_i p - q) after x_i, a prefix is kept with
probability h_i = s_i / (s_i + 1 - a_i), the whole path with a_n, and the longest one kept is written, also
where a shorter one was not. The token after it is drawn from norm(max(0, a_i p - q)), after the whole path
from p. On average this keeps more tokens than judging one by one, and no rule for one path keeps more.

The path is that of the first-drawn children; their siblings are ignored (``traversal`` uses them). A token
that was chosen counts as drawn from the law that has all its mass on it.
"""

from __future__ import annotations

from hasten.core import Acceptance, LogitRows, Sequence, System
from hasten.laws import Law, acceptance_of, draft_law, draw, left_over
from hasten.tree import DraftTree
from hasten.verify.ahead import Place, Round

SYSTEM = System(
    name="block-verification",
    title="Block Verification Accelerates Speculative Decoding",
    arxiv="2403.10444",
    kind="verification rule",
    guarantee="distribution",
    module="hasten.verify.block",
    summary="judges a sampled path as a whole and keeps its longest good part (verify block)",
)


def block(tree: DraftTree, logits: LogitRows, sequence: Sequence) -> Acceptance:
    """A path whose tokens have the law of plain sampling; greedy, the path of plain decoding.

    Args:
        logits: [nodes + 1, vocab], root first.

    Raises ConfigError for a sampler that does not tell its laws, ModelError for a NaN on the path.
    """
    this_round = Round("block", tree, logits, sequence)
    generator = this_round.generator
    # From the end, and on after a rejection, which says nothing of shorter prefixes; the empty one is sure.
    prefixes = reversed(_weigh(tree, this_round.root))
    place, rest = next((place, rest) for place, rest, weight in prefixes if generator.random() < weight)
    return this_round.keep(place, draw(place.law if rest is None else rest, generator))


def _weigh(tree: DraftTree, root: Place) -> list[tuple[Place, Law | None, float]]:
    """(end of a prefix, law left after it, probability to keep it); the whole path's law is not asked for."""
    prefixes: list[tuple[Place, Law | None, float]] = []
    place, weight = root, 1.0
    while weight > 0 and (children := tree.drawn_below(place.node)):
        token_id = int(tree.token_ids[children[0]])
        drafted = draft_law(tree, children[0], len(place.law))
        prefixes.append((place, *left_over(place.law, weight, drafted)))
        weight = acceptance_of(weight * float(place.law[token_id]), float(drafted[token_id]))
        place = place.below(children[0])
    return [*prefixes, (place, None, weight)]
