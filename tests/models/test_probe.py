"""The probe finds what a model can verify, and trusts no name."""

from __future__ import annotations

import copy
import importlib.util
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import ARCHITECTURES, BASE, build_model
from hasten.core import SamplingParams
from hasten.errors import ConfigError, ModelError
from hasten.models.causal_lm import CausalLM
from hasten.models.forwards.full_precision import FullPrecision
from hasten.models.probe import SESSIONS, probe
from hasten.models.sessions.attention import AttentionKinds
from hasten.text.engine import LanguageModel
from small_architectures import build

GREEDY = SamplingParams(max_new_tokens=12, ignore_eos=True)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_gets_its_best_mode(targets, name):
    found = targets(name).probe
    assert found.mode == ARCHITECTURES[name][2]
    assert found.noise < 1e-3
    assert np.isfinite(found.noise)
    better = list(SESSIONS)[: list(SESSIONS).index(found.mode)]
    assert list(found.rejected) == better
    assert all(found.rejected.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_mode_does_not_depend_on_the_dtype(targets, dtype):
    for name in ("llama", "gemma3", "gpt2", "mpt-alibi", "lfm2-hybrid", "mamba-recurrent"):
        assert CausalLM(build_model(name, dtype)).probe.mode == ARCHITECTURES[name][2]


def test_a_model_that_ignores_the_mask_is_not_given_trees():
    model = build_model()
    stock = model.forward

    def causal_only(input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, **kwargs):
        return stock(input_ids, None, position_ids, past_key_values, **kwargs)

    model.forward = causal_only
    found = CausalLM(model).probe
    assert found.mode == "chain"
    assert "logits differ" in found.rejected["tree"]


def test_a_model_that_ignores_positions_is_not_given_trees():
    model = build_model()
    stock = model.forward

    def own_positions(input_ids=None, attention_mask=None, past_key_values=None, **kwargs):
        return stock(input_ids, attention_mask, None, past_key_values, **kwargs)

    model.forward = own_positions
    assert CausalLM(model).probe.mode == "chain"


def test_a_window_that_no_mask_expresses_is_found_however_long_it_is():
    """GPT-Neo counts its local window in cache slots, which holes would shift."""
    assert CausalLM(build_model("gpt-neo-local", window_size=64)).probe.mode == "chain"


def test_a_window_that_is_forgotten_in_the_mask_would_be_found(monkeypatch):
    monkeypatch.setattr(AttentionKinds, "of", classmethod(lambda cls, config: cls({"full_attention": None})))
    found = CausalLM(build_model("mistral-sliding")).probe
    assert "tree" in found.rejected


def test_a_mode_can_be_given_instead_of_probing():
    target = CausalLM(build_model(), mode="chain")
    assert target.probe.mode == "chain"
    with pytest.raises(ConfigError, match=r"mode='trees'.*chain"):
        CausalLM(build_model(), mode="trees")


def test_what_is_not_a_causal_model_is_refused():
    with pytest.raises(ModelError, match="not a causal language model"):
        CausalLM(build_model().model)


def test_a_model_that_keeps_state_in_its_modules_gets_no_cache():
    """RecurrentGemma: the state that a pass leaves is the last row's, and the last text's."""
    found = CausalLM(build("recurrent_gemma")).probe
    assert found.mode == "recompute"
    assert all(
        "logits differ" in why for mode, why in found.rejected.items() if mode not in ("tree", "chain")
    )


def test_a_model_that_sees_what_is_to_come_is_refused():
    with pytest.raises(
        ModelError, match=r"XLNet.* gives other logits .*differ over a fork by .*own generate"
    ):
        CausalLM(build("xlnet")).probe  # noqa: B018


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [6, 40])
def test_a_model_whose_own_cache_forgets_what_its_passes_see_is_refused(window, dtype):
    """Found by trying, whatever it is called: Llama makes its masks without windows, as Moshi does."""
    for model in (build("moshi", sliding_window=window), build_model("llama", sliding_window=window)):
        with pytest.raises(ModelError, match=rf"window of {window} tokens, .* `generate` forgets .*own gen"):
            CausalLM(model.to(dtype)).probe  # noqa: B018
    heeding = build_model("mistral-sliding", dtype, sliding_window=window)
    assert CausalLM(heeding).probe.mode == "tree"


def test_a_window_that_no_text_goes_beyond_is_no_contradiction():
    """The published Moshi has 3000 positions and a window of 3000 tokens."""
    model = build_model("llama", sliding_window=64, max_position_embeddings=64)
    lm = LanguageModel(CausalLM(model), drafter="suffix")
    written = lm.generate([5, 6, 7], SamplingParams(max_new_tokens=61, ignore_eos=True)).token_ids
    input_ids = torch.tensor([[5, 6, 7]])
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = model.generate(input_ids, max_new_tokens=61, **options)[0, 3:].tolist()
    assert written == expected


def test_a_model_whose_trees_give_nan_is_not_given_trees():
    model = build_model()
    stock = model.forward

    def nan_for_forks(input_ids=None, attention_mask=None, **kwargs):
        output = stock(input_ids, attention_mask, **kwargs)
        if attention_mask is not None and output.logits.shape[1] == 6:
            output.logits[0, 4] = torch.nan
        return output

    nan_for_forks.__signature__ = inspect.signature(stock)
    model.forward = nan_for_forks
    found = CausalLM(model).probe
    assert found.mode == "chain"
    assert "nan" in found.rejected["tree"]


def test_a_model_that_gives_nan_for_some_tokens_writes_its_text_without_drafts(caplog):
    """A comparison with NaN says nothing of trees, for or against; texts without such tokens are right."""
    model, prompt = build_model(), [5, 9, 13, 22, 5, 9]
    expected = LanguageModel(CausalLM(model), drafter="off").generate(prompt, GREEDY).token_ids
    broken = copy.deepcopy(model)
    with torch.no_grad():
        unused = sorted(set(range(BASE["vocab_size"])) - {*prompt, *expected})
        broken.get_input_embeddings().weight[unused] = torch.nan
    lm = LanguageModel(CausalLM(broken), drafter="auto")
    assert lm.generate(prompt, GREEDY).token_ids == expected
    found = lm.target.probe
    assert found.mode == "recompute"
    assert list(found.rejected) == list(SESSIONS)[:-1]
    assert all("NaN" in why and "check its weights" in why for why in found.rejected.values())
    assert "nothing can be drafted: plain passes give NaN" in caplog.text


def _faults():
    path = Path(__file__).parents[2] / "bench" / "probe_errors.py"
    spec = importlib.util.spec_from_file_location("probe_errors", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.FAULTS


FAULTS = _faults()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_single_wrong_bits_of_a_mask_are_found(name, dtype):
    """bench/probe_errors.py does the same on real shapes. The window is longer than what is tried."""
    forward = CausalLM(
        build_model(name, dtype, **({"sliding_window": 512} if name == "gemma3" else {}))
    ).forward
    assert probe(forward).mode == "tree"
    for fault, start in FAULTS.items():
        if "window" not in fault or name == "gemma3":
            found = probe(forward, sessions={"tree": start})
            assert found.mode == "recompute", fault
            assert "of what a wrong token changes" in found.rejected["tree"]


def test_rounding_alone_would_hide_a_visible_sibling(monkeypatch):
    """Without passes in float32, one has to allow so much that a fault passes."""
    forward = CausalLM(build_model("llama", torch.bfloat16)).forward
    monkeypatch.setattr(type(forward), "runs_modules", False)
    assert probe(forward, sessions={"tree": FAULTS["one sibling visible"]}).mode == "tree"


@pytest.mark.parametrize("rows", [1, 2])
def test_a_state_that_is_kept_in_modules_is_found(rows):
    """Such a model is right as long as one text is written at a time."""
    model = build_model()
    stock, state = model.forward, [0]

    def counting(input_ids=None, attention_mask=None, past_key_values=None, **kwargs):
        is_new = past_key_values is None or past_key_values.get_seq_length() == 0
        output = stock(input_ids, attention_mask, past_key_values=past_key_values, **kwargs)
        sums = input_ids.cumsum(-1)[..., -output.logits.shape[1] :] + (0 if is_new else state[0])
        if past_key_values is not None:
            state[0] = sums[0, -1]
        output.logits[..., 0] += sums / 7.0
        return output

    counting.__signature__ = inspect.signature(stock)
    model.forward = counting
    found = probe(CausalLM(model).forward, num_rows=rows)
    assert found.mode == "recompute"
    assert "another session" in found.rejected["off"] or rows == 2


@torch.inference_mode()
def test_passes_in_full_precision_are_those_of_the_model_in_float32():
    rounded = build_model("gemma2", torch.bfloat16)
    precise = copy.deepcopy(rounded).float()
    tokens = torch.tensor([[5, 6, 7, 8]])
    expected = precise(tokens).logits
    with FullPrecision():
        found = rounded(tokens).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (rounded(tokens).logits.float() - expected).abs().max() > 1e-3
    assert all(parameter.dtype is torch.bfloat16 for parameter in rounded.parameters())
