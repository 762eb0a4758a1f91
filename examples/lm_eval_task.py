"""Run a task of lm-evaluation-harness with and without hasten: the same answers.

Needs `pip install lm-eval`. The task and its few items are local; nothing is downloaded.
"""

import json
import tempfile
from pathlib import Path

import lm_eval
import torch
import transformers
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import hasten
from hasten.models.bundled_models import bundled_path

QUESTIONS = ["I want to book a table for two.", "Can I get a latte?", "I need a doctor.", "Play some jazz."]

folder = str(bundled_path("demo"))  # or any causal language model
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def answers(data: Path) -> list[str]:
    task = {
        "task": "replies",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "User: {{question}}\nAssistant:",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n", "User:"], "max_gen_toks": 40, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
    manager = TaskManager(include_defaults=False)
    results = lm_eval.simple_evaluate(harness, tasks=[task], task_manager=manager, bootstrap_iters=0)
    return [sample["filtered_resps"][0] for sample in results["samples"]["replies"]]


with tempfile.TemporaryDirectory() as scratch:
    data = Path(scratch, "items.jsonl")
    data.write_text("\n".join(json.dumps({"question": text, "answer": "Sure."}) for text in QUESTIONS))
    plain = answers(data)
    hasten.accelerate(model)
    fast = answers(data)

for question, answer in zip(QUESTIONS, fast, strict=True):
    print(f"{question!r} -> {answer!r}")
steps = max(stats.num_steps for stats in model.generate.stats)
tokens = max(stats.num_tokens for stats in model.generate.stats)
print(f"the last batch took {steps} steps for {tokens} tokens; the same answers: {plain == fast}")
