"""DiffusionGemma written by the loop: the text, and the passes, of transformers' own generate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    EntropyBoundSampler,
    EntropyBoundSamplerConfig,
)

from diffusion.exact_laws import write
from diffusion_gemmas import CANVAS, END, VOCAB, build_diffusion_gemma
from hasten.core import SamplingParams
from hasten.diffusion.canvas import Canvas, DenoiserSpec
from hasten.diffusion.denoisers.diffusion_gemma import DiffusionGemma
from hasten.diffusion.drawing import Drawing, NoiseSource, noise_source
from hasten.diffusion.engine import DiffusionModel
from hasten.diffusion.loop import Writing, denoise
from hasten.diffusion.parse import parse_strategy
from hasten.errors import ConfigError

SPEC = DenoiserSpec(mask_id=None, attention="encoder-decoder", block_size=CANVAS, noise="uniform")
PROMPT = [2, 17, 5, 60, 33, 8, 71, 12, 40, 9]
STEPS = 12
LINE = f"entropy-bound:0.3+renoise+temperature:steps={STEPS}+stable:steps={STEPS},entropy=2.0"


class SameDraws:
    """Gives transformers' sampler the noise of our loop, by position and pass; it draws greedily."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, noise: NoiseSource) -> None:
        self.noise = noise
        self.num_forwards, self.start = 0, len(PROMPT) - CANVAS
        monkeypatch.setattr(EntropyBoundSampler, "initialize_canvas", self.first_noise)
        monkeypatch.setattr(EntropyBoundSampler, "renoise_canvas", self.renoise)
        monkeypatch.setattr(torch, "multinomial", lambda probs, num_samples: probs.argmax(-1, keepdim=True))

    def first_noise(self, batch_size: int, device: Any) -> torch.Tensor:
        self.start += CANVAS
        return torch.from_numpy(self.noise(self.positions - len(PROMPT), 0))[None]

    @property
    def positions(self) -> Any:
        return np.arange(self.start, self.start + CANVAS)

    @property
    def renoise(self) -> Any:
        draws = self

        def renoise(sampler: Any, accepted: torch.Tensor, cur_step: Any) -> torch.Tensor:
            draws.num_forwards += 1
            fresh = torch.from_numpy(draws.noise(draws.positions, draws.num_forwards))[None]
            return torch.where(sampler.accepted_token_mask, accepted, fresh)

        return renoise


def generated(monkeypatch: pytest.MonkeyPatch, model: Any, seed: int) -> tuple[list[int], int]:
    """Text and number of decoder passes of transformers' generate."""
    with monkeypatch.context() as patches:
        draws = SameDraws(patches, noise_source(SPEC, VOCAB, seed, 0))
        patches.setattr(model.generation_config, "eos_token_id", None)
        found = model.generate(
            torch.tensor([PROMPT]),
            max_new_tokens=2 * CANVAS,
            max_denoising_steps=STEPS,
            sampler_config=EntropyBoundSamplerConfig(0.3),
            t_min=0.4,
            t_max=0.8,
            stability_threshold=1,
            confidence_threshold=2.0,
        )
    return found.sequences[0, len(PROMPT) :].tolist(), draws.num_forwards


def test_texts_and_passes_are_those_of_transformers(monkeypatch):
    passes = []
    for seed in range(3):
        model = build_diffusion_gemma(seed)
        expected, num_forwards = generated(monkeypatch, model, seed)
        ours = write(DiffusionGemma(model, SPEC), LINE, length=2 * CANVAS, prompt=PROMPT, seed=seed)
        assert ours.token_ids == expected
        assert ours.stats.num_forwards == num_forwards
        passes.append(num_forwards)
    assert min(passes) < 2 * STEPS == max(passes)  # some end early, some do not


def test_a_text_ends_with_the_piece_that_holds_its_end():
    denoiser = DiffusionGemma(build_diffusion_gemma(1), SPEC)
    whole = write(denoiser, LINE, length=2 * CANVAS, prompt=PROMPT, seed=1)
    end = whole.token_ids[CANVAS // 2]
    spec = replace(SPEC, eos_ids=(end,))
    ended = write(
        DiffusionGemma(denoiser.model, spec), f"{LINE}+eos", length=2 * CANVAS, prompt=PROMPT, seed=1
    )
    assert ended.token_ids == whole.token_ids[: whole.token_ids.index(end) + 1]
    assert ended.stats.num_forwards < whole.stats.num_forwards


def test_the_strategy_of_users_who_name_none_writes_with_it():
    denoiser = DiffusionGemma(build_diffusion_gemma(), replace(SPEC, eos_ids=(END,)))
    lm = DiffusionModel(denoiser)
    output = lm.generate(PROMPT, SamplingParams(max_new_tokens=CANVAS))
    assert output.guarantee == "approximate"
    assert "entropy-bound+temperature+stable" in output.strategy
    with pytest.raises(ConfigError, match=r"renoise.stable"):
        lm.generate(PROMPT, SamplingParams(max_new_tokens=CANVAS), strategy="exact")


def test_a_batch_writes_what_each_text_would_alone():
    denoiser = DiffusionGemma(build_diffusion_gemma(1), SPEC)
    strategy = parse_strategy(LINE, SPEC)
    prompts = [PROMPT, PROMPT[:3], [*PROMPT, 4, 5]]
    writings = []
    for index, prompt in enumerate(prompts):
        noise = noise_source(SPEC, VOCAB, index, 0)
        canvas = Canvas.after(prompt, noise(np.arange(2 * CANVAS), 0))
        writings.append(Writing(canvas, strategy, Drawing(SamplingParams(), index), noise, sequence=index))
    for _ in denoise(denoiser, writings):
        pass
    for index, (prompt, writing) in enumerate(zip(prompts, writings, strict=True)):
        alone = write(denoiser, LINE, length=2 * CANVAS, prompt=prompt, seed=index)
        assert writing.canvas.token_ids[len(prompt) :].tolist() == alone.token_ids


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{LINE}+whole", r"choose 'blocks:8'"),
        (f"{LINE}+blocks:16", r"choose 'blocks:8'"),
        (f"{LINE}+freedave", "renoise"),
        ("entropy-bound:0.3", "renoise.stable"),
    ],
)
def test_what_cannot_be_written_with_it_is_refused(line, message):
    with pytest.raises(ConfigError, match=message):
        parse_strategy(line, SPEC)


def test_a_canvas_that_its_pieces_do_not_divide_is_refused():
    denoiser = DiffusionGemma(build_diffusion_gemma(), SPEC)
    with pytest.raises(ConfigError, match="8 or 16"):
        write(denoiser, LINE, length=12, prompt=PROMPT)
