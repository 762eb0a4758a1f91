"""GGUF files: every weight of the model under llama.cpp's name, in its order, and the tokenizer's words."""

from __future__ import annotations

import builtins

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from conftest import build_model
from hasten.bench.shapes import embed_in_shape
from hasten.errors import ConfigError, MissingExtra, ModelError, StoreError
from hasten.models.bundled_models import bundled_path
from hasten.models.forwards.packed import PackedLinear, can_pack, pack_linears
from hasten.models.llamacpp.export import export_gguf
from hasten.models.loading import load_pretrained


@pytest.fixture(scope="module")
def demo():
    return load_pretrained("demo", "auto", "cpu")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(bundled_path("demo"))


def read(path):
    """(metadata, tensors) of a file; tensors as float32."""
    reader = gguf.GGUFReader(path)
    tensors = {
        each.name: gguf.dequantize(each.data, each.tensor_type).reshape(each.shape[::-1])
        for each in reader.tensors
    }
    return {name: field.contents() for name, field in reader.fields.items()}, tensors


def interleaved(values, num_heads):
    """Row by row, unlike in the code."""
    size = len(values) // num_heads
    order = [
        head * size + half * (size // 2) + pair
        for head in range(num_heads)
        for pair in range(size // 2)
        for half in range(2)
    ]
    return values[order]


def test_a_file_holds_every_weight_of_the_model_unrounded(tmp_path):
    model = build_model("llama", attention_bias=True)
    assert export_gguf(model, None, tmp_path / "m.gguf") == {"F32": len(model.state_dict())}
    _, tensors = read(tmp_path / "m.gguf")
    weights = {name: values.numpy() for name, values in model.state_dict().items()}
    layer = "model.layers.1"
    expected = {
        "token_embd.weight": weights["model.embed_tokens.weight"],
        "output.weight": weights["lm_head.weight"],
        "output_norm.weight": weights["model.norm.weight"],
        "blk.1.attn_norm.weight": weights[f"{layer}.input_layernorm.weight"],
        "blk.1.ffn_norm.weight": weights[f"{layer}.post_attention_layernorm.weight"],
        "blk.1.attn_q.weight": interleaved(weights[f"{layer}.self_attn.q_proj.weight"], 4),
        "blk.1.attn_q.bias": interleaved(weights[f"{layer}.self_attn.q_proj.bias"], 4),
        "blk.1.attn_k.weight": interleaved(weights[f"{layer}.self_attn.k_proj.weight"], 2),
        "blk.1.attn_v.weight": weights[f"{layer}.self_attn.v_proj.weight"],
        "blk.1.attn_output.weight": weights[f"{layer}.self_attn.o_proj.weight"],
        "blk.1.ffn_gate.weight": weights[f"{layer}.mlp.gate_proj.weight"],
        "blk.1.ffn_up.weight": weights[f"{layer}.mlp.up_proj.weight"],
        "blk.1.ffn_down.weight": weights[f"{layer}.mlp.down_proj.weight"],
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(tensors[name], values)
    assert len(tensors) == len(weights)


def test_settings_and_tokenizer_are_those_of_the_model(demo, tmp_path):
    model, tokenizer = demo
    export_gguf(model, tokenizer, tmp_path / "m.gguf")
    metadata, tensors = read(tmp_path / "m.gguf")
    assert metadata["general.architecture"] == "llama"
    assert metadata["llama.block_count"] == 6
    assert metadata["llama.attention.head_count_kv"] == 2
    assert metadata["llama.attention.key_length"] == 64
    assert metadata["llama.context_length"] == 2048
    assert metadata["llama.rope.freq_base"] == 10000
    assert metadata["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert metadata["tokenizer.ggml.model"] == "gpt2"
    assert metadata["tokenizer.ggml.pre"] == "gpt-2"
    tokens = metadata["tokenizer.ggml.tokens"]
    assert {token: index for index, token in enumerate(tokens)} == tokenizer.get_vocab()
    assert metadata["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1]
    assert metadata["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert metadata["tokenizer.ggml.add_bos_token"] is False
    assert "output.weight" not in tensors  # tied


@pytest.mark.parametrize(
    ("dtype", "kind", "tolerance"),
    [("float32", "F32", 0), ("bfloat16", "BF16", 0), ("float16", "F16", 1e-3), ("q8_0", "Q8_0", 1e-2)],
)
def test_matrices_take_the_type_asked_for_and_vectors_stay_float32(demo, tmp_path, dtype, kind, tolerance):
    model, tokenizer = demo
    counts = export_gguf(model, tokenizer, tmp_path / "m.gguf", dtype=dtype)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    kinds = {each.name: each.tensor_type.name for each in reader.tensors}
    assert kinds["output_norm.weight"] == "F32"
    assert kinds["blk.0.ffn_up.weight"] == kinds["token_embd.weight"] == kind
    assert counts == {name: list(kinds.values()).count(name) for name in set(kinds.values())}
    weight = model.model.layers[0].mlp.up_proj.weight.detach().float().numpy()
    found = read(tmp_path / "m.gguf")[1]["blk.0.ffn_up.weight"]
    assert np.abs(found - weight).max() <= tolerance * np.abs(weight).max()


def test_rows_that_are_no_whole_blocks_stay_in_float16(tmp_path):
    counts = export_gguf(build_model("llama", hidden_size=48), None, tmp_path / "m.gguf", dtype="q8_0")
    assert counts["F16"] > 0
    assert counts["Q8_0"] > 0  # the projections down, whose rows are 64 long


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_architectures_that_turn_halves_keep_their_rows(tmp_path, name):
    model = build_model(name)
    export_gguf(model, None, tmp_path / "m.gguf")
    metadata, tensors = read(tmp_path / "m.gguf")
    assert metadata["general.architecture"] == name
    expected = model.model.layers[0].self_attn.q_proj.weight.detach().numpy()
    np.testing.assert_array_equal(tensors["blk.0.attn_q.weight"], expected)
    assert ("blk.0.attn_q_norm.weight" in tensors) == (name == "qwen3")
    assert ("blk.0.attn_q.bias" in tensors) == (name == "qwen2")


def test_scaled_rotations_come_as_factors(tmp_path):
    scaling = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}
    export_gguf(build_model("llama", rope_parameters=scaling), None, tmp_path / "m.gguf")
    metadata, tensors = read(tmp_path / "m.gguf")
    assert metadata["llama.rope.freq_base"] == 5000
    np.testing.assert_allclose(tensors["rope_freqs.weight"], 4.0, rtol=1e-6)


def test_a_model_in_a_shape_can_be_written(demo, tmp_path):
    big = embed_in_shape(demo[0], "135m")
    export_gguf(big, demo[1], tmp_path / "m.gguf", dtype="q8_0")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert reader.get_field("llama.block_count").contents() == 30


def test_what_cannot_be_written_is_refused(demo, tmp_path):
    model, tokenizer = demo
    path = tmp_path / "m.gguf"
    with pytest.raises(ConfigError, match="q4_k"):
        export_gguf(model, tokenizer, path, dtype="q4_k")
    with pytest.raises(ModelError, match="GPT2LMHeadModel"):
        export_gguf(build_model("gpt2"), None, path)
    with pytest.raises(ModelError, match="sliding windows"):
        export_gguf(build_model("mistral-sliding"), None, path)
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    with pytest.raises(ModelError, match="dynamic"):
        export_gguf(build_model("llama", rope_parameters=scaling), None, path)
    with pytest.raises(ModelError, match="hidden_act='gelu'"):
        export_gguf(build_model("llama", hidden_act="gelu"), None, path)
    without = build_model("llama")
    without.model.layers[1].mlp.up_proj = torch.nn.Identity()
    with pytest.raises(ModelError, match="layer 1 of LlamaForCausalLM has no weights for 'ffn_up'"):
        export_gguf(without, None, path)
    assert not path.exists()


def test_packed_layers_are_written_as_what_they_stand_for(tmp_path):
    model = build_model("llama", attention_bias=True)
    export_gguf(model, None, tmp_path / "stock.gguf")
    if not can_pack(model.lm_head):
        pytest.skip("oneDNN packs no float32 layers here")
    pack_linears(model)
    assert isinstance(model.model.layers[1].mlp.up_proj, PackedLinear)
    export_gguf(model, None, tmp_path / "packed.gguf")
    assert (tmp_path / "packed.gguf").read_bytes() == (tmp_path / "stock.gguf").read_bytes()


def test_a_tokenizer_that_llama_cpp_would_read_differently_is_refused(demo, tokenizer, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    other = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    other.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with pytest.raises(ModelError, match="Punctuation then bytes"):
        export_gguf(demo[0], PreTrainedTokenizerFast(tokenizer_object=other), tmp_path / "m.gguf")
    unigram = Tokenizer(models.Unigram([("a", -1.0), ("b", -2.0)], unk_id=0))
    with pytest.raises(ModelError, match="not byte-level BPE"):
        export_gguf(demo[0], PreTrainedTokenizerFast(tokenizer_object=unigram), tmp_path / "m.gguf")


def test_an_older_file_stays_when_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"older")

    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full_disk)
    with pytest.raises(StoreError, match="no space left"):
        export_gguf(build_model("llama"), None, path)
    assert path.read_bytes() == b"older"
    assert [each.name for each in tmp_path.iterdir()] == ["m.gguf"]


def test_without_the_package_the_remedy_is_named(tmp_path, monkeypatch):
    plain_import = builtins.__import__

    def no_gguf(name, *arguments, **options):
        if name == "gguf":
            raise ImportError(name)
        return plain_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", no_gguf)
    with pytest.raises(MissingExtra, match="pip install gguf"):
        export_gguf(build_model("llama", torch.float32), None, tmp_path / "m.gguf")
