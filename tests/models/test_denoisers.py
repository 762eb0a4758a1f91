"""From a folder to a denoiser: published layouts compute what they did, and what cannot be read says why."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from conftest import build_model
from denoiser_checkpoints import (
    BD3LM,
    CHAT_END,
    DREAM,
    END,
    LLADA,
    MASK,
    MDLM,
    SDAR,
    TURN_END,
    VOCAB,
    in_blocks,
    llada_logits,
    llada_weights,
    mdlm_logits,
    mdlm_weights,
    qwen_logits,
    qwen_weights,
    write_checkpoint,
    write_layout,
    write_tokenizer,
)
from hasten.diffusion.canvas import SPEC_FILE, DenoiserSpec, Query
from hasten.diffusion.denoisers.loading import FAMILIES, load_denoiser
from hasten.errors import ConfigError, ModelError
from hasten.models.checkpoints import DENOISERS, is_denoiser
from hasten.models.weights import INDEX_FILE, WEIGHTS_FILE

TEXT = np.array([7, 30, MASK, 99, MASK, MASK, 12, 250, MASK, 5, 40])


def logits_of(denoiser: Any, text: Any = TEXT) -> Tensor:
    """[tokens, vocab] of a canvas, all positions wanted."""
    text = np.asarray(text)
    [found] = denoiser.open([len(text)], keeps_rows=False).forward(
        [Query(sequence=0, token_ids=text, wanted=np.arange(len(text)))]
    )
    return found.logits


def assert_same(found: Tensor, expected: Tensor, mask_id: int = MASK) -> None:
    assert torch.isneginf(found[:, mask_id]).all()
    kept = torch.arange(expected.shape[1]) != mask_id
    torch.testing.assert_close(found[:, kept], expected[:, kept].to(found.dtype), atol=2e-4, rtol=2e-4)
    assert expected.std() > 0.1  # a wrong layout would show


@pytest.fixture
def load() -> Any:
    return lambda folder, **options: load_denoiser(str(folder), "float32", "cpu", **options)


@pytest.mark.parametrize("changes", [{}, {"n_kv_heads": 2}, {"weight_tying": True}], ids=str)
def test_llada_computes_what_it_did(tmp_path, load, changes):
    config = {**LLADA, **changes}
    weights = llada_weights(config)
    denoiser, _ = load(write_checkpoint(tmp_path, config, weights))
    assert_same(logits_of(denoiser), llada_logits(weights, config, torch.from_numpy(TEXT)))


def test_rows_after_the_vocabulary_are_predicted_like_others(tmp_path, load):
    config = {**LLADA, "embedding_size": VOCAB + 8}
    weights = llada_weights(config)
    denoiser, _ = load(write_checkpoint(tmp_path, config, weights))
    assert denoiser.vocab_size == VOCAB + 8
    assert_same(logits_of(denoiser), llada_logits(weights, config, torch.from_numpy(TEXT)))


def test_dream_predicts_a_position_from_the_one_before(tmp_path, load):
    weights = qwen_weights(DREAM, has_bias=True)
    denoiser, _ = load(write_checkpoint(tmp_path, DREAM, weights, "vocabulary"))
    expected = qwen_logits(weights, DREAM, torch.from_numpy(TEXT))
    assert denoiser.spec.logits_shift == 1
    assert_same(logits_of(denoiser), torch.cat([expected[:1], expected[:-1]]))


def test_sdar_looks_both_ways_in_its_blocks_only(tmp_path, load):
    weights = qwen_weights(SDAR, has_bias=False)
    denoiser, _ = load(write_checkpoint(tmp_path, SDAR, weights))
    expected = qwen_logits(weights, SDAR, torch.from_numpy(TEXT), in_blocks(len(TEXT), 4))
    assert (denoiser.spec.attention, denoiser.spec.block_size) == ("block-causal", 4)
    assert_same(logits_of(denoiser), expected)


@pytest.mark.parametrize("size", [None, 3])
def test_tiny_a2d_looks_as_its_user_says(tmp_path, load, size):
    config = {**SDAR, "model_type": "a2d-qwen3", "architectures": ["A2DQwen3LMHeadModel"]}
    del config["block_size"]
    weights = qwen_weights(config, has_bias=False)
    write_checkpoint(tmp_path, config, weights)
    spec = None if size is None else f"attention=block-causal,block_size={size}"
    denoiser, _ = load(tmp_path, spec=spec)
    seen = None if size is None else in_blocks(len(TEXT), size)
    assert_same(logits_of(denoiser), qwen_logits(weights, config, torch.from_numpy(TEXT), seen))


def test_mdlm_computes_what_it_did_at_noise_level_0(tmp_path, load):
    weights = mdlm_weights(MDLM)
    denoiser, _ = load(write_checkpoint(tmp_path, MDLM, weights))
    assert denoiser.spec.mask_id == VOCAB - 1  # the token after the tokenizer's
    assert denoiser.max_length == 64
    assert_same(logits_of(denoiser), mdlm_logits(weights, MDLM, torch.from_numpy(TEXT)), VOCAB - 1)


@pytest.mark.parametrize("changes", [{}, {"adaln": False}, {"cross_attn": False}], ids=str)
def test_bd3_lm_computes_what_it_did_in_its_blocks(tmp_path, load, changes):
    config = {**BD3LM, **changes}
    weights = mdlm_weights(config)
    denoiser, _ = load(write_checkpoint(tmp_path, config, weights))
    seen = in_blocks(len(TEXT), 4) if config["cross_attn"] else None
    assert_same(logits_of(denoiser), mdlm_logits(weights, config, torch.from_numpy(TEXT), seen), VOCAB - 1)


@pytest.mark.parametrize("name", ["llada", "dream", "sdar", "mdlm", "bd3lm"])
def test_rows_that_are_kept_change_nothing(tmp_path, load, name):
    denoiser, _ = load(write_layout(tmp_path, name))
    text, mask_id = TEXT.copy(), denoiser.spec.mask_id
    text[text == MASK] = mask_id
    session = denoiser.open([len(text)], keeps_rows=True)
    everything = np.arange(len(text))
    session.forward([Query(sequence=0, token_ids=text, wanted=everything, stores=True)])
    some = np.arange(3, 9)
    [again] = session.forward([Query(sequence=0, token_ids=text, wanted=some[1:], computed=some)])
    torch.testing.assert_close(again.logits, logits_of(denoiser, text)[4:9], atol=1e-4, rtol=1e-4)


def test_ends_of_texts_come_from_configs_and_tokenizer(tmp_path, load):
    write_layout(tmp_path, "dream")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 256]}')
    spec = load(tmp_path)[0].spec
    assert spec.eos_ids == (3, END, CHAT_END)
    assert spec.pad_id == END


def test_the_end_of_a_turn_ends_a_text_of_llada(tmp_path, load):
    assert load(write_layout(tmp_path, "llada"))[0].spec.eos_ids == (END, TURN_END)


def test_a_tokenizer_is_read_without_the_code_of_its_repository(tmp_path, load):
    _, tokenizer = load(write_layout(tmp_path, "dream"))
    assert tokenizer.decode(tokenizer("a <|mask|>")["input_ids"]) == "a <|mask|>"
    assert MASK in tokenizer("a <|mask|>")["input_ids"]


def test_the_mask_is_asked_of_the_tokenizer_last(tmp_path, load):
    write_layout(tmp_path, "llada", mask_token_id=None)
    assert load(tmp_path)[0].spec.mask_id == MASK  # by its usual name
    write_tokenizer(tmp_path, mask_token="<|im_end|>")
    assert load(tmp_path)[0].spec.mask_id == CHAT_END
    assert load(tmp_path, spec="mask_id=77")[0].spec.mask_id == 77


def test_our_own_folders_load_with_their_spec(tmp_path, load):
    denoiser, tokenizer = load(write_layout(tmp_path, "llada"))
    ours = tmp_path / "ours"
    denoiser.model.save_pretrained(ours)
    tokenizer.save_pretrained(ours)
    spec = DenoiserSpec(mask_id=MASK, eos_ids=(END,), pad_id=3)
    spec.save(ours)
    saved = json.loads((ours / "config.json").read_text())
    assert (saved["model_type"], saved["is_causal"]) == ("llama", False)
    again, _ = load(ours)
    assert again.spec == spec
    assert torch.equal(logits_of(again), logits_of(denoiser))
    assert load(ours, spec="pad_id=4")[0].spec.pad_id == 4


def test_a_causal_model_denoises_as_its_user_says(tmp_path, load):
    config = {**SDAR, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    del config["auto_map"], config["attn_implementation"]
    weights = qwen_weights(config, has_bias=False)
    write_checkpoint(tmp_path, config, weights)
    denoiser, _ = load(tmp_path, spec=f"mask_id={MASK},attention=full")
    assert_same(logits_of(denoiser), qwen_logits(weights, config, torch.from_numpy(TEXT)))


def test_weights_in_several_files_are_put_together(tmp_path, load):
    whole = load(write_layout(tmp_path, "llada"))[0]
    weights = load_file(tmp_path / WEIGHTS_FILE)
    names = sorted(weights)
    places = {name: f"part-{number % 2}.safetensors" for number, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: weights[name] for name in names if places[name] == file}, tmp_path / file)
    (tmp_path / WEIGHTS_FILE).unlink()
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": places}))
    assert torch.equal(logits_of(load(tmp_path)[0]), logits_of(whole))
    (tmp_path / "part-1.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no part-1\.safetensors"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["llada", "mdlm"])
def test_every_weight_has_a_place_and_every_place_a_weight(tmp_path, load, name):
    file = write_layout(tmp_path, name) / WEIGHTS_FILE
    weights = load_file(file)
    victim = next(one for one in sorted(weights) if "attn_out" in one)

    save_file({**weights, "extra.bias": torch.ones(3)}, file)
    with pytest.raises(ModelError, match=r"no place for extra\.bias"):
        load(tmp_path)
    save_file({one: weight for one, weight in weights.items() if one != victim}, file)
    with pytest.raises(ModelError, match=r"do not have the weights of .*(o_proj|attn_out)"):
        load(tmp_path)
    save_file({**weights, victim: torch.ones(3, 5)}, file)
    with pytest.raises(ModelError, match=rf"{re.escape(victim)} is \[3, 5\], not \[32, 32\]"):
        load(tmp_path)


def test_other_weight_formats_are_refused(tmp_path, load):
    write_layout(tmp_path, "llada")
    (tmp_path / WEIGHTS_FILE).rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors files only"):
        load(tmp_path)


def test_damaged_weights_say_so(tmp_path, load):
    file = write_layout(tmp_path, "llada") / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot load"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llada", {"include_qkv_bias": True}),
        ("llada", {"rope": False}),
        ("llada", {"scale_logits": True}),
        ("dream", {"use_sliding_window": True}),
        ("mdlm", {"time_conditioning": True}),
        ("bd3lm", {"causal": True}),
    ],
)
def test_variants_that_compute_something_else_are_refused(tmp_path, load, name, changes):
    [(key, value)] = changes.items()
    with pytest.raises(ModelError, match=rf"{key}={value}; only {key}={not value}"):
        load(write_layout(tmp_path, name, **changes))


def test_a_mask_outside_the_vocabulary_is_refused_before_weights_are_read(tmp_path, load):
    write_layout(tmp_path, "llada", mask_token_id=VOCAB)
    (tmp_path / WEIGHTS_FILE).unlink()
    with pytest.raises(ModelError, match=rf"mask_id={VOCAB} is not in the vocabulary of {VOCAB}"):
        load(tmp_path)
    with pytest.raises(ConfigError, match=r"mask_id=9999 is not in the vocabulary.*spec='mask_id="):
        load(tmp_path, spec="mask_id=9999")


def test_a_missing_mask_names_the_remedy(tmp_path, load):
    write_layout(tmp_path, "llada", mask_token_id=None)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["added_tokens_decoder"]["258"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"names a mask token; give spec='mask_id="):
        load(tmp_path)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("attention=block-causal", "block size goes with"),
        ("attention=block-causal,block_size=0", "block_size=0"),
        ("attention=sideways", "attention='sideways'.*choose from full"),
        ("mask=3", "'mask=3' is unknown; choose from"),
        (f"eos_ids={MASK}", "also an end-of-text id"),
    ],
)
def test_a_spec_that_cannot_be_says_why(tmp_path, load, spec, message):
    write_layout(tmp_path, "llada")
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, spec=spec)


def test_an_unknown_layout_lists_the_known_ones_and_the_remedy(tmp_path, load):
    build_model().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"'llama'.*LLaDA, Dream, SDAR.*denoiser_spec.json.*spec='mask_id="):
        load(tmp_path)


def test_a_known_type_with_another_architecture_is_refused(tmp_path, load):
    write_layout(tmp_path, "llada", architectures=["LLaDAMoEModelLM"])
    assert is_denoiser(str(tmp_path))
    with pytest.raises(ModelError, match="LLaDAMoEModelLM"):
        load(tmp_path)


def code_that_leaves_a_trace(folder: Path, config_class: str) -> Path:
    trace = folder / "was-run"
    for module in ("configuration_llada", "modeling_llada"):
        (folder / f"{module}.py").write_text(
            f"from pathlib import Path\nPath({str(trace)!r}).touch()\n"
            f"from transformers import LlamaConfig\n"
            f"class {config_class}(LlamaConfig):\n    model_type = 'llada'\n"
        )
    return trace


def test_known_layouts_never_run_the_code_of_a_repository(tmp_path, load):
    trace = code_that_leaves_a_trace(write_layout(tmp_path, "llada"), "LLaDAConfig")
    load(tmp_path, trust_remote_code=True)
    assert not trace.exists()


def test_code_of_a_repository_is_run_only_where_that_is_allowed(tmp_path, load):
    write_layout(tmp_path, "llada", model_type="llada_of_the_future")
    trace = code_that_leaves_a_trace(tmp_path, "LLaDAConfig")
    with pytest.raises(ModelError, match=r"llada_of_the_future.*not run by default.*trust_remote_code=True"):
        load(tmp_path, spec="mask_id=3")
    assert not trace.exists()


def test_what_a_denoiser_is_is_told_without_its_weights(tmp_path):
    write_layout(tmp_path, "sdar")
    (tmp_path / WEIGHTS_FILE).unlink()
    assert is_denoiser(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "qwen3"}))
    assert not is_denoiser(str(tmp_path))
    assert is_denoiser(str(tmp_path), "mask_id=3")
    DenoiserSpec(mask_id=3).save(tmp_path)
    assert (tmp_path / SPEC_FILE).is_file()
    assert is_denoiser(str(tmp_path))


def test_every_published_type_that_is_read_is_told_by_its_name():
    assert {kind for family in FAMILIES for kind in family.model_types} == DENOISERS


@pytest.fixture
def no_hub(monkeypatch) -> None:
    """A hub that has nothing; nobody is asked."""
    monkeypatch.setattr("hasten.models.checkpoints.cached_file", lambda *arguments, **options: None)


@pytest.mark.parametrize("name", ["demo", "no/such/folder", "/no/such", "owner/not-a-model-there"])
def test_other_models_and_nothing_are_no_denoisers(no_hub, name):
    assert not is_denoiser(name)


@pytest.mark.parametrize("name", ["no/such/folder", "owner/not-a-model-there"])
def test_nothing_there_is_an_error_with_the_name(no_hub, name):
    with pytest.raises(ModelError, match=name):
        load_denoiser(name)


def test_hub_repositories_are_read_like_folders(tmp_path, monkeypatch):
    folder = write_layout(tmp_path, "mdlm")
    (folder / "README.md").touch()
    fetched = []

    def fetch(name: str, allow_patterns: list[str]) -> str:
        fetched.append((name, "*.safetensors" in allow_patterns))
        return str(folder)

    monkeypatch.setattr("hasten.diffusion.denoisers.loading.snapshot_download", fetch)
    monkeypatch.setattr(
        "hasten.models.checkpoints.cached_file",
        lambda name, file, **options: str(folder / file) if (folder / file).is_file() else None,
    )
    assert is_denoiser("someone/mdlm")
    assert not fetched
    denoiser, _ = load_denoiser("someone/mdlm", "float32", "cpu")
    assert fetched == [("someone/mdlm", False), ("someone/mdlm", True)]  # weights last
    assert torch.equal(logits_of(denoiser), logits_of(load_denoiser(str(folder), "float32", "cpu")[0]))


def test_dtype_and_device_are_heeded(tmp_path):
    folder = str(write_layout(tmp_path, "llada", torch_dtype="bfloat16"))
    assert load_denoiser(folder, "auto", "cpu")[0].model.dtype == torch.bfloat16
    assert load_denoiser(folder, "float64", "cpu")[0].model.dtype == torch.float64
    with pytest.raises(ConfigError, match="float16"):
        load_denoiser(folder, "float16", "cpu")
    with pytest.raises(ConfigError, match="cuda:99"):
        load_denoiser(folder, "float32", "cuda:99")


@pytest.mark.parametrize("declared", ["bfloat16", None])
def test_mdlm_keeps_the_dtype_of_its_checkpoint(tmp_path, declared):
    folder = write_layout(tmp_path, "mdlm", torch_dtype=declared)
    expected = torch.float32 if declared is None else torch.bfloat16
    denoiser = load_denoiser(str(folder), "auto", "cpu")[0]
    assert denoiser.model.dtype == expected
    assert logits_of(denoiser).isfinite().any()
