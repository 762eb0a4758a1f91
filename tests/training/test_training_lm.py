"""Training learns, goes on exactly where it stopped, and writes folders that transformers loads."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hasten.errors import ConfigError, IncompatibleModels, ModelError
from hasten.training.lm import TrainingConfig, learning_rate_at, resolve_device, train_language_model

TINY: dict[str, Any] = {
    "vocab_size": 280,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 16,
    "steps": 20,
    "batch_size": 4,
    "sequence_length": 24,
    "learning_rate": 3e-3,
    "warmup_steps": 4,
    "held_out_fraction": 0.1,
    "num_held_out_windows": 8,
    "device": "cpu",
    "checkpoint_every": 10,
    "evaluate_every": 10,
    "report_every": 1,
}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    words = ["the", "cat", "saw", "a", "small", "dog", "and", "it", "ran", "to", "an", "old", "house"]
    chooser = random.Random(0)
    documents = [" ".join(chooser.choices(words, k=40)) for _ in range(60)]
    (tmp_path / "text.txt").write_text("\n<|endoftext|>\n".join(documents), encoding="utf-8")
    return tmp_path


def tiny(text: Path, output: str, **changes: Any) -> TrainingConfig:
    options = {**TINY, "data": str(text), "files": ("text.txt",), "output": str(text / output), **changes}
    return TrainingConfig(**options)


class Killed(Exception):
    pass


def kill_at(step_to_die: int) -> Any:
    def progress(step: int, num_steps: int, metrics: dict[str, float]) -> None:
        if step == step_to_die:
            raise Killed

    return progress


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step:08d}" / "weights.safetensors")


def test_resumed_run_ends_with_equal_weights(text: Path) -> None:
    unbroken = train_language_model(tiny(text, "unbroken"))
    with pytest.raises(Killed):
        train_language_model(tiny(text, "broken"), kill_at(13))
    torch.rand(3)  # the state of the global generator must not matter
    broken = train_language_model(tiny(text, "broken", resume=True))
    first, second = weights(unbroken, 20), weights(broken, 20)
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == torch.float32
        assert torch.equal(first[name], second[name]), name
    assert [path.name for path in (broken / "checkpoints").iterdir()] == ["step-00000020"]
    exported = [(folder / "model.safetensors").read_bytes() for folder in (unbroken, broken)]
    assert exported[0] == exported[1]


def test_equal_weights_need_the_moments(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unbroken = train_language_model(tiny(text, "unbroken"))
    with pytest.raises(Killed):
        train_language_model(tiny(text, "broken"), kill_at(13))
    monkeypatch.setattr(torch.optim.AdamW, "load_state_dict", lambda self, state: None)
    broken = train_language_model(tiny(text, "broken", resume=True))
    first, second = weights(unbroken, 20), weights(broken, 20)
    assert not all(torch.equal(first[name], second[name]) for name in first)


def test_loss_falls_and_the_export_loads(text: Path) -> None:
    reports: list[tuple[int, int, dict[str, float]]] = []
    config = tiny(text, "out", steps=60, learning_rate=1e-2)
    folder = train_language_model(config, lambda *report: reports.append(report))
    assert [step for step, _, _ in reports] == list(range(1, 61))
    assert reports[-1][2]["loss"] < reports[0][2]["loss"] - 1
    measured = [metrics["held_out_loss"] for _, _, metrics in reports if "held_out_loss" in metrics]
    assert len(measured) == 6
    assert measured[-1] < measured[0]
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert model.config.vocab_size == len(tokenizer) == 280
    prompt = tokenizer("the cat", return_tensors="pt")
    written = tokenizer.decode(model.generate(**prompt, max_new_tokens=8, do_sample=False)[0])
    assert written.startswith("the cat")
    report = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    assert report["final_metrics"]["held_out_loss"] == measured[-1]
    assert not list(folder.rglob("*.tmp"))


def test_the_callers_random_numbers_are_left_alone(text: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    train_language_model(tiny(text, "out", steps=1))
    assert torch.equal(torch.rand(1), expected)


def test_resume_refuses_what_would_change_the_run(text: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to resume"):
        train_language_model(tiny(text, "out", resume=True))
    with pytest.raises(Killed):
        train_language_model(tiny(text, "out"), kill_at(10))
    with pytest.raises(ConfigError, match="resume, or name another"):
        train_language_model(tiny(text, "out"))
    with pytest.raises(ConfigError, match=r"learning_rate was 0\.003 and is 0\.5 now"):
        train_language_model(tiny(text, "out", resume=True, learning_rate=0.5))
    with (text / "text.txt").open("a", encoding="utf-8") as file:
        file.write("more")
    with pytest.raises(ConfigError, match="text or the tokenizer has changed"):
        train_language_model(tiny(text, "out", resume=True))


def test_resuming_a_finished_run_changes_nothing(text: Path) -> None:
    folder = train_language_model(tiny(text, "out", steps=10))
    before = (folder / "model.safetensors").read_bytes()
    assert train_language_model(tiny(text, "out", steps=10, resume=True)) == folder
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_damaged_checkpoint_is_named(text: Path) -> None:
    with pytest.raises(Killed):
        train_language_model(tiny(text, "out"), kill_at(10))
    (text / "out/checkpoints/step-00000010/optimizer.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="step-00000010 cannot be read"):
        train_language_model(tiny(text, "out", resume=True))


def test_distillation_follows_the_teacher(text: Path) -> None:
    teacher = train_language_model(tiny(text, "teacher", steps=60, learning_rate=1e-2))
    losses: list[float] = []
    changes = {"vocab_size": None, "tokenizer": str(teacher), "distill_from": str(teacher), "num_layers": 1}
    config = tiny(text, "student", steps=40, learning_rate=1e-2, distill_weight=1.0, **changes)
    train_language_model(config, lambda step, num_steps, metrics: losses.append(metrics["loss"]))
    assert losses[-1] < losses[0] / 2


def test_a_teacher_with_other_tokens_is_refused(text: Path) -> None:
    with pytest.raises(IncompatibleModels, match=r"tokenizer of 8192 tokens.*not the student's of 280"):
        train_language_model(tiny(text, "out", distill_from="demo"))


def test_a_loss_that_is_no_number_stops_the_run(text: Path) -> None:
    with pytest.raises(ModelError, match="lower learning_rate"):
        train_language_model(tiny(text, "out", learning_rate=1e20, warmup_steps=0, weight_decay=0.0))
    assert not list((text / "out" / "checkpoints").glob("*"))


def test_learning_rate_warms_up_and_falls() -> None:
    config = TrainingConfig(
        files=("a",), output="o", tokenizer="demo", steps=110, warmup_steps=10, learning_rate=1.0
    )
    rates = [learning_rate_at(step, config) for step in range(110)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.1 < rates[-1] < 0.11


def test_unusable_devices_are_named() -> None:
    with pytest.raises(ConfigError, match="device='toaster'"):
        resolve_device("toaster")
    assert resolve_device("cpu").type == "cpu"
