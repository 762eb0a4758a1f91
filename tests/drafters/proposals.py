"""What the drafter tests share: tree invariants, drafts of a text, and a target that is a plain function."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hasten.core import Acceptance, Sequence
from hasten.drafters.base import Drafter, Observation, TopCandidates
from hasten.tree import DraftTree

Ranked = Callable[[list[int]], tuple[list[int], list[float]]]
"""text -> the target's best next tokens and their probabilities, best first"""


def check_tree(tree: DraftTree, budget: int) -> None:
    count = len(tree)
    assert count <= max(budget, 0)
    assert len(tree.parents) == len(tree.scores) == len(tree.sources) == count
    parents = tree.parents.tolist()
    assert all(-1 <= parent < node for node, parent in enumerate(parents))
    pairs = list(zip(parents, tree.token_ids.tolist(), strict=True))
    assert len(set(pairs)) == count
    assert (tree.token_ids >= 0).all()
    assert ((tree.scores > 0) & (tree.scores <= 1)).all()
    for node, parent in enumerate(parents):
        assert parent == -1 or tree.scores[node] <= tree.scores[parent]


def paths(tree: DraftTree) -> set[tuple[int, ...]]:
    """The token path of every node."""
    tokens = tree.token_ids.tolist()
    return {tuple(tokens[at] for at in tree.path_to(node)) for node in range(len(tree))}


def scores(tree: DraftTree) -> dict[tuple[int, ...], float]:
    """Every node's score, by its token path."""
    tokens = tree.token_ids.tolist()
    all_paths = [tuple(tokens[at] for at in tree.path_to(node)) for node in range(len(tree))]
    return dict(zip(all_paths, tree.scores.tolist(), strict=True))


def sequence_of(token_ids: list[int], prompt_length: int | None = None) -> Sequence:
    length = len(token_ids) if prompt_length is None else prompt_length
    return Sequence(
        token_ids=list(token_ids),
        prompt_length=length,
        max_length=10**6,
        sampler=None,  # type: ignore[arg-type]
        stop_rule=None,  # type: ignore[arg-type]
    )


def candidates(rows: list[tuple[list[int], list[float]]]) -> TopCandidates:
    return TopCandidates(
        np.array([row[0] for row in rows], np.int64), np.array([row[1] for row in rows], np.float32)
    )


def drafted(drafter: Drafter, text: list[int], budget: int = 64) -> DraftTree:
    """A draft for a prompt that nothing is written after."""
    sequence = sequence_of(text)
    drafter.begin(sequence, None)
    tree = drafter.propose(sequence, budget)
    check_tree(tree, budget)
    drafter.end(sequence)
    return tree


def answer(drafter: Drafter, prompt: list[int], response: list[int], step: int = 3) -> None:
    """A sequence from begin to end, ``step`` tokens at a time."""
    sequence = sequence_of(prompt)
    drafter.begin(sequence, None)
    for at in range(0, len(response), step):
        written = response[at : at + step]
        sequence.token_ids += written
        drafter.observe(sequence, Observation(DraftTree(), Acceptance([], written)))
    drafter.end(sequence)


def step(drafter: Drafter, sequence: Sequence, ranked: Ranked, budget: int) -> tuple[DraftTree, Acceptance]:
    """Propose, verify greedily, commit and observe."""
    tree = drafter.propose(sequence, budget)
    check_tree(tree, budget)
    tokens = tree.token_ids.tolist()
    text = list(sequence.token_ids)
    rows = [ranked(text)]
    for node in range(len(tree)):
        rows.append(ranked(text + [tokens[at] for at in tree.path_to(node)]))
    path: list[int] = []
    written = [rows[0][0][0]]
    node = tree.child(-1, written[0])
    while node is not None:
        path.append(node)
        written.append(rows[node + 1][0][0])
        node = tree.child(node, written[-1])
    acceptance = Acceptance(path, written)
    sequence.token_ids.extend(written)
    drafter.observe(sequence, Observation(tree, acceptance, candidates(rows) if drafter.top_k else None))
    return tree, acceptance


def gains(drafter: Drafter, sequence: Sequence, ranked: Ranked, budget: int, num_steps: int) -> list[int]:
    return [len(step(drafter, sequence, ranked, budget)[1].token_ids) for _ in range(num_steps)]


def periodic(period: int, width: int = 8) -> Ranked:
    """Counts up to ``period`` and starts again."""

    def ranked(text: list[int]) -> tuple[list[int], list[float]]:
        following = (text[-1] + 1) % period
        return [following, *range(period, period + width - 1)], [0.9] + [0.01] * (width - 1)

    return ranked
