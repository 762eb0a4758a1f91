"""Rules other than `follow`: residual rejection keeps the law, exactly; confident ones are named and capped.

Laws are enumerated: every random decision of drafter and rule is a fork with its probability.
"""

from __future__ import annotations

import importlib
import itertools
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from adversaries import trees
from conftest import build_model
from hasten.core import Acceptance, SamplingParams, Sequence
from hasten.drafters.base import Observation
from hasten.drafters.jacobi import Jacobi
from hasten.engine import LanguageModel
from hasten.errors import ConfigError, ModelError
from hasten.models.causal_lm import CausalLM
from hasten.sampling import Sampler, keyed_generator
from hasten.stopping import StopConditions
from hasten.tree import DraftTree
from hasten.verify import VERIFIERS, Verifier, confident, find_verifier, follow, residual
from hasten.verify.residual import draw

MODULE = importlib.import_module("hasten.verify.residual")
SAMPLED = SamplingParams(temperature=1.0)


class Forks:
    """Runs a function once for every way its random decisions can go."""

    def __init__(self):
        self._trail, self._at, self._chance = [], 0, 1.0

    def choose(self, probs):
        """An index; the run is worth its probability."""
        if self._at == len(self._trail):
            self._trail.append([index for index, prob in enumerate(probs) if prob > 0][::-1])
        index = self._trail[self._at][-1]
        self._at += 1
        self._chance *= probs[index]
        return index

    def law_of(self, run):
        """result -> probability"""
        law = defaultdict(float)
        while True:
            self._at, self._chance = 0, 1.0
            result = run()
            law[result] += self._chance
            while self._trail and len(self._trail[-1]) == 1:
                self._trail.pop()
            if not self._trail:
                return dict(law)
            self._trail[-1].pop()

    # What a rule does with a uniform number: `random() * q < p`.
    def random(self):
        return _Uniform(self)


class _Uniform:
    def __init__(self, forks, scale=1.0):
        self._forks, self._scale = forks, scale

    def __mul__(self, scale):
        return _Uniform(self._forks, float(scale))

    def __lt__(self, bound):
        accepted = min(1.0, float(bound) / self._scale) if self._scale else float(bound > 0)
        return self._forks.choose([accepted, 1 - accepted]) == 0


class ForkedSampler:
    """Tells the laws of logits as they are, and forks instead of drawing."""

    def __init__(self, forks):
        self.forks = forks

    def draws(self, logits): ...

    def guess(self, logits, position): ...

    def law(self, logits, token_ids=None):
        return torch.softmax(logits.double(), -1).numpy()

    def generator(self, position, stream):
        return self.forks


class NoStop:
    def after(self, token_id):
        return None


@pytest.fixture
def forks(monkeypatch):
    forks = Forks()

    def choose(law, generator):
        return forks.choose((law / law.sum()).tolist())

    monkeypatch.setattr(MODULE, "draw", choose)
    monkeypatch.setattr("hasten.drafters.jacobi.draw", choose)
    return forks


class Language:
    """A law for every text, any of them."""

    def __init__(self, vocab_size, seed):
        self.vocab_size, self._seed, self._known = vocab_size, seed, {}

    def logits(self, text):
        key = (self._seed, len(text), *text)
        if key not in self._known:
            self._known[key] = torch.from_numpy(np.random.default_rng(key).normal(0, 1.5, self.vocab_size))
        return self._known[key]

    def law(self, text):
        return torch.softmax(self.logits(text), -1).numpy()

    def rows(self, text, tree):
        paths = [tree.token_ids[tree.path_to(node)].tolist() for node in range(-1, len(tree))]
        return torch.stack([self.logits([*text, *path]) for path in paths])

    def texts(self, prompt, length):
        """The law of plain sampling."""
        law = {}
        for new in itertools.product(range(self.vocab_size), repeat=length):
            chance = 1.0
            for at, token in enumerate(new):
                chance *= self.law([*prompt, *new[:at]])[token]
            law[new] = chance
        return law


def sequence_of(sampler, prompt=(0,), stop_rule=None):
    return Sequence(
        list(prompt), len(prompt), 10**6, sampler, stop_rule or NoStop(), guarantee="distribution"
    )


def written(language, sequence, propose, observe, length):
    """The first ``length`` tokens of one run."""
    while len(sequence.new_token_ids) < length:
        tree = propose()
        logits = language.rows(sequence.token_ids, tree)
        acceptance = residual(tree, logits, sequence)
        sequence.token_ids += acceptance.token_ids
        observe(tree, acceptance, logits)
    return tuple(sequence.new_token_ids[:length])


def with_jacobi(language, forks, window, length, change=None):
    """A run drafted by the window with its laws; ``change`` spoils its trees."""

    def run():
        sequence = sequence_of(ForkedSampler(forks))
        drafter = Jacobi(window=window)
        drafter.begin(sequence, None)

        def propose():
            tree = drafter.propose(sequence, window)
            return tree if change is None else change(tree)

        def observe(tree, acceptance, logits):
            drafter.observe(sequence, Observation(tree, acceptance, None, logits))

        return written(language, sequence, propose, observe, length)

    return run


def distance(found, expected):
    """The largest difference of two laws."""
    return max(abs(found.get(key, 0.0) - expected.get(key, 0.0)) for key in {*found, *expected})


@pytest.mark.parametrize(
    ("vocab_size", "window", "length", "seed"), [(5, 1, 2, 0), (3, 1, 3, 0), (3, 2, 3, 0), (3, 2, 3, 1)]
)
def test_texts_drafted_by_a_carried_window_have_the_law_of_plain_sampling(
    forks, vocab_size, window, length, seed
):
    language = Language(vocab_size, seed)
    found = forks.law_of(with_jacobi(language, forks, window, length))
    assert sum(found.values()) == pytest.approx(1, abs=1e-12)
    assert distance(found, language.texts([0], length)) < 1e-12


def laws(vocab_size, count):
    return st.lists(
        st.lists(st.floats(0.01, 1), min_size=vocab_size, max_size=vocab_size), min_size=count, max_size=count
    ).map(lambda rows: np.array([np.array(row) / sum(row) for row in rows]))


@settings(max_examples=25)
@given(vocab_size=st.integers(3, 5), num_drawn=st.integers(0, 3), chosen=st.integers(0, 2), data=st.data())
def test_siblings_drawn_and_chosen_leave_the_law_as_it_is(vocab_size, num_drawn, chosen, data):
    """Drawn ones without replacement, each with its law given those before it; chosen ones after them."""
    forks, language = Forks(), Language(vocab_size, seed=vocab_size)
    draft_law = data.draw(laws(vocab_size, 1))[0]

    def run():
        token_ids, rows, left = [], [], draft_law.copy()
        for _ in range(num_drawn):
            left = left / left.sum()
            token_ids.append(forks.choose(left.tolist()))
            rows.append(left.copy())
            left[token_ids[-1]] = 0
        others = [token for token in range(vocab_size) if token not in token_ids]
        for token in others[:chosen]:
            token_ids.append(token)
            rows.append(np.eye(vocab_size)[token])
        probs = np.array(rows) if rows else None
        tree = DraftTree(token_ids, [-1] * len(token_ids), draft_probs=probs)
        sequence = sequence_of(ForkedSampler(forks))
        return residual(tree, language.rows([0], tree), sequence).token_ids[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "draw", lambda law, _: forks.choose((law / law.sum()).tolist()))
        found = forks.law_of(run)
    assert distance(found, dict(enumerate(language.law([0])))) < 1e-12


def test_a_token_drawn_from_the_target_itself_is_always_accepted(forks):
    language = Language(4, seed=2)

    def run():
        law = language.law([0])
        tree = DraftTree.chain([forks.choose(law.tolist())])
        tree.draft_probs = law[None]
        return len(residual(tree, language.rows([0], tree), sequence_of(ForkedSampler(forks))).path)

    assert forks.law_of(run)[1] == pytest.approx(1)


@settings(max_examples=20)
@given(drafts=st.lists(trees(max_nodes=5, vocab=3), min_size=1, max_size=2))
def test_any_trees_without_laws_leave_the_law_as_it_is(drafts):
    forks, language = Forks(), Language(3, seed=5)

    def run():
        sequence, cycle = sequence_of(ForkedSampler(forks)), itertools.cycle(drafts)

        def propose():
            return next(cycle).sanitised(3, 3)

        return written(language, sequence, propose, lambda *_: None, 3)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "draw", lambda law, _: forks.choose((law / law.sum()).tolist()))
        found = forks.law_of(run)
    assert distance(found, language.texts([0], 3)) < 1e-12


def test_this_must_fail_a_law_used_for_another_token(forks):
    def change(tree):
        if tree.draft_probs is None:
            return tree
        return DraftTree((tree.token_ids + 1) % 3, tree.parents, tree.scores, draft_probs=tree.draft_probs)

    language = Language(3, 0)
    found = forks.law_of(with_jacobi(language, forks, 2, 3, change))
    assert distance(found, language.texts([0], 3)) > 1e-3


def test_this_must_fail_a_tree_that_is_cut_by_the_token_drawn(forks):
    def change(tree):
        return tree if len(tree) and tree.token_ids[0] == 0 else DraftTree()

    language = Language(3, 0)
    found = forks.law_of(with_jacobi(language, forks, 2, 3, change))
    assert distance(found, language.texts([0], 3)) > 1e-3


def test_this_must_fail_the_rest_warped_again(forks, monkeypatch):
    def warped(law, generator):
        return forks.choose((law**2 / (law**2).sum()).tolist())

    monkeypatch.setattr(MODULE, "draw", warped)
    language = Language(3, 0)
    found = forks.law_of(with_jacobi(language, forks, 2, 3))
    assert distance(found, language.texts([0], 3)) > 1e-3


def accepted_law(language, draft_law, num_points, is_coupled):
    """The law of a token whose draft is drawn with one number and judged with the same, or with another."""
    law = Counter()
    points = (np.arange(num_points) + 0.5) / num_points
    target = language.law([0])
    for first, second in itertools.product(points, points):
        drawn = draw(draft_law, _Given(first))
        if (first if is_coupled else second) * draft_law[drawn] < target[drawn]:
            law[drawn] += 1 / num_points**2
        else:
            rest = np.maximum(target - draft_law, 0)
            for token, chance in enumerate(rest / rest.sum()):
                law[token] += chance / num_points**2
    return dict(law)


class _Given:
    def __init__(self, *numbers):
        self._numbers = list(numbers)

    def random(self):
        return self._numbers.pop(0)


def test_this_must_fail_a_draft_judged_with_the_noise_it_was_drawn_with():
    language, draft_law = Language(3, 0), np.array([0.2, 0.2, 0.6])
    expected = dict(enumerate(language.law([0])))
    assert distance(accepted_law(language, draft_law, 200, is_coupled=False), expected) < 5e-3
    assert distance(accepted_law(language, draft_law, 200, is_coupled=True), expected) > 5e-2


def test_draws_have_the_law_and_never_what_cannot_be():
    law = np.array([0, 0.25, 0, 0.5, 0.25, 0])
    counts = Counter(draw(law, _Given((at + 0.5) / 64)) for at in range(64))
    assert counts == {1: 16, 3: 32, 4: 16}
    for number in (0.0, 1 - 2**-53):
        for scale in (1.0, 1 / 3, 1 + 1e-10, 1e-300):
            assert law[draw(law * scale, _Given(number))] > 0


def test_streams_of_a_position_share_no_numbers():
    streams = [(3, 1, 7, 0), (3, 1, 7, 1), (3, 1, 7, 2), (3, 1, 8, 0), (3, 1, 8, 1), (3, 2, 7, 1)]
    raw = [set(keyed_generator(*key).bit_generator.random_raw(4000).tolist()) for key in streams]
    for first, second in itertools.combinations(raw, 2):
        assert not first & second
    sampler = Sampler(SAMPLED, seed=3, sample=1)
    assert sampler.generator(7, 1).random() == keyed_generator(3, 1, 7, 1).random()


def next_logits(text, vocab_size=5):
    return torch.from_numpy(np.random.default_rng([len(text), *text]).normal(0, 1, vocab_size)).float()


def tree_logits(tree, text):
    rows = [[*text, *tree.token_ids[tree.path_to(node)].tolist()] for node in range(-1, len(tree))]
    return torch.stack([next_logits(row) for row in rows])


@pytest.mark.parametrize("stop", [(), (4,)])
@settings(max_examples=60)
@given(
    drafts=st.lists(trees(vocab=5), min_size=1, max_size=4), with_laws=st.booleans(), seed=st.integers(0, 9)
)
def test_greedy_is_follow(stop, drafts, with_laws, seed):
    rng = np.random.default_rng(seed)
    texts = []
    for rule in (follow, residual):
        stops = StopConditions(frozenset(stop), 12, None)
        sequence, cycle = sequence_of(Sampler(SamplingParams()), [1, 2], stops), itertools.cycle(drafts)
        steps = []
        while sequence.finish_reason is None:
            tree = next(cycle).sanitised(5, 11)
            if with_laws and len(tree):
                tree.draft_probs = rng.dirichlet(np.ones(5), len(tree)).astype(np.float32)
            acceptance = rule(tree, tree_logits(tree, sequence.token_ids), sequence)
            sequence.token_ids += acceptance.token_ids
            sequence.finish_reason = acceptance.finish_reason
            steps.append(acceptance)
        texts.append(steps)
    assert texts[0] == texts[1]


def test_processors_see_each_written_position_once_with_its_own_prefix():
    seen = []

    def spy(input_ids, scores):
        seen.append(input_ids[0].tolist())
        scores[:, 3] = -torch.inf
        return scores

    params = SamplingParams(temperature=1.0, logits_processors=[spy])
    for verify in (residual, confident(0.0)):
        for seed in range(20):
            seen.clear()
            sampler = Sampler(params, seed)
            sampler.processors = [spy]
            sequence = sequence_of(sampler, [1, 2])
            tree = DraftTree([0, 1, 2, 0, 1, 2, 0], [-1, -1, -1, 0, 0, 1, 3])
            acceptance = verify(tree, tree_logits(tree, [1, 2]), sequence)
            whole = [1, 2, *acceptance.token_ids]
            assert seen == [whole[: 2 + at] for at in range(len(acceptance.token_ids))]
            assert 3 not in acceptance.token_ids
            assert sequence.token_ids == [1, 2]


def test_a_row_of_nan_is_an_error_where_it_is_written_and_only_there():
    tree = DraftTree.chain([0])
    logits = tree_logits(tree, [1])
    logits[0] = -100.0
    logits[0, 4] = 0.0
    logits[1] = torch.nan
    assert residual(tree, logits, sequence_of(Sampler(SAMPLED), [1])).token_ids == [4]
    with pytest.raises(ModelError, match="position 1"):
        residual(tree, logits[[1, 1]], sequence_of(Sampler(SAMPLED), [1]))


def test_a_sampler_without_laws_is_refused():
    class Plain:
        def draws(self, logits): ...

        def guess(self, logits, position): ...

    with pytest.raises(ConfigError, match="Plain does not"):
        residual(DraftTree(), torch.zeros(1, 5), sequence_of(Plain()))


TINY = 5
LENGTH = 2


@pytest.fixture(scope="module")
def tiny():
    model = build_model("llama", vocab_size=TINY)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.6)  # a flatter law accepts more
    return LanguageModel(CausalLM(model), drafter="off")


def exact_texts(lm, prompt):
    """The law of the first tokens in plain sampling."""
    forward, law = lm.target.forward, {}
    prefixes = {(): 1.0}
    for _ in range(LENGTH):
        rows = np.array([[*prompt, *prefix] for prefix in prefixes])
        positions = np.tile(np.arange(rows.shape[1]), (len(rows), 1))
        probs = torch.softmax(forward(rows, positions, None, None)[:, -1].double(), -1).tolist()
        law = {
            (*prefix, token): chance * row[token]
            for (prefix, chance), row in zip(prefixes.items(), probs, strict=True)
            for token in range(TINY)
        }
        prefixes = law
    return law


def excess(lm, expected, drafter, verify, count=1500):
    """How many standard deviations chi-square is above its mean; and tokens a step."""
    params = SamplingParams(max_new_tokens=LENGTH + 2, temperature=1.0, seed=8, n=count, ignore_eos=True)
    outputs = lm.generate(
        [2, 3, 4], params, drafter=drafter, verify=verify, num_draft_tokens=6, batch_size=500
    )
    found = Counter(tuple(output.token_ids[:LENGTH]) for output in outputs)
    common = [key for key, chance in expected.items() if chance * count >= 5]
    cells = [(found[key], expected[key] * count) for key in common]
    cells.append((count - sum(cell[0] for cell in cells), count - sum(cell[1] for cell in cells)))
    statistic = sum((seen - mean) ** 2 / mean for seen, mean in cells)
    degrees = len(cells) - 1
    steps = sum(output.stats.num_steps for output in outputs)
    return (statistic - degrees) / np.sqrt(2 * degrees), count * (LENGTH + 2) / steps


@pytest.mark.parametrize("drafter", ["jacobi", "jacobi+token-recycling", "space"])
def test_texts_of_a_model_have_the_law_of_plain_sampling(tiny, drafter):
    expected = exact_texts(tiny, [2, 3, 4])
    deviation, gained = excess(tiny, expected, drafter, "residual")
    assert deviation < 4
    assert gained > 1.15


def test_this_must_fail_recovering_from_the_target_instead_of_what_is_left(tiny, monkeypatch):
    """Accept by min(1, p/q), but draw the recovered token from p: a published bias."""

    def biased(tree, logits, sequence):
        law = sequence.sampler.law(logits[0], sequence.token_ids)
        children = DraftTree(tree.token_ids[:1], tree.parents[:1])
        children.draft_probs = None if tree.draft_probs is None else tree.draft_probs[:1]
        acceptance = residual(children, logits, sequence)
        if len(children) and not acceptance.path:
            token_id = draw(law, sequence.sampler.generator(len(sequence.token_ids), 99))
            return Acceptance([], [token_id], acceptance.finish_reason)
        return acceptance

    expected = exact_texts(tiny, [2, 3, 4])
    assert excess(tiny, expected, "jacobi", Verifier("biased", biased, "distribution"))[0] > 8


def test_the_guarantee_is_named_and_reported(models):
    lm = models()
    params = SamplingParams(max_new_tokens=6)
    assert lm.generate([5, 6], params).guarantee == "exact"
    for name, verifier in VERIFIERS.items():
        assert lm.generate([5, 6], params, drafter="jacobi", verify=name).guarantee == verifier.guarantee
        pieces = list(lm.stream([5, 6], params, drafter="jacobi", verify=verifier))
        assert pieces[-1].output.guarantee == verifier.guarantee
    with pytest.raises(ConfigError, match="verify='best' is unknown; choose follow, residual, confident"):
        lm.generate([5, 6], params, verify="best")
    with pytest.raises(ConfigError, match="unknown"):
        lm.stream([5, 6], params, verify="")
    assert find_verifier("follow").rule is follow


def test_the_same_seed_and_size_write_the_same_text_under_residual(models):
    params = SamplingParams(max_new_tokens=20, temperature=0.9, seed=4)
    runs = [
        models().generate([5, 6], params, drafter="jacobi", verify="residual", num_draft_tokens=6)
        for _ in range(2)
    ]
    assert runs[0].token_ids == runs[1].token_ids


def kept(tree, beta, max_repeats=1, text=(1,), params=None):
    sequence = sequence_of(Sampler(params or SamplingParams()), text)
    logits = torch.zeros(len(tree) + 1, 9)
    logits[:, 8] = 1.0  # the target always says 8
    return confident(beta, max_repeats)(tree, logits, sequence).token_ids


def test_confident_keeps_the_best_child_from_beta_on():
    tree = DraftTree([2, 3, 4, 5], [-1, -1, 1, 2], [0.3, 0.6, 0.54, 0.27])
    assert kept(tree, 0.0) == [3, 4, 5, 8]
    assert kept(tree, 0.6) == [3, 4, 8]
    assert kept(tree, 0.61) == [8]
    assert kept(tree, 1.01) == [8]


def test_below_beta_confident_follows_the_target():
    tree = DraftTree([8, 3, 8, 2], [-1, 0, 0, 2], [0.5, 0.4, 0.2, 0.2])
    assert kept(tree, 0.9) == [8, 8, 2, 8]


def test_confident_caps_repetition():
    tree = DraftTree.chain([1, 1, 1])
    assert kept(tree, 0.5) == [8]
    assert kept(tree, 0.5, max_repeats=2) == [1, 8]
    assert kept(tree, 0.5, max_repeats=9) == [1, 1, 1, 8]
    assert kept(DraftTree.chain([2, 2, 3]), 0.5) == [2, 8]


@pytest.mark.parametrize("scores", [[np.nan] * 3, [0.0] * 3, [np.inf] * 3, [-1.0] * 3])
def test_confident_never_keeps_above_beta_1_whatever_the_scores(scores):
    assert kept(DraftTree.chain([2, 3, 4], scores), 1.5) == [8]


def test_confident_ends_at_a_stop():
    sequence = sequence_of(Sampler(SamplingParams()), [1], StopConditions(frozenset([3]), 9, None))
    acceptance = confident(0.0)(DraftTree.chain([2, 3, 4]), torch.zeros(4, 9), sequence)
    assert acceptance == Acceptance([0], [2, 3], "stop")


def test_confident_refuses_what_cannot_work():
    for beta in (-0.1, float("nan")):
        with pytest.raises(ConfigError, match="beta"):
            confident(beta)
    with pytest.raises(ConfigError, match="max_repeats=0"):
        confident(0.5, 0)
