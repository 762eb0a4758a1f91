# ruff: noqa: PLR0917
"""Where the milliseconds of a step go, and which share of it lies outside the pass.

python bench/step_cost.py MODEL [--dtype float32] [--rows 1,16,32,64] [--contexts 100,2000] [--temperature 0]
python bench/step_cost.py MODEL --random-cache --contexts 1000,32000,131000 --rows 8

Every step verifies a tree of random tokens, so that drafting itself costs next to nothing and nothing is
accepted; candidates of all rows are asked for, as learning drafters do. "pass" is what the model computes,
with all that is found in the logits; "around" is what the host prepares and reads for it. Medians of steps.
Contexts that nobody would wait for are made of random keys and values instead of being read.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import torch
import typer

import hasten
from hasten.core import SamplingParams, Sequence, TopCandidates
from hasten.drafters.base import Forgetful, Observation
from hasten.models.forwards.compiled.thread_pool import ThreadPool
from hasten.models.forwards.forward import Forward
from hasten.models.sessions.session import RowCache
from hasten.policies.base import FixedPolicy
from hasten.sampling import Sampler
from hasten.stopping import StopConditions
from hasten.text.decode import decode
from hasten.tree import DraftTree

PHASES = ("pass", "around", "draft", "verify", "other")


class RandomTrees(Forgetful):
    """Binary trees of random tokens."""

    name = "random"

    def __init__(self, vocab_size: int, top_k: int) -> None:
        self.top_k = top_k
        self._vocab_size = vocab_size
        self._rng = np.random.default_rng(0)

    def begin(self, sequence: Sequence, prompt_candidates: TopCandidates | None) -> None: ...

    def propose(self, sequence: Sequence, budget: int) -> DraftTree:
        tokens = self._rng.choice(self._vocab_size, budget, replace=False)
        return DraftTree(tokens, (np.arange(budget) - 2) // 2)

    def observe(self, sequence: Sequence, observation: Observation) -> None: ...

    def end(self, sequence: Sequence) -> None: ...


class PassClock:
    """Sums up the time in passes: compiled ones, or those of a model's modules."""

    def __init__(self) -> None:
        self.milliseconds = 0.0
        for owner, name in ((ThreadPool, "run"), (Forward, "_run")):
            setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            found = run(*arguments)
            self.milliseconds += 1000 * (time.perf_counter() - start)
            return found

        return timed


def main(
    model: str,
    dtype: str = "float32",
    forward: str = "compiled",
    rows: Annotated[str, typer.Option(help="nodes of a tree and its root")] = "1,16,32,64",
    contexts: str = "100,2000",
    temperature: float = 0.0,
    top_k: Annotated[int, typer.Option(help="candidates of every row; 0 for none")] = 8,
    steps: int = 12,
    random_cache: Annotated[bool, typer.Option(help="random keys and values, nothing is read")] = False,
) -> None:
    target = hasten.load(model, dtype=dtype, forward=forward).target
    target.probe  # noqa: B018
    if random_cache:
        begin_with_random_caches(target)
    clock = PassClock()
    print(f"{target.architecture}, {dtype}, {forward}, {target.probe.mode}, temperature {temperature}")
    print(f"{torch.get_num_threads()} threads")
    print(f"{'context':>8}{'rows':>6}" + "".join(f"{name:>9}" for name in PHASES) + "   outside the pass")
    results = []
    for context in map(int, contexts.split(",")):
        for count in map(int, rows.split(",")):
            spent = measure(target, clock, context, count, temperature, top_k, steps)
            total = sum(spent.values())
            share = 1 - spent["pass"] / total
            columns = "".join(f"{spent[name]:9.2f}" for name in PHASES)
            print(f"{context:8}{count:6}{columns}   {share:.1%}", flush=True)
            results.append({"context": context, "rows": count, **spent, "outside": share})
    print(json.dumps({"model": model, "dtype": dtype, "forward": forward, "steps": results}))


def begin_with_random_caches(target: Any) -> None:
    """Sessions of this target know all but the last tokens of their prompts."""
    open_session = target.open
    example = open_session()
    example.prefill([[1, 2, 3]])
    sample = example.cached(0)

    def random_cache(count: int) -> RowCache:
        layers = [
            pair and tuple(one.new_empty(one.shape[0], count, one.shape[2]).normal_() for one in pair)
            for pair in sample.layers
        ]
        return RowCache(layers, np.arange(count))

    def opened(sequences: Any) -> Any:
        session = open_session(sequences)
        reading = session.reading

        def begun(prompts: list[list[int]], *arguments: Any, **options: Any) -> Any:
            return reading(prompts, known=[random_cache(len(prompt) - 2) for prompt in prompts])

        session.reading = begun
        return session

    target.open = opened


def measure(
    target: Any, clock: PassClock, context: int, rows: int, temperature: float, top_k: int, steps: int
) -> dict[str, float]:
    """Median milliseconds of each phase."""
    prompt = np.random.default_rng(1).integers(0, target.vocab_size, context).tolist()
    params = SamplingParams(max_new_tokens=steps + 3, temperature=temperature)
    sequence = Sequence(
        token_ids=prompt,
        prompt_length=context,
        max_length=context + params.max_new_tokens,
        sampler=Sampler(params, 1),
        stop_rule=StopConditions(frozenset(), params.max_new_tokens, None),
    )
    times: dict[str, list[float]] = {name: [] for name in PHASES}
    before = None
    for step in decode(target, RandomTrees(target.vocab_size, top_k), FixedPolicy(rows - 1), [sequence]):
        if before is not None:  # the first one makes room
            in_pass = clock.milliseconds - before if clock.milliseconds else step.milliseconds["forward"]
            times["pass"].append(in_pass)
            times["around"].append(step.milliseconds["forward"] - in_pass)
            for name in PHASES[2:]:
                times[name].append(step.milliseconds[name])
        before = clock.milliseconds
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    typer.run(main)
