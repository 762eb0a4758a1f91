"""Draft sessions: whatever was grown, written and read before, logits are those of whole texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from conftest import ARCHITECTURES, VOCAB, build_model, finest_dtype
from hasten.errors import ConfigError, ModelError
from hasten.models.causal_lm import CausalLM
from hasten.models.draft.draft_session import GrowingSession, RereadSession, open_draft_session
from hasten.models.encoder_decoder.target import Seq2SeqLM
from hasten.tree import ROOT
from seq2seq_models import build_seq2seq

TREE_MODELS = [name for name, (_, _, mode) in ARCHITECTURES.items() if mode == "tree"]
OTHER_MODELS = [name for name in ARCHITECTURES if name not in TREE_MODELS]
LOOSE = ("gemma2", "gemma3", "llama4-chunked", "mixtral-moe", "deepseek-mla", *OTHER_MODELS)
TEXTS = [[5], [7, 8, 9, 10, 11, 12, 13, 14, 15], [20, 21, 22], [20, 21, 30, 31, 32, 33]]


class Watched:
    """A session, the texts it should hold and the paths of its nodes: every logit can be checked."""

    def __init__(self, forward, session, tolerance=1e-9):
        self.forward, self.session, self.tolerance = forward, session, tolerance
        self.texts: list[list[int]] = []
        self.known: list[list[int]] = []  # the part of each text the model should know
        self.paths: list[dict[int, list[int]]] = []
        self.known_logits: dict[tuple[int, ...], torch.Tensor] = {}

    def read(self, texts):
        self.texts = self.known = [list(text) for text in texts]
        self.session.read(texts)
        self.paths = [{ROOT: []} for _ in texts]

    def grow(self, wanted):
        """The node ids, after a look at every logit of theirs."""
        found = self.session.grow(wanted)
        for row, (pairs, ids) in enumerate(zip(wanted, found, strict=True)):
            assert len(ids) == len(pairs)
            for (parent, token_id), node in zip(pairs, ids, strict=True):
                path = [*self.paths[row][parent], token_id]
                assert self.paths[row].setdefault(node, path) == path
        self.check()
        return found

    def passes(self):
        return self.session.num_passes

    def check(self):
        for row, paths in enumerate(self.paths):
            for node, path in paths.items():
                found = self.session.logits(row, node)
                assert found.shape == (VOCAB,)
                expected = self.plain_logits([*self.known[row], *path])
                torch.testing.assert_close(found, expected, rtol=0, atol=self.tolerance)

    def plain_logits(self, token_ids):
        key = tuple(token_ids)
        if key not in self.known_logits:
            positions = np.arange(len(key))[None]
            self.known_logits[key] = self.forward(np.asarray([key]), positions, None, None)[0][-1]
        return self.known_logits[key]


def watched(targets, name="llama", slow=False, **settings):
    forward = targets(name, finest_dtype(name)).forward
    is_slow = slow or ARCHITECTURES[name][2] != "tree"
    session = (RereadSession if is_slow else GrowingSession)(forward, **settings)
    # float64 throughout leaves 1e-9; what is computed in float32 inside leaves its noise
    return Watched(forward, session, 2e-4 if name in LOOSE else 1e-9)


def some_pairs(rng, paths, count):
    """Parents among the nodes there are, few distinct tokens so that pairs repeat."""
    nodes = list(paths)
    return [(int(rng.choice(nodes)), int(rng.integers(3, 3 + 5))) for _ in range(count)]


def written_after(rng, text, paths):
    """A grown path or none, and a few tokens that may be those of nodes or not."""
    path = paths[int(rng.choice(list(paths)))]
    return [*text, *path, *rng.integers(3, 3 + 8, rng.integers(0, 4)).tolist()]


def walk(state, rng, num_rounds, texts=TEXTS):
    """Random trees level by level, random texts after them; every logit of every step is compared."""
    state.read(texts)
    for _ in range(num_rounds):
        state.check()
        for _ in range(int(rng.integers(0, 4))):
            before = state.passes()
            state.grow([some_pairs(rng, paths, rng.integers(0, 4)) for paths in state.paths])
            assert state.passes() - before <= 1
        pairs = zip(state.texts, state.paths, strict=True)
        before = state.passes()
        state.read([written_after(rng, text, paths) for text, paths in pairs])
        assert state.passes() - before <= 1
    state.check()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_any_history_gives_the_logits_of_whole_texts(targets, name):
    state = watched(targets, name)
    walk(state, np.random.default_rng(1), 7 if name in TREE_MODELS else 3)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    max_holes=st.sampled_from([0, 3, 1000]),
    num_rows=st.integers(1, 4),
    name=st.sampled_from(["llama", "mistral-sliding", "gemma3"]),
)
def test_any_random_history_holds_with_any_number_of_holes(targets, seed, max_holes, num_rows, name):
    state = watched(targets, name, max_holes=max_holes)
    walk(state, np.random.default_rng(seed), 5, TEXTS[-num_rows:])


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_the_slow_session_gives_the_same(targets, name):
    walk(watched(targets, name, slow=True), np.random.default_rng(1), 4)


@pytest.mark.parametrize("slow", [False, True])
def test_nothing_is_run_twice(targets, slow):
    state = watched(targets, slow=slow)
    state.read(TEXTS[1:3])
    before = state.passes()
    [[a, b], [c]] = state.grow([[(ROOT, 4), (ROOT, 5)], [(ROOT, 4)]])
    assert state.passes() == before + 1
    assert state.grow([[(ROOT, 5), (ROOT, 4)], [(ROOT, 4)]]) == [[b, a], [c]]
    assert state.grow([[], []]) == [[], []]
    assert state.passes() == before + 1
    [[d, e, again], []] = state.grow([[(a, 6), (b, 6), (a, 6)], []])
    assert d == again != e
    assert state.passes() == before + 2
    state.read(TEXTS[1:3])  # nothing was written
    state.grow([[(ROOT, 4), (ROOT, 5)], [(ROOT, 4)]])
    assert state.passes() == before + 2


@pytest.mark.parametrize("slow", [False, True])
def test_written_nodes_and_what_is_below_them_are_not_run_again(targets, slow):
    state = watched(targets, slow=slow)
    state.read(TEXTS[1:3])
    [[a, b], [c]] = state.grow([[(ROOT, 4), (ROOT, 5)], [(ROOT, 4)]])
    [[d, _], [e]] = state.grow([[(a, 6), (b, 6)], [(c, 8)]])
    state.grow([[(d, 7), (d, 8)], [(e, 9)]])
    before = state.passes()
    state.read([[*TEXTS[1], 4], [*TEXTS[2], 4, 8]])
    state.check()
    [[d], [_]] = state.grow([[(ROOT, 6)], [(ROOT, 9)]])
    [[f, g], []] = state.grow([[(d, 7), (d, 8)], []])
    assert f != g
    assert state.passes() == before
    state.grow([[(ROOT, 5)], []])  # its sibling of that name hung elsewhere
    assert state.passes() == before + 1


@pytest.mark.parametrize("slow", [False, True])
def test_a_row_catches_up_with_foreign_tokens_in_one_pass_and_others_keep_their_nodes(targets, slow):
    state = watched(targets, slow=slow)
    state.read(TEXTS)
    [_, [a], _, [b]] = state.grow([[], [(ROOT, 4)], [(ROOT, 4)], [(ROOT, 4)]])
    state.grow([[(ROOT, 9)], [(a, 5)], [], [(b, 5)]])
    before = state.passes()
    state.read([[*TEXTS[0], 60, 61, 62], [*TEXTS[1], 4], [*TEXTS[2], 4, 60], TEXTS[3]])
    assert state.passes() == before + 1
    state.check()
    state.grow([[], [(ROOT, 5)], [], [(ROOT, 4)]])
    assert state.passes() == before + 1
    state.grow([[(ROOT, 9)], [], [], []])  # below the old text, and gone with it
    assert state.passes() == before + 2


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("rows", [[0, 2], [3], [1, 2, 3], []])
def test_retained_rows_keep_their_nodes(targets, rows, slow):
    state = watched(targets, slow=slow)
    walk(state, np.random.default_rng(4), 3)
    state.grow([[(ROOT, 40 + row)] for row in range(4)])
    before = state.passes()
    state.session.select(rows)
    state.texts, state.known = ([texts[row] for row in rows] for texts in (state.texts, state.known))
    state.paths = [state.paths[row] for row in rows]
    state.check()
    state.read([[*text, 40 + row] for row, text in zip(rows, state.texts, strict=True)])
    state.check()
    assert state.passes() == before
    state.grow([[(ROOT, 7)] for _ in rows])


@pytest.mark.parametrize("slow", [False, True])
def test_a_text_that_does_not_go_on_is_read_anew_and_the_others_stay(targets, slow):
    state = watched(targets, slow=slow)
    state.read(TEXTS[:3])
    state.grow([[(ROOT, 4)], [(ROOT, 4)], [(ROOT, 4)]])
    before = state.passes()
    state.read([[*TEXTS[0], 4], [*TEXTS[1][:4], 50, 51], TEXTS[2]])
    state.grow([[], [(ROOT, 52)], [(ROOT, 4)]])
    assert state.passes() == before + 2
    state.read([[*TEXTS[0], 4], TEXTS[1][:3], [*TEXTS[2], 4]])  # the beginning of what was held
    state.check()
    state.read([[90, 91], [92], [93, 94, 95]])  # nothing is as it was
    state.grow([[(ROOT, 4)], [(ROOT, 50)], [(ROOT, 4)]])


@pytest.mark.parametrize("slow", [False, True])
def test_another_number_of_texts_starts_anew(targets, slow):
    state = watched(targets, slow=slow)
    for texts in (TEXTS[:3], TEXTS, [], TEXTS[1:2]):
        state.read(texts)
        state.check()
        state.grow([[(ROOT, 4), (ROOT, 5)] for _ in texts])


def test_a_text_is_cached_in_pieces(targets, monkeypatch):
    for module in ("sessions.tree_session", "draft.draft_session"):
        monkeypatch.setattr(f"hasten.models.{module}.PREFILL_CHUNK", 4)
    state = watched(targets, "gemma3")
    state.read(TEXTS)
    state.grow([[(ROOT, 4)]] * 4)
    state.read([[*TEXTS[0], *range(30, 41)], TEXTS[1], [*TEXTS[2], 4, 50], [*TEXTS[3], *range(40, 45)]])
    before = state.passes()
    state.grow([[(ROOT, 4)], [(ROOT, 4)], [], []])
    assert state.passes() == before + 1
    state.read([*state.texts[:3], [*state.texts[3], 60]])
    before = state.passes()
    state.grow([[(ROOT, 4)], [(ROOT, 4)], [], []])
    assert state.passes() == before


def test_compaction_closes_the_holes_and_moves_the_nodes(targets):
    loose, tight = (watched(targets, max_holes=max_holes) for max_holes in (1000, 0))
    for state in (loose, tight):
        walk(state, np.random.default_rng(5), 6)
        wide = [(ROOT, token_id) for token_id in range(20, 40)]
        nodes = state.grow([wide] * 4)
        below = state.grow([[(nodes[row][10 + row], 5)] for row in range(4)])
        state.grow([[(below[row][0], 6)] for row in range(4)])
        before = state.passes()
        state.read([[*text, 30 + row] for row, text in enumerate(state.texts)])
        below = state.grow([[(ROOT, 5)]] * 4)
        state.grow([[(below[row][0], 6)] for row in range(4)])
        assert state.passes() == before
        state.grow([[(below[row][0], 7)] for row in range(4)])
    slots = [state.session._table.visible.shape[1] for state in (loose, tight)]
    assert slots[1] < slots[0]
    longest = max(tight.session._lengths)
    assert slots[1] <= longest + longest // 8 + 4


def test_rejected_nodes_at_the_end_leave_no_holes(targets):
    state = watched(targets)
    state.read(TEXTS[1:2])
    [nodes] = state.grow([[(ROOT, 4), (ROOT, 5), (ROOT, 6)]])
    state.grow([[(nodes[1], 7)]])
    state.read([[*TEXTS[1], 4, 60]])
    assert state.session._table.visible.shape == (1, len(TEXTS[1]) + 2)


def recorded_positions(forward, monkeypatch):
    seen: list[int] = []
    call = type(forward).__call__

    def recording(self, token_ids, position_ids, *arguments, **options):
        seen.append(int(position_ids.max()))
        return call(self, token_ids, position_ids, *arguments, **options)

    monkeypatch.setattr(type(forward), "__call__", recording)
    return seen


@pytest.mark.parametrize("name", ["llama", "mistral-sliding"])
@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("context", [1, 7, 12])
def test_a_bounded_row_is_read_anew_from_its_last_half_and_goes_on_from_there(targets, name, slow, context):
    state = watched(targets, name, slow=slow, context=context)
    rng, starts, num_restarts = np.random.default_rng(6), [0, 0, 0], 0
    texts = [[5], list(range(40, 59)), [20, 21, 22]]
    for _ in range(8):
        state.read(texts)
        for row, text in enumerate(texts):
            if len(text) - starts[row] > context:
                starts[row] = len(text) - max(context // 2, 1)
                num_restarts += 1
        state.known = [text[start:] for text, start in zip(texts, starts, strict=True)]
        nodes = state.grow([[(ROOT, 4), (ROOT, 5)]] * 3)
        state.grow([[(ids[0], 6)] for ids in nodes])
        texts = [written_after(rng, text, paths) for text, paths in zip(texts, state.paths, strict=True)]
    assert num_restarts > 3


def test_a_bounded_text_that_changes_is_read_from_its_beginning(targets):
    state = watched(targets, context=8)
    state.read([list(range(40, 52))])
    state.known = [list(range(48, 52))]
    state.check()
    state.read([[40, 41, 50]])
    state.check()
    state.read([[40, 41, 50, 60]])
    state.check()


@pytest.mark.parametrize("slow", [False, True])
def test_learned_positions_are_never_exceeded(slow, monkeypatch):
    model = CausalLM(build_model("gpt2", n_positions=24))
    session = open_draft_session(model, slow=slow)
    seen = recorded_positions(model.forward, monkeypatch)
    for length in (3, 11, 12, 13, 40):
        session.read([list(range(length)), [5]])
        nodes = [ROOT, ROOT]
        for token_id in range(30):  # deeper than there are positions
            nodes = [ids[0] for ids in session.grow([[(node, token_id)] for node in nodes])]
        assert torch.isfinite(session.logits(0, nodes[0])).all()
    assert max(seen) == 23


def test_the_context_leaves_room_for_nodes(targets, monkeypatch):
    model = targets("llama")  # 256 positions
    for context, most in ((None, 192), (10_000, 192), (20, 20)):
        state = Watched(model.forward, open_draft_session(model, context), 1e-4)
        text = np.random.default_rng(7).integers(3, VOCAB, most).tolist()
        state.read([text])
        state.check()
        state.read([[*text, 9]])
        state.known = [[*text, 9][-(most // 2) :]]
        state.grow([[(ROOT, 4)]])
    with pytest.raises(ConfigError, match="context=0"):
        open_draft_session(model, 0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_session_is_chosen_by_what_the_model_can_do(targets, name):
    model = targets(name, finest_dtype(name))
    wanted = GrowingSession if name in TREE_MODELS else RereadSession
    assert type(open_draft_session(model)) is wanted
    assert type(open_draft_session(model, slow=True)) is RereadSession


def test_what_cannot_be_read_is_refused(targets):
    for slow in (False, True):
        session = open_draft_session(targets("llama"), slow=slow)
        with pytest.raises(ConfigError, match="without tokens"):
            session.read([[3], []])
        session.read([[3], [4]])
        [[node], []] = session.grow([[(ROOT, 5)], []])
        for wrong in (node + 1, -2):
            with pytest.raises(ConfigError, match=f"node {wrong} "):
                session.grow([[(wrong, 5)], []])
        session.grow([[(node, 5)], []])


def test_an_encoder_decoder_model_is_refused():
    with pytest.raises(ModelError, match="causal"):
        open_draft_session(Seq2SeqLM(build_seq2seq("t5")))
