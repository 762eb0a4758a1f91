"""Masked-diffusion training learns, goes on exactly where it stopped, and writes folders that load."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from hasten.cli import app
from hasten.diffusion.canvas import DenoiserSpec
from hasten.errors import ConfigError, HastenError, IncompatibleModels
from hasten.models.bundled_models import bundled_path
from hasten.training.diffusion import DiffusionConfig, train_diffusion_model
from hasten.training.diffusion_certainty import TaughtRows, write_greedily
from hasten.training.diffusion_objective import Denoising
from hasten.training.diffusion_rows import ListRows, Rows, list_tokenizer
from hasten.training.lm import TrainingConfig, train_language_model
from hasten.training.loop import llama_config
from hasten.training.tokenizer import load_tokenizer

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 2,
    "head_dim": 16,
    "rope_theta": 100.0,
}
TINY: dict[str, Any] = SHAPE | {
    "steps": 20,
    "batch_size": 8,
    "sequence_length": 24,
    "learning_rate": 3e-3,
    "warmup_steps": 4,
    "num_held_out_windows": 16,
    "device": "cpu",
    "checkpoint_every": 10,
    "evaluate_every": 10,
    "report_every": 1,
}
LISTS: dict[str, Any] = {"subject": "list-tasks", "canvas_lengths": [16, 18], "weighting": "even"}
TEXT: dict[str, Any] = {"files": ["text.txt"], "vocab_size": 280, "held_out_fraction": 0.1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    words = ["the", "cat", "saw", "a", "small", "dog", "and", "it", "ran", "to", "an", "old", "house"]
    chooser = random.Random(0)
    documents = [" ".join(chooser.choices(words, k=40)) for _ in range(60)]
    (tmp_path / "text.txt").write_text("\n<|endoftext|>\n".join(documents), encoding="utf-8")
    return tmp_path


def tiny(folder: Path, output: str, **changes: Any) -> DiffusionConfig:
    return DiffusionConfig(**{**TINY, "data": str(folder), "output": str(folder / output), **changes})


class Killed(Exception):
    pass


def kill_at(step_to_die: int) -> Any:
    def progress(step: int, num_steps: int, metrics: dict[str, float]) -> None:
        if step == step_to_die:
            raise Killed

    return progress


@pytest.mark.parametrize("subject", [LISTS, TEXT | {"block_size": 6}], ids=["lists", "blocks of text"])
def test_resumed_run_ends_with_equal_weights(folder: Path, subject: dict[str, Any]) -> None:
    unbroken = train_diffusion_model(tiny(folder, "unbroken", **subject))
    with pytest.raises(Killed):
        train_diffusion_model(tiny(folder, "broken", **subject), kill_at(13))
    torch.rand(3)  # the state of the global generator must not matter
    broken = train_diffusion_model(tiny(folder, "broken", **subject, resume=True))
    path = "checkpoints/step-00000020/weights.safetensors"
    first, second = load_file(unbroken / path), load_file(broken / path)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (unbroken / "model.safetensors").read_bytes() == (broken / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("subject", "attention"),
    [(LISTS, "full"), (TEXT, "full"), (TEXT | {"block_size": 6}, "block-causal")],
    ids=["lists", "text", "blocks of text"],
)
def test_loss_falls_and_the_folder_says_how_it_is_asked(
    folder: Path, subject: dict[str, Any], attention: str
) -> None:
    measured: list[float] = []

    def progress(step: int, num_steps: int, metrics: dict[str, float]) -> None:
        measured.extend([metrics["held_out_loss"]] if "held_out_loss" in metrics else [])

    changes = {**subject, "steps": 60, "learning_rate": 1e-2, "initializer_range": 0.08}
    output = train_diffusion_model(tiny(folder, "out", **changes), progress)
    assert measured[-1] < measured[0] - 0.1
    model = AutoModelForCausalLM.from_pretrained(output)
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert model.dtype == torch.bfloat16
    assert model.config.vocab_size == len(tokenizer)
    spec = DenoiserSpec.load(output)
    assert (spec.mask_id, spec.eos_ids, spec.pad_id) == (tokenizer.mask_token_id, (0,), 2)
    assert (spec.attention, spec.block_size) == (attention, subject.get("block_size"))
    report = json.loads((output / "training.json").read_text(encoding="utf-8"))
    assert report["final_metrics"]["held_out_loss"] == measured[-1]
    assert report["num_parameters"] == model.num_parameters()
    # The last position is seen from the first.
    token_ids = torch.randint(3, len(tokenizer), (1, 24))
    changed = token_ids.clone()
    changed[0, -1] = 3 + (changed[0, -1] - 2) % (len(tokenizer) - 3)
    first = [model(input_ids=ids).logits[0, 0] for ids in (token_ids, changed)]
    assert not torch.equal(*first)


def causal_model(folder: Path) -> Path:
    return train_language_model(
        TrainingConfig(
            **SHAPE,
            **TEXT,
            steps=60,
            batch_size=8,
            sequence_length=24,
            learning_rate=1e-2,
            warmup_steps=4,
            device="cpu",
            data=str(folder),
            output=str(folder / "causal"),
            num_held_out_windows=8,
        )
    )


def test_a_causal_model_is_a_start_and_its_shift_stays(folder: Path) -> None:
    causal = causal_model(folder)
    given = {**TEXT, "vocab_size": None, "tokenizer": str(causal), "min_noise": 0.02}
    losses = {}
    for name, changes in {
        "random": {},
        "warm": {"start_from": str(causal)},
        "shifted": {"start_from": str(causal), "logits_shift": 1},
    }.items():
        config = tiny(folder, name, **given, **changes, steps=1, warmup_steps=0, learning_rate=1e-9)
        output = train_diffusion_model(config)
        losses[name] = json.loads((output / "training.json").read_text(encoding="utf-8"))["final_metrics"]
        assert DenoiserSpec.load(output).logits_shift == changes.get("logits_shift", 0)
    warm = load_file(folder / "warm/checkpoints/step-00000001/weights.safetensors")
    source = AutoModelForCausalLM.from_pretrained(causal, dtype=torch.float32)
    for name, parameter in source.named_parameters():
        torch.testing.assert_close(warm[name], parameter.detach(), rtol=0, atol=1e-6)
    # Predicting the next position is what the causal weights can do already.
    assert losses["shifted"]["held_out_loss"] < losses["warm"]["held_out_loss"]


def forwards_by_entropy(denoising: Denoising, rows: Rows, threshold: float) -> tuple[Rows, float]:
    """Commits all that is surer than the threshold, and the surest; mean number of forward passes a row."""
    is_open = rows.is_canvas.clone()
    token_ids = rows.token_ids.masked_fill(is_open, denoising.mask_id)
    forwards = 0
    while is_open.any():
        forwards += int(is_open.any(1).sum())
        with torch.no_grad():
            probs = denoising.logits(token_ids, torch.ones_like(is_open)).softmax(-1).view(*is_open.shape, -1)
        entropy = torch.special.entr(probs).sum(-1).masked_fill(~is_open, torch.inf)
        commits = (entropy <= threshold) | (entropy == entropy.min(1, keepdim=True).values)
        commits &= is_open
        token_ids = torch.where(commits, probs.argmax(-1), token_ids)
        is_open &= ~commits
    return Rows(token_ids, rows.is_canvas), forwards / len(token_ids)


def open_model(folder: Path) -> Denoising:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return Denoising(model, DenoiserSpec.load(folder).mask_id or 0)


def test_certainty_needs_fewer_forwards_for_nearly_the_teachers_text(folder: Path) -> None:
    lists = {**LISTS, "min_size": 2, "max_size": 3, "batch_size": 16, "canvas_lengths": [16, 16]}
    options = {**lists, "steps": 120, "learning_rate": 5e-3, "initializer_range": 0.08}
    teacher = train_diffusion_model(tiny(folder, "teacher", **options))
    certain = {"teacher": str(teacher), "teacher_answers": 64, "certainty_block": 16}
    student = train_diffusion_model(tiny(folder, "student", **lists, **certain, steps=40))
    asked = ListRows(list_tokenizer(), tiny(folder, "asked", **lists, seed=9)).prompts(60)
    before, forwards_before = forwards_by_entropy(open_model(teacher), asked, 0.5)
    after, forwards_after = forwards_by_entropy(open_model(student), asked, 0.5)
    reference = write_greedily(open_model(teacher), asked).token_ids
    agreement = [(rows.token_ids == reference).float().mean().item() for rows in (before, after)]
    assert forwards_after < 0.8 * forwards_before
    assert agreement[1] > agreement[0] - 0.03


def test_a_teachers_answers_are_written_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = train_diffusion_model(tiny(folder, "teacher", **LISTS, steps=2))
    changes = {**LISTS, "teacher": str(teacher), "teacher_answers": 20}
    with pytest.raises(Killed):
        train_diffusion_model(tiny(folder, "student", **changes), kill_at(12))
    monkeypatch.setattr("hasten.training.diffusion_certainty.write_greedily", None)
    student = train_diffusion_model(tiny(folder, "student", **changes, resume=True))
    assert DenoiserSpec.load(student) == DenoiserSpec.load(teacher)


def test_a_teachers_rows_are_drawn_with_their_prompts(folder: Path) -> None:
    teacher = train_diffusion_model(tiny(folder, "teacher", **LISTS, steps=2))
    config = tiny(folder, "student", **LISTS, teacher=str(teacher), teacher_answers=20)
    source = ListRows(list_tokenizer(), config)
    rows = TaughtRows(open_model(teacher), source, config, folder / "corpus").batch(3)
    prompts = source.prompts(20)
    known = {tuple(row[:18].tolist()) for row in prompts.token_ids}
    assert all(tuple(row[:18].tolist()) in known for row in rows.token_ids)
    assert len(rows.token_ids) == 8
    assert (rows.token_ids != 1).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subject": "poems"}, "subject='poems'.*text or list-tasks"),
        ({"weighting": "odd"}, "weighting="),
        ({"canvas_lengths": [15, 20]}, "canvas_lengths=.*two rising numbers above 15"),
        ({"canvas_lengths": [20]}, "canvas_lengths="),
        ({"long_canvas_lengths": [9]}, "long_canvas_lengths="),
        ({"max_size": 16}, "max_size=16"),
        ({"min_size": 1}, "min_size=1"),
        ({"files": ["a"]}, "files=.*left out"),
        ({"tokenizer": "demo"}, "tokenizer='demo'.*left out"),
        ({"min_noise": 0.0}, "min_noise="),
        ({"block_size": 0}, "block_size=0"),
        ({"block_size": 4, "logits_shift": 1}, "logits_shift=1 cannot work with block_size=4"),
        ({"block_size": 4, "teacher": "demo-lists"}, "teacher='demo-lists' cannot work with block_size=4"),
        ({"logits_shift": 2}, "logits_shift=2"),
        ({"certainty_temperature": 0.0}, "certainty_temperature="),
        ({"teacher_answers": 0}, "teacher_answers="),
        ({"subject": "text"}, "give either a tokenizer"),
        ({"subject": "text", "tokenizer": "demo"}, "files=.*one or more"),
    ],
)
def test_values_that_cannot_work_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DiffusionConfig(**{**LISTS, "output": "out", **changes})


def test_a_teacher_that_is_asked_otherwise_is_refused(folder: Path) -> None:
    teacher = train_diffusion_model(tiny(folder, "teacher", **LISTS, steps=2, logits_shift=1))
    with pytest.raises(IncompatibleModels, match="logits_shift"):
        train_diffusion_model(tiny(folder, "student", **LISTS, teacher=str(teacher)))
    with pytest.raises(HastenError, match="tokenizer of 8192"):
        train_diffusion_model(tiny(folder, "student", **LISTS, teacher="demo-diffusion"))


def test_the_command_trains_and_resumes(folder: Path) -> None:
    recipe = folder / "recipe.json"
    recipe.write_text(json.dumps(TINY | TEXT), encoding="utf-8")
    command = ["train", "diffusion", str(recipe), "--data", str(folder), "--output", str(folder / "out")]
    result = CliRunner().invoke(app, [*command, "--steps", "4", "--block-size", "8"])
    assert result.exit_code == 0, result.output
    assert DenoiserSpec.load(folder / "out").block_size == 8
    result = CliRunner().invoke(app, [*command, "--steps", "4", "--block-size", "8", "--resume"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("name", ["demo-diffusion", "demo-lists"])
def test_recipes_have_the_shape_of_the_bundled_models(name: str) -> None:
    config = DiffusionConfig.load(Path(__file__).parents[2] / "models" / f"{name}.json", output="out")
    bundled = AutoConfig.from_pretrained(bundled_path(name))
    shape = llama_config(config, load_tokenizer(name)).to_dict()
    for option in (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "head_dim",
    ):
        assert shape[option] == getattr(bundled, option), option
    for option in ("num_key_value_heads", "vocab_size", "tie_word_embeddings", "max_position_embeddings"):
        assert shape[option] == getattr(bundled, option), option
    assert config.rope_theta == bundled.rope_parameters["rope_theta"]
