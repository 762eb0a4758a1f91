"""Whichever rule accepts most, among those that keep the law of the text.

Rules want different drafts of a model (``core.Proposals``), and which pays depends on how much draft and
target differ: coupled drafts agree often where the laws are alike, chosen ones where the target is sure,
sampled ones in between. Each is tried for some steps of a text, then the one that gained most a step is used,
the others now and then.

Why the law is kept. Coupled drafts look at the noise of positions that are not written yet, and what they saw
moves all that is decided later: how large trees are, how much is gained, which rule is next. Were a position
whose noise was seen written by a rule that draws anew, whether it is would depend on what it would have been,
and the law would be that of neither. So a text is divided into stretches. In a coupled one, drafters see the
noise before ``guess_end`` and no further (``core.VeiledSampler``), and all positions before it are written
with that noise, whatever comes to light in between: the rule changes only where the text has reached
``guess_end``, which is moved on while coupled drafts stay the choice. Whoever moves it has not seen the noise
behind it. In the other stretches no noise is seen, and rules draw with random numbers of their own.
"""

from __future__ import annotations

import copy
from collections import Counter

from hasten.core import Acceptance, Guarantee, LogitRows, Proposals, Sequence, VeiledSampler
from hasten.errors import ConfigError
from hasten.tree import DraftTree
from hasten.verify.follow import follow
from hasten.verify.point_mass import point_mass
from hasten.verify.traversal import traversal

RULES = {"coupled": follow, "distinct": traversal, "chosen": point_mass}
"""The best rule for each kind of proposals; drafts that were not sampled go through any of them."""

_VIEW = 16
"""positions whose noise coupled drafts see; before a change of the rule, they see ever fewer"""
_TRIAL_STEPS = 4
_EXPLORE_EVERY = 32


class Fastest:
    """See Judge: what each rule gained in this text, and which is the next step's.

    Raises ConfigError for a sampler that cannot veil its noise.
    """

    guarantee: Guarantee = "distribution"

    def __init__(self, sequence: Sequence) -> None:
        self.proposals: Proposals = "coupled"
        self._steps: Counter[Proposals] = Counter()
        self._tokens: Counter[Proposals] = Counter()
        _sampler(sequence).guess_end = len(sequence.token_ids) + _VIEW

    def verify(self, tree: DraftTree, logits: LogitRows, sequence: Sequence) -> Acceptance:
        """A path that the rule for this step's proposals accepts; then chooses those of the next step.

        Args:
            logits: [nodes + 1, vocab], root first.

        Raises ConfigError for a sampler that cannot veil its noise.
        """
        used, sampler = self.proposals, _sampler(sequence)
        acceptance = RULES[used](tree, logits, sequence)
        length, num_gained = len(sequence.token_ids), len(acceptance.token_ids)
        has_full_view = sampler.guess_end == length + _VIEW
        if len(tree) and (used != "coupled" or has_full_view):  # other steps tell nothing of a rule
            self._steps[used] += 1
            self._tokens[used] += num_gained
            sequence.stats.rule_steps[used] += 1
            sequence.stats.rule_tokens[used] += num_gained
        length += num_gained
        choice = self._best()
        if choice == "coupled":
            sampler.guess_end = length + _VIEW
        elif used == "coupled" and sampler.guess_end is not None and length < sampler.guess_end:
            choice = "coupled"  # what was seen is written as it was seen
        else:
            sampler.guess_end = length
        self.proposals = choice
        return acceptance

    def fork(self) -> Fastest:
        """See Judge."""
        forked = copy.copy(self)
        forked._steps, forked._tokens = Counter(self._steps), Counter(self._tokens)
        return forked

    def _best(self) -> Proposals:
        names: list[Proposals] = ["coupled", "distinct", "chosen"]
        fewest = min(names, key=lambda name: self._steps[name])
        if self._steps[fewest] < _TRIAL_STEPS or self._steps.total() % _EXPLORE_EVERY == 0:
            return fewest
        return max(names, key=lambda name: self._tokens[name] / self._steps[name])


def _sampler(sequence: Sequence) -> VeiledSampler:
    sampler = sequence.sampler
    if not isinstance(sampler, VeiledSampler):
        raise ConfigError(
            f"verify='fastest' needs a sampler that can veil its noise, and {type(sampler).__name__} cannot; "
            "choose verify='follow'"
        )
    return sampler
