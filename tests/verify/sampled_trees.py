"""Trees sampled from a draft language in every way a rule must bear, and rules driven by enumeration."""

from __future__ import annotations

import importlib

import numpy as np
from forks import Language, NoStop, sequence_of

from hasten.tree import ROOT, DraftTree
from hasten.verify import VERIFIERS

EXACT = ["residual", "k-sequential", "block", "traversal", "naive", "point-mass"]
DRAWING = ["residual", "k_sequential", "block", "traversal", "typical"]


def rule_of(name):
    return VERIFIERS[name].rule


def one_hot(token, size):
    return np.eye(size)[token]


class Growth:
    """A tree being drawn: nodes by (parent, token), each with the law of its first draw."""

    def __init__(self):
        self.nodes, self.tokens, self.parents, self.laws, self.draws = {}, [], [], [], []

    def add(self, parent, token, law):
        node = self.nodes.setdefault((parent, token), len(self.tokens))
        if node == len(self.tokens):
            self.tokens.append(token)
            self.parents.append(parent)
            self.laws.append(law)
        self.draws.append(node)
        return node

    def tree(self):
        laws = np.array(self.laws) if self.laws else None
        return DraftTree(self.tokens, self.parents, draft_probs=laws, draws=np.array(self.draws, np.int64))


def without(law, taken):
    left = law.copy()
    left[list(taken)] = 0
    return left / left.sum()


def iid(law, count, choose):
    return [(choose(law), law) for _ in range(count)]


def distinct(law, count, choose):
    drawn = []
    for _ in range(min(count, np.count_nonzero(law))):
        left = without(law, [token for token, _ in drawn])
        drawn.append((choose(left), left))
    return drawn


def chosen(law, count, choose):
    return [(token, one_hot(token, len(law))) for token in np.argsort(-law, kind="stable")[:count].tolist()]


def mixed(law, count, choose):
    """One chosen, one drawn of the rest, one chosen of what is left, and so on; drawn first on odd texts."""
    siblings = []
    for at in range(min(count, len(law))):
        left = without(law, [token for token, _ in siblings])
        if (at + round(1000 * law[0])) % 2:
            siblings.append((choose(left), left))
        else:
            token = int(np.argmax(left))
            siblings.append((token, one_hot(token, len(law))))
    return siblings


KINDS = {"iid": iid, "distinct": distinct, "chosen": chosen, "mixed": mixed}


def grown(language, text, kind, branching, choose):
    """A tree below the text; repeats of a token are one node, drawn as often."""
    growth, ends = Growth(), [(ROOT, tuple(text))]
    for count in branching:
        below = []
        for parent, path in ends:
            for token, law in KINDS[kind](language.law([*path]), count, choose):
                below.append((growth.add(parent, token, law), (*path, token)))
        ends = below
    return growth.tree()


def chains(language, text, count, length, choose):
    """Whole paths drawn independently, as SpecTr drafts."""
    return grown(language, text, "iid", [count] + [1] * (length - 1), choose)


class TextSampler:
    """Tells the law of a text, and forks instead of drawing; a row of its logits is the text it is for."""

    is_greedy = False

    def __init__(self, forks, language):
        self.forks, self._language = forks, language

    def draws(self, logits):
        return lambda row, text: self.forks.choose(self.law(logits[row], text).tolist())

    def guess(self, logits, position): ...

    def noisy(self, logits, position): ...

    def law(self, logits, token_ids=None):
        assert logits == tuple(token_ids)
        return self._language.law(token_ids)

    def generator(self, position, stream):
        return self.forks

    def fork(self):
        return self


class Laws(Language):
    """A language whose laws are kept, or given."""

    def __init__(self, vocab_size, seed, given=None):
        super().__init__(vocab_size, seed)
        self._laws, self._given = {}, given

    def law(self, text):
        key = tuple(text)
        if key not in self._laws:
            self._laws[key] = super().law(list(text)) if self._given is None else self._given(len(text))
        return self._laws[key]


def rows_of(tree, text):
    paths = [tree.token_ids[tree.path_to(node)].tolist() for node in range(-1, len(tree))]
    return [(*text, *path) for path in paths]


def patch_draw(monkeypatch, forks, change=lambda law: law):
    """Rules fork where they draw a token."""

    def choose(law, generator):
        law = change(law)
        return forks.choose((law / law.sum()).tolist())

    for module in DRAWING:
        monkeypatch.setattr(importlib.import_module(f"hasten.verify.{module}"), "draw", choose)


def one_round(forks, rule, target, propose, text=(0,)):
    """(written tokens -> probability, mean number of accepted tokens) of one round."""

    def run():
        tree = propose()
        sequence = sequence_of(TextSampler(forks, target), text, NoStop())
        acceptance = rule(tree, rows_of(tree, text), sequence)
        assert len(acceptance.token_ids) == len(acceptance.path) + 1
        return tuple(acceptance.token_ids)

    law = forks.law_of(run)
    return law, sum((len(written) - 1) * chance for written, chance in law.items())


def completed(law, target, text, length):
    """The law of the first ``length`` tokens, where later rounds have the target's."""
    found = {}
    for whole, _ in target.texts(list(text), length).items():
        chance = 0.0
        for written, written_chance in law.items():
            size = min(len(written), length)
            if whole[:size] == written[:size]:
                later = [target.law([*text, *whole[:at]])[whole[at]] for at in range(size, length)]
                chance += written_chance * float(np.prod(later))
        found[whole] = chance
    return found
