"""Hidden states that a pass gives along with its logits are those of the model's modules."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import ARCHITECTURES, build_model, finest_dtype
from hasten.core import Acceptance
from hasten.errors import ConfigError
from hasten.logits import GREEDY
from hasten.models.encoder_decoder.forward import Seq2SeqForward
from hasten.models.forwards.choose import prepare
from hasten.models.forwards.forward import Forward
from hasten.models.forwards.graphs import GraphedForward
from hasten.models.probe import SESSIONS
from hasten.models.sessions.chain_session import ChainSession
from hasten.models.sessions.session import find
from hasten.models.sessions.shared_prefix import SharedPrefixSession
from hasten.models.sessions.tree_session import TreeSession
from hasten.tree import DraftTree
from histories import a_tree
from recordings import TapeRecorder
from seq2seq_models import build_seq2seq

PROMPTS = [[7, 8, 9, 10, 11, 12, 13], [20, 21, 22], [7, 8, 9, 10, 30]]
LAYERS = (0, 2, 1)
"""The models have two layers: 2 is what the head reads."""


def check(session, states_after, tolerance=1e-4):
    """Two steps, the hidden states of every node against those of a plain pass over its text."""
    rng, texts = np.random.default_rng(3), [list(prompt) for prompt in PROMPTS]
    session.prefill(PROMPTS)
    for step in range(3):
        trees = [session.fit(a_tree(rng)) for _ in texts]
        asked = LAYERS if step != 1 else ()
        for text, tree, logits in zip(
            texts, trees, find(session, trees, [GREEDY] * 3, 3, asked), strict=True
        ):
            assert list(logits.hidden) == list(asked)
            assert logits.best().token_ids.tolist() == logits.whole().argmax(-1).tolist()
            for node in range(-1, len(tree)) if asked else ():
                expected = states_after([*text, *tree.token_ids[tree.path_to(node)].tolist()])
                for layer in LAYERS:
                    one, other = logits.hidden[layer][node + 1], expected[layer]
                    allowed = tolerance * float(other.abs().max())
                    torch.testing.assert_close(one, other, rtol=0, atol=allowed)
        session.keep([Acceptance([], [33])] * 3)
        texts = [[*text, 33] for text in texts]


def of_modules(model):
    @torch.inference_mode()
    def states(text):
        output = model(torch.tensor([text]), output_hidden_states=True)
        return [layer[0, -1] for layer in output.hidden_states]

    return states


@pytest.mark.parametrize("name", ["llama", "gemma3", "bloom-alibi", "lfm2-hybrid", "mamba2-recurrent"])
def test_of_the_modules(name):
    model = build_model(name, finest_dtype(name))
    check(SESSIONS[ARCHITECTURES[name][2]](Forward(model)), of_modules(model))


def test_of_passes_without_a_cache():
    model = build_model()
    check(ChainSession(Forward(model), "recompute"), of_modules(model))


def test_of_rows_that_share_a_prefix():
    model = build_model("llama", torch.float64)
    session = SharedPrefixSession(Forward(model), lambda: True, min_prefix=1, min_saved=1)
    check(session, of_modules(model))


def test_of_a_model_whose_other_passes_are_recorded():
    model = build_model("gemma3", torch.float64)
    forward = GraphedForward(model, TapeRecorder())
    check(TreeSession(forward), of_modules(model))
    assert not forward.why_not


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt-neox"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_compiled_passes(name, dtype):
    """Kept in float32 in the pass, so in 16 bits they are nearer to the truth than those of the modules."""
    forward = prepare(build_model(name, dtype), "compiled").forward
    states = of_modules(build_model(name, dtype).float())
    tolerance = 0.03 if dtype == torch.bfloat16 else 1e-4
    check(TreeSession(forward), lambda text: [one.to(dtype) for one in states(text)], tolerance)


def test_asking_for_them_changes_no_logit():
    forward = prepare(build_model("gemma3"), "compiled").forward
    trees, found = [a_tree(np.random.default_rng(row)) for row in range(3)], []
    for layers in ((), LAYERS):
        session = TreeSession(forward)
        session.prefill(PROMPTS)
        found.append([one.whole() for one in find(session, trees, [None] * 3, 0, layers)])
    assert all(map(torch.equal, *found))


def test_of_a_decoder_that_reads_a_source():
    model, sources = build_seq2seq("t5gemma", torch.float64), [[5, 6, 7], [8, 9], [5, 6]]
    model.config.decoder.pad_token_id = -1
    sources = dict(zip(map(tuple, PROMPTS), sources, strict=True))

    @torch.inference_mode()
    def states(text):
        [source] = [source for prompt, source in sources.items() if tuple(text[: len(prompt)]) == prompt]
        output = model(
            input_ids=torch.tensor([source]),
            decoder_input_ids=torch.tensor([text]),
            output_hidden_states=True,
        )
        return [layer[0, -1] for layer in output.decoder_hidden_states]

    check(TreeSession(Seq2SeqForward(model).bind(list(sources.values()))), states)


@pytest.mark.parametrize("start", [Forward, lambda model: prepare(model, "compiled").forward])
@pytest.mark.parametrize("layer", [-1, 3])
def test_layers_that_are_not_there_are_refused(start, layer):
    session = TreeSession(start(build_model()))
    session.prefill(PROMPTS[:1])
    with pytest.raises(ConfigError, match=f"0 to 2, so not those of layer {layer}"):
        find(session, [DraftTree()], [GREEDY], 0, [layer])
