"""What drafters learnt survives on disk, or the file is refused with a reason."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

import hasten
from conftest import VOCAB, build_model
from hasten.core import SamplingParams
from hasten.drafters import AUTO, DRAFTERS
from hasten.drafters.store import forget_store, load_store, read_store, save_store
from hasten.errors import IncompatibleModels, StoreError
from hasten.models.causal_lm import CausalLM
from hasten.text.engine import LanguageModel

PROMPT = [5, 9, 13, 22] * 4
PARAMS = SamplingParams(max_new_tokens=24, ignore_eos=True)
LEARNING = [*(name for name in AUTO if name != "logitspec"), "auto"]


def taught(models, drafter="auto"):
    lm = models()
    for _ in range(2):
        lm.generate(PROMPT, PARAMS, drafter=drafter, num_draft_tokens=12)
    return lm


def contents(path):
    with safe_open(path, framework="numpy") as store:
        return {key: store.get_tensor(key) for key in store.keys()}, store.metadata()  # noqa: SIM118


@pytest.mark.parametrize("drafter", [*sorted(DRAFTERS), "auto"])
def test_a_saved_store_comes_back_as_it_was(models, tmp_path, drafter):
    path = tmp_path / "deep" / "store"
    first, second = taught(models, drafter), models()
    first.save_store(path, drafter)
    second.load_store(path, drafter)
    before, after = first.drafter(drafter).state(), second.drafter(drafter).state()
    assert list(before) == list(after)
    for key, value in before.items():
        assert np.array_equal(value, after[key])
    assert [file.name for file in path.parent.iterdir()] == ["store"]


@pytest.mark.parametrize("drafter", LEARNING)
def test_a_loaded_store_speeds_up_and_changes_no_text(models, tmp_path, drafter):
    path = tmp_path / "store"
    taught(models, drafter).save_store(path, drafter)
    warm = models()
    warm.load_store(path, drafter)
    found = warm.generate(PROMPT, PARAMS, drafter=drafter, num_draft_tokens=12)
    cold = models().generate(PROMPT, PARAMS, drafter=drafter, num_draft_tokens=12)
    assert found.token_ids == cold.token_ids
    assert found.stats.num_steps < cold.stats.num_steps


def test_load_takes_a_store(models, tmp_path):
    path = tmp_path / "store"
    teacher = taught(models)
    teacher.save_store(path, "auto")
    lm = hasten.load(build_model(), draft=teacher.resources.draft, store=path)
    assert lm.generate(PROMPT, PARAMS, num_draft_tokens=12).stats.mean_acceptance_length > 2


def test_a_store_of_another_tokenizer_is_refused_by_name(models, tmp_path, demo):
    path = tmp_path / "store"
    taught(models).save_store(path, "auto")
    other = LanguageModel(CausalLM(build_model(vocab_size=98)), drafter="off")
    for lm in (other, demo):
        with pytest.raises(IncompatibleModels, match=r"token-ids-97.*one store per tokenizer") as caught:
            lm.load_store(path, "auto")
        assert lm.fingerprint in str(caught.value)


def test_a_store_of_another_drafter_is_refused_by_name(models, tmp_path):
    path = tmp_path / "store"
    taught(models).save_store(path, "auto")
    for drafter in ("suffix", "off"):
        with pytest.raises(StoreError, match=rf"'auto', not '{drafter}'.*with that drafter"):
            models().load_store(path, drafter)


def test_a_missing_store_says_how_to_make_one(models, tmp_path):
    with pytest.raises(StoreError, match=r"no store at .*save_store"):
        models().load_store(tmp_path / "nothing", "auto")


def damage(data, how):
    return {
        "empty": b"",
        "half": data[: len(data) // 2],
        "last byte": data[:-1],
        "random": np.random.default_rng(0).bytes(len(data)),
        "no header": b"\0" * 64,
        "text": b"this is no store",
        "pickle": b"\x80\x04\x95\x0f\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix",
    }[how]


@pytest.mark.parametrize("how", ["empty", "half", "last byte", "random", "no header", "text", "pickle"])
def test_a_damaged_file_is_refused_and_nothing_is_lost(models, tmp_path, how):
    path = tmp_path / "store"
    lm = taught(models)
    lm.save_store(path, "auto")
    path.write_bytes(damage(path.read_bytes(), how))
    before = {key: value.copy() for key, value in lm.drafter("auto").state().items()}
    with pytest.raises(StoreError, match=r"not a readable store .*learn anew"):
        lm.load_store(path, "auto")
    assert all(np.array_equal(value, before[key]) for key, value in lm.drafter("auto").state().items())


def test_a_foreign_safetensors_file_is_refused(models, tmp_path):
    path = tmp_path / "store"
    save_file({"weight": np.zeros(3)}, path)
    with pytest.raises(StoreError, match="hasten-store-1"):
        models().load_store(path, "auto")


WRONG = {
    "negative": lambda value: np.full_like(value, -5),
    "huge": lambda value: np.full_like(value, 2**31 - 1),
    "too large for the vocabulary": lambda value: (
        np.zeros_like(value) + 97 if value.dtype.kind == "i" else value + 97
    ),
    "62 bits": lambda value: value.astype(np.int64) * 0 + 2**62,
    "shorter": lambda value: value[: len(value) // 2],
    "another shape": lambda value: value[None],
    "not finite": lambda value: np.full(value.shape, np.nan),
}


@pytest.mark.parametrize("how", WRONG)
@pytest.mark.parametrize("drafter", LEARNING)
def test_wrong_contents_are_refused_or_harmless_and_never_change_the_text(models, tmp_path, drafter, how):
    path = tmp_path / "store"
    lm = taught(models, drafter)
    lm.save_store(path, drafter)
    arrays, metadata = contents(path)
    expected = lm.generate(PROMPT, PARAMS, drafter="off").token_ids
    refused = 0
    for key, value in arrays.items():
        save_file({**arrays, key: np.ascontiguousarray(WRONG[how](value))}, path, metadata)
        victim = models()
        try:
            victim.load_store(path, drafter)
        except StoreError:
            refused += 1
        assert victim.generate(PROMPT, PARAMS, drafter=drafter, num_draft_tokens=12).token_ids == expected
    assert refused > 0


@pytest.mark.parametrize("drafter", LEARNING)
def test_missing_and_unknown_arrays_are_refused(models, tmp_path, drafter):
    path = tmp_path / "store"
    taught(models, drafter).save_store(path, drafter)
    arrays, metadata = contents(path)
    for key in arrays:
        save_file({name: value for name, value in arrays.items() if name != key}, path, metadata)
        with pytest.raises(StoreError):
            models().load_store(path, drafter)
    save_file({**arrays, "no/such": np.zeros(2)}, path, metadata)
    with pytest.raises(StoreError):
        models().load_store(path, drafter)


def test_a_refused_store_leaves_every_drafter_of_a_union_as_it_was(models, tmp_path):
    path = tmp_path / "store"
    models().save_store(path, "auto")  # an empty one, damaged where the last drafter keeps its part
    arrays, metadata = contents(path)
    last = [key for key in arrays if key.startswith(AUTO[-1])]
    save_file({key: value for key, value in arrays.items() if key not in last}, path, metadata)
    lm = taught(models)
    before = {key: value.copy() for key, value in lm.drafter("auto").state().items()}
    with pytest.raises(StoreError):
        lm.load_store(path, "auto")
    after = lm.drafter("auto").state()
    assert all(np.array_equal(before[key], after[key]) for key in before)


class Broken:
    name = "broken"

    def state(self):
        return {"x": np.zeros(3)}


def test_a_failed_write_keeps_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "store"
    save_store(path, Broken(), "tokenizer")
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("hasten.drafters.store.save_file", full_disk)
    with pytest.raises(StoreError, match="no space left"):
        save_store(path, Broken(), "tokenizer")
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["store"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write the store"):
        save_store(tmp_path / "file" / "store", Broken(), "tokenizer")
    with pytest.raises(StoreError):
        load_store(tmp_path, Broken(), "tokenizer")


def test_token_ids_outside_the_vocabulary_are_refused_whatever_the_drafter_says(tmp_path):
    """Such a store crashed every call after it was loaded."""

    class Trusting:
        name = "trusting"

        def __init__(self, token_ids):
            self._token_ids = token_ids

        def state(self):
            return {"token_ids": np.array(self._token_ids)}

        def restore(self, state):
            self._token_ids = state["token_ids"].tolist()

    for wrong in (2**62, 97, -2):
        save_store(tmp_path / "store", Trusting([0, wrong]), "tokenizer")
        with pytest.raises(StoreError, match="outside the vocabulary of 97 tokens"):
            load_store(tmp_path / "store", Trusting([]), "tokenizer", 97)
    save_store(tmp_path / "store", Trusting([0, 96, -1]), "tokenizer")
    load_store(tmp_path / "store", drafter := Trusting([]), "tokenizer", 97)
    assert drafter.state()["token_ids"].tolist() == [0, 96, -1]


def test_forgetting_leaves_nothing_of_a_prompt(models):
    lm, fresh = taught(models), models()
    lm.forget()
    for key, value in fresh.drafter("auto").state().items():
        assert np.array_equal(value, lm.drafter("auto").state()[key]), key
    first = fresh.generate(PROMPT, PARAMS, drafter="auto", num_draft_tokens=12)
    again = lm.generate(PROMPT, PARAMS, drafter="auto", num_draft_tokens=12)
    assert (first.token_ids, first.stats.num_steps) == (again.token_ids, again.stats.num_steps)


def test_what_is_in_a_store(models, tmp_path):
    lm = taught(models)
    lm.save_store(tmp_path / "store", "auto")
    found = read_store(tmp_path / "store")
    assert (found.drafter, found.tokenizer) == ("auto", lm.fingerprint)
    text = lm.generate(PROMPT, PARAMS, drafter="off").token_ids
    assert text in found.texts()
    (tmp_path / "link").symlink_to(tmp_path / "store")
    forget_store(tmp_path / "link")
    assert not (tmp_path / "store").exists()
    (tmp_path / "thesis").write_text("years of work")
    with pytest.raises(StoreError, match="not a readable store"):
        forget_store(tmp_path / "thesis")
    assert (tmp_path / "thesis").exists()


EXTREMES = [
    2**62,
    2**63 - 1,
    2**31 - 1,
    -(2**63),
    -(2**31),
    -2,
    -1,
    0,
    1,
    VOCAB,
    np.nan,
    np.inf,
    -np.inf,
    1e300,
]
KEEPING = ["token-recycling", "aded", "suffix", "lookahead", "stand", "rasd", "auto"]


@pytest.mark.parametrize("drafter", KEEPING)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_hostile_store_is_refused_or_harmless(models, drafter, data):
    """Whatever numbers stand in its arrays, of the right shapes and types: an error, or the same text."""
    lm = hostile_lm(models, drafter)
    state = {key: value.copy() for key, value in lm.learnt.items()}
    key = data.draw(st.sampled_from(sorted(key for key, value in state.items() if value.size)))
    wrong, values = data.draw(st.sampled_from(EXTREMES)), state[key].reshape(-1)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrong = np.asarray(wrong).astype(values.dtype)
    values[data.draw(st.sampled_from([slice(None), slice(None, None, 7), slice(1, 2), slice(-1, None)]))] = (
        wrong
    )
    try:
        lm.drafter(drafter).restore(state)
    except StoreError:
        return
    assert lm.generate(PROMPT, PARAMS, drafter=drafter, num_draft_tokens=12).token_ids == lm.text


@pytest.mark.parametrize("drafter", ["suffix", "lookahead", "stand", "token-recycling", "aded"])
def test_tokens_outside_the_vocabulary_are_refused(models, drafter):
    lm = hostile_lm(models, drafter)
    state = {key: value.copy() for key, value in lm.learnt.items()}
    key = next(key for key in state if key.endswith(("/successors", "/token_ids")))
    state[key].reshape(-1)[np.flatnonzero(state[key] >= 0)[0]] = 97
    with pytest.raises(StoreError, match="96"):
        lm.drafter(drafter).restore(state)


_HOSTILE: dict[str, LanguageModel] = {}


def hostile_lm(models, drafter):
    """A model whose drafter learnt something, kept for all examples."""
    if drafter not in _HOSTILE:
        lm = _HOSTILE[drafter] = taught(models, drafter)
        lm.learnt = {key: value.copy() for key, value in lm.drafter(drafter).state().items()}
        lm.text = lm.generate(PROMPT, PARAMS, drafter="off").token_ids
    return _HOSTILE[drafter]
