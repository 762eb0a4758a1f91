"""Models that differ from what a fresh checkpoint gives: resized, offloaded, of odd settings, used twice."""

from __future__ import annotations

import itertools
import json
import threading

import numpy as np
import pytest
import torch

import hasten
from conftest import VOCAB, build_model
from hasten.errors import ConfigError, ModelError, PromptError
from hasten.models.causal_lm import CausalLM
from hasten.models.sessions.attention import AttentionKinds, TreeMask
from small_architectures import build

PROMPTS = [[5, 9, 13, 22] * 4, [40], [3, 60, 61, 62, 63, 3, 60]]
PARAMS = hasten.SamplingParams(max_new_tokens=16, ignore_eos=True)


def theirs(model, prompts=PROMPTS):
    return [
        model.generate(
            torch.tensor([prompt]), max_new_tokens=16, do_sample=False, eos_token_id=-1, pad_token_id=0
        )[0, len(prompt) :].tolist()
        for prompt in prompts
    ]


def ours(lm, prompts=PROMPTS, **choices):
    return [output.token_ids for output in lm.generate(prompts, PARAMS, **choices)]


def saved(folder, model, config=None, generation=None):
    """A folder of the model, with changes to its settings."""
    model.save_pretrained(folder)
    for name, values in (("config.json", config), ("generation_config.json", generation)):
        if values:
            file = folder / name
            file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return folder


class TestVocabulary:
    @pytest.mark.parametrize("name", ["llama", "gpt2"])
    def test_a_model_that_grew_before_it_is_loaded(self, name, tmp_path):
        model = build_model(name)
        model.resize_token_embeddings(VOCAB + 7, pad_to_multiple_of=16, mean_resizing=False)
        prompts = [[VOCAB + 3, *prompt] for prompt in PROMPTS]
        expected = theirs(model, prompts)
        assert ours(hasten.load(model), prompts) == expected
        assert ours(hasten.load(saved(tmp_path, model)), prompts) == expected

    def test_a_model_that_grew_after_it_was_loaded_is_refused(self):
        lm = hasten.load(build_model())
        ours(lm)
        lm.target.forward.model.resize_token_embeddings(VOCAB + 7, mean_resizing=False)
        with pytest.raises(ModelError, match=r"were changed after it was prepared; call hasten\.load"):
            ours(lm)

    def test_a_model_that_grew_after_it_was_accelerated_writes_on(self):
        model = build_model()
        hasten.accelerate(model)
        theirs(model)
        model.resize_token_embeddings(VOCAB + 7, mean_resizing=False)
        prompts = [[VOCAB + 3, *prompt] for prompt in PROMPTS]
        found = theirs(model, prompts)
        assert found == theirs(hasten.restore(model), prompts)


class TestPlaces:
    @pytest.mark.parametrize("place", ["cpu", "disk"])
    def test_layers_that_accelerate_offloads(self, place, tmp_path):
        accelerate = pytest.importorskip("accelerate")
        model = build_model()
        expected = theirs(model)
        if place == "cpu":
            accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
        else:
            accelerate.disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
        assert model.get_input_embeddings().weight.device.type == "meta"
        assert ours(hasten.load(model)) == expected

    def test_weights_that_are_nowhere_are_refused(self):
        with pytest.raises(ModelError, match=r"meta device.*from_pretrained"):
            hasten.load(build_model().to("meta"))


class TestSettings:
    @pytest.mark.parametrize(
        ("config", "generation"),
        [
            ({"use_cache": False}, {}),
            ({}, {"use_cache": False}),
            *(
                ({}, {"cache_implementation": name})
                for name in ("static", "dynamic", "offloaded", "quantized")
            ),
            ({"torch_dtype": "float32", "dtype": None}, {}),
        ],
    )
    def test_settings_that_do_not_change_the_text(self, config, generation, tmp_path):
        model = build_model()
        assert ours(hasten.load(saved(tmp_path, model, config, generation))) == theirs(model)

    @pytest.mark.parametrize("implementation", ["eager", "sdpa"])
    @pytest.mark.parametrize("name", ["llama", "mistral-sliding"])
    def test_attention_implementations(self, name, implementation):
        model = build_model(name)
        expected = theirs(model)
        model.set_attn_implementation(implementation)
        lm = hasten.load(model)
        assert ours(lm) == expected
        assert lm.target.probe.mode == "tree"

    @pytest.mark.slow  # its passes are compiled
    def test_flex_attention_is_given_no_tree_masks(self):
        """It takes masks of a kind of its own; a matrix instead is a segmentation fault."""
        model = build_model()
        expected = theirs(model)
        model.set_attn_implementation("flex_attention")
        lm = hasten.load(model)
        assert ours(lm) == expected
        assert lm.target.probe.mode == "chain"

    @pytest.mark.parametrize("implementation", ["flex_attention", "flash_attention_2"])
    def test_attention_that_takes_no_matrix_is_given_none(self, implementation):
        forward = CausalLM(build_model()).forward
        forward.text_config._attn_implementation = implementation
        kinds, positions = AttentionKinds.of(forward.text_config), np.arange(2)[None]
        with pytest.raises(ModelError, match=rf"{implementation}.*takes no tree mask"):
            forward(np.array([[3, 4]]), positions, TreeMask.causal(kinds, positions), None)

    @pytest.mark.parametrize("implementation", ["eager", "flash_attention_2", "flex_attention"])
    def test_an_attention_implementation_in_a_config(self, implementation, tmp_path):
        folder = saved(tmp_path, build_model(), {"attn_implementation": implementation})
        lm = hasten.load(folder)
        assert ours(lm) == theirs(build_model())
        assert lm.target.probe.mode == "tree"

    def test_an_unknown_attention_implementation_in_a_config(self, tmp_path):
        with pytest.raises(ModelError, match="no-such-attention"):
            hasten.load(saved(tmp_path, build_model(), {"attn_implementation": "no-such-attention"}))

    def test_a_quantised_checkpoint_whose_library_is_missing(self, tmp_path):
        recipe = {"quant_method": "bitsandbytes", "load_in_8bit": True}
        with pytest.raises(ModelError, match="cannot load"):
            hasten.load(saved(tmp_path, build_model(), {"quantization_config": recipe}))

    def test_a_float16_checkpoint_on_the_cpu(self, tmp_path):
        model = build_model(dtype=torch.float16)
        lm = hasten.load(saved(tmp_path, model))
        assert lm.target.dtype == torch.float16
        assert ours(lm) == theirs(model)
        assert ours(hasten.load(tmp_path, dtype="float32")) == theirs(model.float())


class TestLongRope:
    """Phi-3 rotates all keys by other factors once the text is longer than the first training's."""

    @staticmethod
    def model():
        rotation = {"rope_type": "longrope", "rope_theta": 10000.0}
        factors = {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0]}
        limit = {"original_max_position_embeddings": 32}
        return build("phi3", head_dim=None, rope_parameters=rotation | factors | limit, **limit)

    def test_texts_end_where_the_factors_change(self):
        model = self.model()
        lm = hasten.load(model)
        params = hasten.SamplingParams(max_new_tokens=60, ignore_eos=True)
        for drafter in ("off", "auto", "token-recycling"):
            found = lm.generate(PROMPTS[0], params, drafter=drafter, num_draft_tokens=12)
            assert len(found.token_ids) == 32 - len(PROMPTS[0])
            assert found.token_ids == theirs(model, PROMPTS[:1])[0]
        with pytest.raises(PromptError, match="context holds 32"):
            lm.generate(PROMPTS[0] * 3, params)

    def test_the_drop_in_refuses_longer_ones(self):
        model = hasten.accelerate(self.model())
        prompt = torch.tensor([PROMPTS[0]])
        assert model.generate(prompt, max_new_tokens=16, eos_token_id=-1, pad_token_id=0).shape == (1, 32)
        with pytest.raises(ConfigError, match=r"max_length=33 passes position 32.*longrope.*restore"):
            model.generate(prompt, max_new_tokens=17, eos_token_id=-1, pad_token_id=0)


class TestSeveralUsers:
    def test_two_models_and_two_engines_over_one_model_take_turns(self):
        models = [build_model(seed=0), build_model("lfm2-hybrid", seed=1)]
        lms = [hasten.load(models[0]), hasten.load(models[0]), hasten.load(models[1])]
        streams = [lm.stream(PROMPTS[0], PARAMS) for lm in lms]
        texts = [list(column) for column in zip(*zip(*streams, strict=True), strict=True)]
        found = [[piece.token_id for piece in text] for text in texts]
        assert found == [theirs(model, PROMPTS[:1])[0] for model in (models[0], models[0], models[1])]

    @pytest.mark.parametrize("name", ["llama", "lfm2-hybrid", "bloom-alibi"])
    def test_a_stream_goes_on_while_texts_are_generated(self, name):
        model = build_model(name)
        lm = hasten.load(model)
        expected = theirs(model)
        stream = lm.stream(PROMPTS[0], PARAMS)
        begun = [piece.token_id for piece in itertools.islice(stream, 4)]
        assert ours(lm) == expected
        assert begun + [piece.token_id for piece in stream] == expected[0]

    def test_engines_of_their_own_work_in_threads(self):
        model = build_model()
        expected = theirs(model)
        found: dict[int, list[list[int]]] = {}

        def work(place):
            found[place] = ours(hasten.load(model))

        threads = [threading.Thread(target=work, args=(place,)) for place in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == dict.fromkeys(range(3), expected)

    def test_a_mode_given_by_hand_is_kept(self):
        assert CausalLM(build_model(), mode="recompute").probe.mode == "recompute"
