"""A causal language model that ranks the tokens of a proposal, and whose vocabulary is the denoiser's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from conftest import VOCAB, build_model
from hasten.diffusion.canvas import DenoiserSpec
from hasten.diffusion.denoisers.guide import CausalGuide, load_guide
from hasten.errors import ConfigError, IncompatibleModels, ModelError
from hasten.models.causal_lm import CausalLM
from hasten.training.tokenizer import train_tokenizer

TEXT = "the old mill by the stream, the miller and the mill's wheel, thirty-three wheels. "


def denoiser(vocab_size: int, mask_id: int = 0) -> Any:
    return SimpleNamespace(vocab_size=vocab_size, spec=DenoiserSpec(mask_id=mask_id))


@pytest.fixture(scope="module")
def target() -> CausalLM:
    return CausalLM(build_model())


@pytest.fixture(scope="module")
def guide(target) -> CausalGuide:
    return load_guide(target.forward.model, denoiser=denoiser(VOCAB), denoiser_tokenizer=None)


def expected(target: CausalLM, token_ids: list[int], start: int) -> list[int]:
    with torch.no_grad():
        logits = target.forward.model(torch.tensor([token_ids])).logits[0]
    ranks = [0] + [int((row > row[token]).sum()) for row, token in zip(logits, token_ids[1:], strict=False)]
    return ranks[start:]


@pytest.mark.parametrize("start", [0, 1, 5, 11])
def test_ranks_are_those_of_the_models_own_logits(target, guide, start):
    token_ids = np.random.default_rng(0).integers(0, VOCAB, 12)
    found = guide.ranks(token_ids, start)
    assert found.tolist() == expected(target, token_ids.tolist(), start)
    assert found.dtype == np.int64


def test_what_the_model_would_write_has_rank_0(target, guide):
    token_ids = [5, 8]
    for _ in range(6):
        with torch.no_grad():
            token_ids.append(int(target.forward.model(torch.tensor([token_ids])).logits[0, -1].argmax()))
    assert guide.ranks(np.array(token_ids), 2).tolist() == [0] * 6


def test_a_token_is_judged_by_those_before_it(guide):
    token_ids = np.random.default_rng(1).integers(0, VOCAB, 10)
    before = guide.ranks(token_ids)
    token_ids[6] = (token_ids[6] + 1) % VOCAB
    after = guide.ranks(token_ids)
    assert (before[:6] == after[:6]).all()
    assert (before[6:] != after[6:]).any()


def test_a_text_of_one_token_is_not_judged(guide):
    assert guide.ranks(np.array([4])).tolist() == [0]


def test_of_a_text_longer_than_its_context_the_end_is_read():
    model = CausalLM(build_model(max_position_embeddings=8))
    guide = CausalGuide(model, np.ones(VOCAB, dtype=np.bool_))
    token_ids = np.random.default_rng(2).integers(0, VOCAB, 12)
    assert guide.ranks(token_ids, 7).tolist() == expected(model, token_ids[4:].tolist(), 3)


def test_tokens_that_the_guide_does_not_have_are_read_past_and_never_agreed_with(target):
    has = np.ones(VOCAB, dtype=np.bool_)
    has[[3, 9]] = False
    guide = CausalGuide(target, has)
    found = guide.ranks(np.array([3, 5, 6, 9, 7, 8]))
    without = expected(target, [5, 6, 7, 8], 0)
    assert found.tolist() == [VOCAB, *without[:2], VOCAB, *without[2:]]


# Vocabularies


def test_a_guide_may_lack_control_tokens_such_as_the_mask():
    ours, theirs = train_tokenizer([TEXT], 265), train_tokenizer([TEXT], 265)
    ours.add_special_tokens({"mask_token": "<mask>"})
    mask_id = ours.mask_token_id
    made = load_guide(
        build_model(vocab_size=len(theirs)),
        denoiser=denoiser(len(ours), mask_id),
        denoiser_tokenizer=ours,
        tokenizer=theirs,
    )
    assert made.ranks(np.array([mask_id, 40, 41])).tolist()[:2] == [len(theirs), 0]


def test_another_tokenizer_is_refused():
    ours, theirs = train_tokenizer([TEXT * 3], 280), train_tokenizer(["a stream of dreams, " + TEXT], 290)
    with pytest.raises(IncompatibleModels, match="another vocabulary"):
        load_guide(
            build_model(vocab_size=len(theirs)),
            denoiser=denoiser(len(ours)),
            denoiser_tokenizer=ours,
            tokenizer=theirs,
        )


def words(*tokens: str) -> Any:
    return SimpleNamespace(
        get_vocab=lambda: {token: token_id for token_id, token in enumerate(tokens)},
        all_special_ids=[0],
        added_tokens_decoder={},
    )


def test_the_same_tokens_under_other_ids_are_refused():
    model = build_model(vocab_size=4)
    options = {"denoiser": denoiser(4), "denoiser_tokenizer": words("<mask>", "a", "b", "c")}
    with pytest.raises(IncompatibleModels, match=r"2 tokens differ, such as 'b', which is 2 .* and 3 for"):
        load_guide(model, **options, tokenizer=words("<mask>", "a", "c", "b"))
    assert load_guide(model, **options, tokenizer=words("<pad>", "a", "b", "c")).ranks(np.array([0])) == [4]


def test_without_a_tokenizer_sizes_must_agree(target):
    with pytest.raises(ConfigError, match="has no tokenizer"):
        load_guide(target.forward.model, denoiser=denoiser(VOCAB + 1), denoiser_tokenizer=None)


def test_what_is_no_causal_model_is_refused(target):
    with pytest.raises(ModelError):
        load_guide("no/such/folder/here", denoiser=denoiser(VOCAB), denoiser_tokenizer=None)
    with pytest.raises(ConfigError, match="name or folder"):
        load_guide(target.forward.model, denoiser=denoiser(VOCAB), denoiser_tokenizer=None, dtype="float32")


def test_a_denoiser_is_no_guide():
    model = build_model(is_causal=False)
    with pytest.raises(ModelError, match="denoiser"):
        load_guide(model, denoiser=denoiser(VOCAB), denoiser_tokenizer=None)


def test_unusable_logits_are_named():
    model = build_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    guide = load_guide(model, denoiser=denoiser(VOCAB), denoiser_tokenizer=None)
    with pytest.raises(ModelError, match="no usable logits"):
        guide.ranks(np.array([4, 5, 6]))


def test_a_guide_is_loaded_from_a_folder_with_its_tokenizer(tmp_path):
    tokenizer = train_tokenizer([TEXT], 265)
    model = build_model(vocab_size=len(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    made = load_guide(tmp_path, denoiser=denoiser(len(tokenizer)), denoiser_tokenizer=tokenizer)
    token_ids = np.arange(40, 50)
    assert made.ranks(token_ids).tolist() == expected(CausalLM(model), token_ids.tolist(), 0)
