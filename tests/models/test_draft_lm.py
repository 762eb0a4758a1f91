"""A draft model: its guesses in the target's tokens, a smaller head, and exits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from conftest import VOCAB, build_model
from hasten.errors import ConfigError, ModelError
from hasten.models.causal_lm import CausalLM
from hasten.models.draft.draft_lm import DraftLM, load_draft, trim_head
from hasten.models.forwards.packed import pack_linears
from hasten.models.vocabulary import VocabularyMap
from hasten.training.tokenizer import train_tokenizer

TEXT = "the old mill by the stream, the miller and the mill's wheel, thirty-three wheels. "
INFINITE = float("-inf")


def draft_of(target: CausalLM, model: Any = None, **options: Any) -> DraftLM:
    model = build_model(seed=1) if model is None else model
    return load_draft(model, target=target, target_tokenizer=None, **options)


@pytest.fixture
def target(targets: Any) -> CausalLM:
    return targets()


@pytest.fixture(scope="module")
def strangers() -> tuple[DraftLM, Any, Any]:
    """(draft, target tokenizer, draft tokenizer) of two tokenizers; the draft has the larger vocabulary."""
    ours, theirs = train_tokenizer([TEXT * 3], 280), train_tokenizer(["a stream of dreams, " + TEXT], 290)
    target = CausalLM(build_model(vocab_size=len(ours)))
    model = build_model(vocab_size=len(theirs))
    return load_draft(model, target=target, target_tokenizer=ours, tokenizer=theirs), ours, theirs


def logits_of(model: CausalLM, token_ids: list[int]) -> torch.Tensor:
    ids = np.array([token_ids], np.int64)
    return model.forward(ids, np.arange(len(token_ids))[None], None, None)[0]


# Vocabularies


def test_equal_vocabularies_are_read_and_written_as_they_are(target):
    draft = draft_of(target)
    logits = torch.randn(3, VOCAB)
    assert draft.to_target(logits) is logits
    assert draft.to_target(logits[0]).data_ptr() == logits.data_ptr()
    assert draft.to_draft([5, 96, 5]) == [5, 96, 5]
    assert draft.to_draft([]) == []
    assert [draft.draft_token(each) for each in (0, 96)] == [0, 96]
    assert draft.target_vocab_size == draft.num_proposable == VOCAB


def test_bfloat16_logits_become_float32(target):
    draft = draft_of(target)
    assert draft.to_target(torch.randn(VOCAB, dtype=torch.bfloat16)).dtype == torch.float32
    assert trim_head(draft, [4]).to_target(torch.randn(1, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("size", [291, 309])
def test_padded_vocabularies_are_cut_or_filled_up(size):
    tokenizer = train_tokenizer([TEXT], 265)  # whatever its size: padding has no tokens
    target = CausalLM(build_model(vocab_size=300))
    model = build_model(vocab_size=size)
    draft = load_draft(model, target=target, target_tokenizer=tokenizer, tokenizer=tokenizer)
    logits = torch.randn(2, draft.model.vocab_size)
    found = draft.to_target(logits)
    common = min(300, draft.model.vocab_size)
    assert found.shape == (2, 300)
    assert found[:, :common].equal(logits[:, :common])
    assert (found[:, common:] == INFINITE).all()
    assert draft.to_draft([3, 299]) == ([3, 299] if common == 300 else [3])
    assert draft.draft_token(299) == (299 if common == 300 else None)


def test_the_law_is_that_over_shared_tokens(strangers):
    draft, ours, theirs = strangers
    logits = torch.randn(2, 2, len(theirs))
    found = draft.to_target(logits)
    assert found.shape == (2, 2, len(ours))
    for target_id in range(len(ours)):
        draft_id = draft.draft_token(target_id)
        if draft_id is None:
            assert (found[..., target_id] == INFINITE).all()
        else:
            assert ours.convert_ids_to_tokens(target_id) == theirs.convert_ids_to_tokens(draft_id)
            assert found[..., target_id].equal(logits[..., draft_id])
    assert found.isfinite().sum(-1).unique().tolist() == [draft.num_proposable]
    assert found.softmax(-1).sum(-1).allclose(torch.ones(2, 2))


def test_every_proposable_token_can_be_read(strangers):
    draft, ours, theirs = strangers
    proposable = draft.to_target(torch.zeros(len(theirs))).isfinite()
    for target_id in range(len(ours)):
        assert bool(proposable[target_id]) == (draft.draft_token(target_id) is not None)
    assert theirs.decode(draft.to_draft(ours.encode(TEXT))) == TEXT


# A smaller head


@given(kept=st.sets(st.integers(0, VOCAB - 1), min_size=1))
def test_a_trimmed_head_gives_the_same_logits_for_what_it_keeps(targets, kept):
    draft = draft_of(targets())
    trimmed = trim_head(draft, kept)
    whole = draft.to_target(logits_of(draft.model, [5, 6, 7]))
    found = trimmed.to_target(logits_of(trimmed.model, [5, 6, 7]))
    rows = sorted(kept)
    assert found[:, rows].allclose(whole[:, rows], atol=1e-5)
    others = [each for each in range(VOCAB) if each not in kept]
    assert (found[:, others] == INFINITE).all()
    assert (found.softmax(-1)[:, others] == 0).all()
    assert trimmed.num_proposable == len(kept)
    assert trimmed.to_draft([5, 96]) == [5, 96]
    assert trimmed.draft_token(96) == 96


def test_a_trimmed_head_maps_into_another_vocabulary(strangers):
    draft, ours, theirs = strangers
    kept = [each for each in range(len(theirs)) if each % 3]
    trimmed = trim_head(draft, kept)
    ids = draft.to_draft(ours.encode("the miller"))
    whole = draft.to_target(logits_of(draft.model, ids))
    found = trimmed.to_target(logits_of(trimmed.model, ids))
    shared = {draft.draft_token(each): each for each in range(len(ours))}
    expected = sorted(shared[each] for each in kept if each in shared)
    assert np.flatnonzero(found[0].isfinite()).tolist() == expected
    assert found[:, expected].allclose(whole[:, expected], atol=1e-5)


def test_a_head_can_be_trimmed_again(target):
    draft = draft_of(target)
    twice = trim_head(trim_head(draft, range(40)), [7, 3])
    logits = torch.tensor([1.0, 2.0])
    found = twice.to_target(logits)
    assert (found[3], found[7]) == (1, 2)
    with pytest.raises(ConfigError, match="no token 41 in its head"):
        trim_head(trim_head(draft, range(40)), [41])


@given(seed=st.integers(0, 2**32 - 1))
def test_what_trimming_costs_is_at_most_what_is_left_out(seed):
    rng = np.random.default_rng(seed)
    target_law, draft_law = rng.dirichlet(np.full(12, 0.4), 2)
    kept = rng.permutation(12)[: rng.integers(1, 12)]
    draft = DraftLM(CausalLM(build_model(vocab_size=12)), VocabularyMap(12, 12))
    trimmed = trim_head(draft, kept.tolist())
    columns = torch.from_numpy(np.log(draft_law[np.sort(kept)] + 1e-300))
    trimmed_law = trimmed.to_target(columns).double().softmax(-1).numpy()
    lost = np.minimum(target_law, draft_law).sum() - np.minimum(target_law, trimmed_law).sum()
    outside = np.setdiff1d(np.arange(12), kept)
    assert lost <= target_law[outside].sum() + 1e-6


@pytest.mark.parametrize("is_tied", [True, False])
def test_trimming_leaves_the_model_as_it_was(target, is_tied):
    model = build_model(tie_word_embeddings=is_tied)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    draft = draft_of(target, model)
    trimmed = trim_head(draft, [1, 2, 3])
    assert trimmed.model.vocab_size == 3
    assert draft.model.forward.model is model
    assert model.lm_head.out_features == VOCAB
    assert all(model.state_dict()[name].equal(tensor) for name, tensor in before.items())
    small = trimmed.model.forward.model
    assert small.get_input_embeddings().weight is model.get_input_embeddings().weight
    assert small.get_input_embeddings().num_embeddings == VOCAB


def test_a_packed_head_can_be_trimmed(target):
    draft = draft_of(target)
    expected = logits_of(draft.model, [5, 6])[:, [4, 9]]
    pack_linears(draft.model.forward.model)
    trimmed = trim_head(draft, [9, 4])
    assert logits_of(trimmed.model, [5, 6]).allclose(expected, atol=1e-4)


def test_a_bias_is_trimmed_too(target):
    draft = draft_of(target)
    head = draft.model.forward.model.lm_head
    head.bias = torch.nn.Parameter(torch.randn(VOCAB))
    trimmed = trim_head(draft, [9, 4])
    expected = logits_of(draft.model, [5, 6])[:, [4, 9]]
    assert logits_of(trimmed.model, [5, 6]).allclose(expected, atol=1e-5)


def test_nothing_to_propose_is_refused(target, strangers):
    with pytest.raises(ConfigError, match="none of the 0 tokens"):
        trim_head(draft_of(target), [])
    draft, ours, theirs = strangers
    shared = {draft.draft_token(each) for each in range(len(ours))}
    unshared = [each for each in range(len(theirs)) if each not in shared]
    with pytest.raises(ConfigError, match=rf"none of the {len(unshared)} tokens"):
        trim_head(draft, unshared)


def test_a_head_that_is_no_linear_layer_is_refused(target):
    model = build_model()
    model.lm_head = torch.nn.Sequential(model.lm_head)
    model.lm_head.weight = model.lm_head[0].weight
    with pytest.raises(ModelError, match="no linear head"):
        trim_head(draft_of(target, model), [1])


# Exits

STACKS = ["llama", "qwen3", "gemma2", "gpt2", "gpt-neox", "mistral-sliding", "mixtral-moe", "olmo2"]


@pytest.mark.parametrize("name", STACKS)
def test_an_exit_is_norm_and_head_after_the_first_layers(target, name):
    model = build_model(name, dtype=torch.float64 if name != "mixtral-moe" else torch.float32)
    model.config.hasten_exits = [1]
    early = draft_of(target, model).at_exit(1)
    ids = [5, 6, 7, 8, 9]
    caught: list[torch.Tensor] = []
    norm = next(
        module
        for path, module in model.named_modules()
        if path.count(".") == 1 and "norm" in type(module).__name__.lower()
    )
    layers = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    hook = layers[0].register_forward_hook(lambda *found: caught.append(found[2]))
    model(torch.tensor([ids]), use_cache=False)
    hook.remove()
    hidden = caught[0][0] if isinstance(caught[0], tuple) else caught[0]
    expected = model.get_output_embeddings()(norm(hidden))
    cap = getattr(model.config, "final_logit_softcapping", None)
    expected = torch.tanh(expected / cap) * cap if cap else expected
    assert logits_of(early.model, ids).allclose(expected[0], atol=1e-6)


def test_an_exit_shares_all_weights_and_leaves_the_draft_alone(target):
    model = build_model(num_hidden_layers=4)
    model.config.hasten_exits = [2, 1]
    draft = draft_of(target, model)
    assert draft.exits == (1, 2, 4)
    before = logits_of(draft.model, [5, 6])
    early = draft.at_exit(2)
    assert early is draft.at_exit(2)
    assert draft.at_exit(4) is draft
    assert early.exits == (1, 2)
    assert early.at_exit(1).exits == (1,)
    small = early.model.forward.model
    assert len(small.model.layers) == 2
    theirs = dict(model.named_parameters())
    assert all(parameter is theirs[name] for name, parameter in small.named_parameters())
    assert len(model.model.layers) == model.config.num_hidden_layers == 4
    assert small.config.num_hidden_layers == 2
    assert logits_of(draft.model, [5, 6]).equal(before)
    assert early.name == f"{draft.name}@2"


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_the_probe_finds_an_exit_fit_for_trees(target, name):
    model = build_model(name)
    model.config.hasten_exits = [1]
    early = draft_of(target, model).at_exit(1)
    assert early.model.probe.mode == "tree"


def test_layer_lists_of_the_config_are_cut(target):
    model = build_model("gemma2")
    model.config.hasten_exits = [1]
    early = draft_of(target, model).at_exit(1).model.forward.model
    assert early.config.layer_types == ["sliding_attention"]
    assert early.model.layers[0].self_attn.config is early.config
    assert model.config.layer_types == ["sliding_attention", "full_attention"]


def test_exits_of_a_trimmed_and_packed_draft(target):
    model = build_model()
    model.config.hasten_exits = [1]
    draft = draft_of(target, model)
    expected = draft.at_exit(1).to_target(logits_of(draft.at_exit(1).model, [5, 6]))[:, [3, 8]]
    trimmed = trim_head(draft, [3, 8])
    pack_linears(trimmed.model.forward.model)
    early = trimmed.at_exit(1)
    found = early.to_target(logits_of(early.model, [5, 6]))
    assert found.isfinite().sum(-1).tolist() == [2, 2]
    assert found[:, [3, 8]].allclose(expected, atol=1e-4)


def test_without_exits_only_all_layers_will_do(target):
    draft = draft_of(target)
    assert draft.exits == (2,)
    with pytest.raises(ConfigError, match=r"after 1 layers; choose one of 2"):
        draft.at_exit(1)


@pytest.mark.parametrize("exits", [[0], [3], "2", [1.0], [True], {"1": 1}])
def test_exits_that_cannot_be_are_refused(target, exits):
    model = build_model()
    model.config.hasten_exits = exits
    with pytest.raises(ModelError, match=r"hasten_exits=.*1 to 2"):
        draft_of(target, model)


def test_a_model_whose_layers_are_not_found_says_so(target):
    model = build_model()
    model.config.hasten_exits = [1]
    norm, model.model.norm = model.model.norm, torch.nn.Identity()
    with pytest.raises(ModelError, match="no norm after its layers"):
        draft_of(target, model).at_exit(1)
    model.model.norm = norm
    model.model.others = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()])
    with pytest.raises(ModelError, match="has 2 lists of 2 layers"):
        draft_of(target, model).at_exit(1)


def test_lists_inside_a_layer_are_not_taken_for_the_layers(target):
    model = build_model()
    model.config.hasten_exits = [1]
    model.model.layers[0].experts = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()])
    early = draft_of(target, model).at_exit(1)
    assert len(early.model.forward.model.model.layers) == 1
