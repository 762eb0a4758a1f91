"""A recipe that cuts, sorts and distils: what it learns, keeps, resumes, reports and refuses."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from hasten.errors import ConfigError, IncompatibleModels
from hasten.training import teacher as teacher_module
from hasten.training.data import load_corpus
from hasten.training.lm import train_language_model
from hasten.training.recipe import TrainingConfig
from hasten.training.teacher import load_teacher, teacher_rows
from hasten.training.tokenizer import load_tokenizer

SMALL: dict[str, Any] = {
    "files": ("text.txt",),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 16,
    "batch_size": 4,
    "sequence_length": 24,
    "learning_rate": 1e-2,
    "warmup_steps": 4,
    "held_out_fraction": 0.1,
    "num_held_out_windows": 8,
    "device": "cpu",
    "checkpoint_every": 10,
    "evaluate_every": 1000,
    "report_every": 1,
}
Build = Callable[..., TrainingConfig]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text, a teacher of 3 layers that has learnt some of it, and a wild one whose layers all matter."""
    folder = tmp_path_factory.mktemp("sorted")
    words = ["the", "cat", "saw", "a", "small", "dog", "and", "it", "ran", "to", "an", "old", "house"]
    chooser = random.Random(0)
    documents = [" ".join(chooser.choices(words, k=40)) for _ in range(60)]
    (folder / "text.txt").write_text("\n<|endoftext|>\n".join(documents), encoding="utf-8")
    teacher = {**SMALL, "num_layers": 3, "vocab_size": 280, "steps": 60}
    train_language_model(TrainingConfig(**teacher, data=str(folder), output=str(folder / "teacher")))
    wild = LlamaConfig.from_pretrained(folder / "teacher")
    wild.initializer_range = 0.3
    torch.manual_seed(0)
    LlamaForCausalLM(wild).save_pretrained(folder / "wild")
    load_tokenizer(str(folder / "teacher")).save_pretrained(folder / "wild")
    return folder


@pytest.fixture
def build(folder: Path, tmp_path: Path) -> Build:
    """A draft of 2 of the teacher's layers."""
    teacher = str(folder / "teacher")
    cut = {"tokenizer": teacher, "start_from": teacher, "keep_layers": [0, 2], "num_layers": 2}
    cut |= {"distill_from": teacher, "distill_weight": 1.0, "steps": 20}

    def build(output: str, **changes: Any) -> TrainingConfig:
        return TrainingConfig(**SMALL | cut | changes, data=str(folder), output=str(tmp_path / output))

    return build


SORTED: dict[str, Any] = {"exits": [1], "teacher_text_tokens": 200, "teacher_prompt_length": 5}


def report_of(output: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((output / "training.json").read_text(encoding="utf-8"))
    return report


class Killed(Exception):
    pass


def kill_at_13(step: int, num_steps: int, metrics: dict[str, float]) -> None:
    if step == 13:
        raise Killed


def test_a_cut_draft_starts_where_the_target_is(build: Build, folder: Path) -> None:
    whole = build("whole", keep_layers=[0, 1, 2], num_layers=3, steps=1, learning_rate=1e-9, weight_decay=0.0)
    losses: list[float] = []
    train_language_model(whole, lambda step, num_steps, metrics: losses.append(metrics["loss"]))
    assert losses[0] == pytest.approx(0, abs=1e-5)
    assert report_of(Path(whole.output))["top1_agreement"]["held_out_text"] == {"3": 1.0}


def test_distillation_raises_the_agreement_and_the_report_says_it_by_exit(build: Build, folder: Path) -> None:
    wild = {"start_from": str(folder / "wild"), "distill_from": str(folder / "wild"), "exit_weight": 1.0}
    shares = []
    for steps in (1, 120):
        output = train_language_model(build(f"out{steps}", **SORTED, **wild, steps=steps))
        agreement = report_of(output)["top1_agreement"]
        assert agreement.keys() == {"held_out_text", "teacher_text"}
        for by_exit in agreement.values():
            assert by_exit.keys() == {"1", "2"}
            assert all(0 <= share <= 1 for share in by_exit.values())
        shares.append(agreement["held_out_text"])
    assert shares[1]["2"] > shares[0]["2"] + 0.05
    assert shares[1]["1"] > shares[0]["1"] + 0.02


def test_an_exit_learns_more_where_it_is_trained(build: Build, folder: Path) -> None:
    """The head, the norm and the first layer serve both depths, so an untrained exit learns something too."""
    wild = {"start_from": str(folder / "wild"), "distill_from": str(folder / "wild"), "exits": [1]}

    def early_share(weight: float) -> float:
        output = train_language_model(build(f"out{weight}", **wild, steps=120, exit_weight=weight))
        share: float = report_of(output)["top1_agreement"]["held_out_text"]["1"]
        return share

    assert early_share(1.0) > early_share(0.0)


def test_a_sorted_draft_says_its_exits_and_loads_as_a_plain_llama(build: Build) -> None:
    output = train_language_model(build("out", **SORTED, steps=2))
    model = AutoModelForCausalLM.from_pretrained(output)
    assert type(model) is LlamaForCausalLM
    assert model.config.hasten_exits == [1, 2]
    plain = train_language_model(build("plain", steps=2))
    assert "hasten_exits" not in json.loads((plain / "config.json").read_text(encoding="utf-8"))


def test_a_resumed_run_ends_with_equal_weights_and_writes_no_text_again(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = train_language_model(build("unbroken", **SORTED))
    with pytest.raises(Killed):
        train_language_model(build("broken", **SORTED), kill_at_13)
    monkeypatch.setattr(teacher_module, "_Writer", None)
    broken = train_language_model(build("broken", **SORTED, resume=True))
    first, second = (
        load_file(output / "checkpoints" / "step-00000020" / "weights.safetensors")
        for output in (unbroken, broken)
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert report_of(unbroken)["top1_agreement"] == report_of(broken)["top1_agreement"]
    with pytest.raises(ConfigError, match="exits was"):
        train_language_model(build("broken", **SORTED | {"exits": []}, resume=True))


def test_the_teachers_rows_continue_the_text_of_their_side(
    build: Build, folder: Path, tmp_path: Path
) -> None:
    config = build("out", **SORTED)
    tokenizer = load_tokenizer(str(folder / "teacher"))
    corpus = load_corpus([folder / "text.txt"], tokenizer, 0.1, tmp_path)
    teacher = load_teacher(config, tokenizer, torch.device("cpu"))
    assert teacher is not None
    train, held_out = teacher_rows(teacher, corpus, config, len(tokenizer), tmp_path)
    assert train.shape == (10, 25)  # 20 new tokens a row
    assert held_out.shape == (8, 25)
    for rows, side in ((train, corpus.train), (held_out, corpus.held_out)):
        pieces = {tuple(side[start : start + 5]) for start in range(len(side) - 4)}
        assert all(tuple(row[:5].tolist()) in pieces for row in rows)

    def is_greedy(row: torch.Tensor) -> bool:
        choices = teacher(row[None, :-1]).logits[0, 4:].argmax(-1)
        return torch.equal(choices, row[5:])

    assert [is_greedy(row) for row in train] == [True, False] * 5
    assert all(is_greedy(row) for row in held_out)
    again = teacher_rows(teacher, corpus, build("out", **SORTED, seed=1), len(tokenizer), tmp_path)
    assert not torch.equal(again[0], train)
    once_more = teacher_rows(teacher, corpus, config, len(tokenizer), tmp_path)
    assert torch.equal(once_more[0], train)
    assert torch.equal(once_more[1], held_out)


def test_the_teachers_text_fills_its_share_of_a_batch(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    from hasten.training import lm

    marked = torch.full((3, 25), 7), torch.full((8, 25), 7)
    monkeypatch.setattr(lm, "teacher_rows", lambda *arguments: marked)
    seen: list[torch.Tensor] = []
    batch = lm._Run.batch
    monkeypatch.setattr(lm._Run, "batch", lambda run, step: seen.append(batch(run, step)) or seen[-1])
    train_language_model(build("out", **SORTED, steps=2, teacher_text_share=0.25))
    assert [[(row == 7).all().item() for row in windows] for windows in seen] == [[False] * 3 + [True]] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep_layers": [0]}, r"keep_layers=\(0,\) .*num_layers=2 layers of start_from"),
        ({"keep_layers": [-1, 0]}, "keep_layers=.*counted from 0"),
        ({"keep_layers": [0, 1.0]}, "keep_layers=.*of type"),
        ({"start_from": None}, "keep_layers=.*without start_from"),
        ({"exits": [2]}, r"exits=\(2,\) .*below num_layers=2"),
        ({"exits": [0]}, "exits="),
        ({"exits": [1, 1]}, "exits=.*rising"),
        ({"exit_weight": -0.1}, "exit_weight="),
        ({"teacher_text_tokens": -1}, "teacher_text_tokens="),
        ({"teacher_text_tokens": 9, "distill_from": None}, "teacher_text_tokens=.*distill_from"),
        ({"teacher_text_tokens": 9, "distill_weight": 0.0}, "teacher_text_tokens=.*distill_weight"),
        ({"teacher_text_tokens": 9, "teacher_prompt_length": 25}, "teacher_prompt_length=.*at most"),
        ({"teacher_prompt_length": 0}, "teacher_prompt_length=.*at least 1"),
        ({"teacher_text_share": 1.5}, "teacher_text_share="),
    ],
)
def test_values_that_cannot_work_are_named(build: Build, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("out", **changes)


def test_a_cut_of_another_shape_or_vocabulary_is_refused_before_training(build: Build) -> None:
    with pytest.raises(ConfigError, match=r"hidden_size=64 .*has 32"):
        train_language_model(build("out", hidden_size=64, head_dim=32))
    with pytest.raises(ConfigError, match=r"no layer 5; its layers are 0 to 2"):
        train_language_model(build("out", keep_layers=[0, 5]))
    with pytest.raises(IncompatibleModels, match=r"start_from='demo' has a tokenizer of 8192 tokens"):
        train_language_model(build("out", start_from="demo"))


def test_without_held_out_text_the_teacher_still_writes(build: Build) -> None:
    output = train_language_model(build("out", **SORTED, steps=2, held_out_fraction=0.0))
    assert report_of(output)["top1_agreement"] == {}


def test_too_little_text_for_the_prompts_is_named(build: Build) -> None:
    changes = {"sequence_length": 200, "held_out_fraction": 0.0, "teacher_prompt_length": 200}
    config = build("out", **SORTED | changes)
    (Path(config.output)).mkdir()
    config = TrainingConfig(**{**config.as_dict(), "files": ["short.txt"], "data": config.output})
    (Path(config.data) / "short.txt").write_text("the cat", encoding="utf-8")
    with pytest.raises(ConfigError, match="teacher_prompt_length=200 cannot work"):
        train_language_model(config)
