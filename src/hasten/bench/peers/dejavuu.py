"""dejavuu: retrieval drafters on transformers' own passes, by its engine, for a single prompt.

Its drafters learn from prompt to prompt, as hasten's do. The package asks for Python 3.13 but runs on 3.11
too; and its cache is cut by a length, which transformers 5 wants as the number of tokens to take away. At a
temperature it draws random numbers of its own.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache
from typing import Any

from hasten.bench.methods import Answer
from hasten.core import SamplingParams
from hasten.errors import MissingExtra

DEFAULT = "suffix-recycle-merge"
"""what "dejavuu" stands for: its longest steps on Gemma 3 270M of those tried, see docs/peers.md"""
METHODS = (
    "pld",
    "copyspec",
    "pld-plus",
    "adapld",
    "anpd",
    "cacheback",
    "lookahead",
    "logit-spec",
    "ngram-trie",
    "token-recycling",
    "suffix-recycle",
    "suffix-recycle-merge",
    "suffix-recycle-tail",
    "pld-recycle",
    "suffix-decoding",
    "sam-decoding",
    "stand",
    "asam",
    "asd",
    "asd-verify",
)
"""its own names, with "-" for "_"; each also with CHAIN behind it"""
CHAIN = "-chain"
_INSTALL = (
    "it needs dejavuu: pip install --ignore-requires-python --no-deps dejavuu, then "
    "pip install loguru onnxruntime pydantic"
)
_BUDGET = 8
_WIDTH = 2
"""drafted tokens a step and children of a node: the package's own defaults"""


class DejavuuMethod:
    """One of its methods, verified as trees, or as chains where the method's name ends so.

    Args:
        method: one of METHODS, with CHAIN behind it for chains.
        model, tokenizer: transformers' own, used as they are.
        stop: end-of-text tokens.

    Raises MissingExtra without the package.
    """

    def __init__(self, name: str, method: str, model: Any, tokenizer: Any, stop: frozenset[int]) -> None:
        self.name = name
        self._is_tree = not method.endswith(CHAIN)
        self._method = method.removesuffix(CHAIN).replace("-", "_")
        self._tokenizer = tokenizer
        self._stop = stop
        self._engine, self._drafters, backend = _library()
        self._verifier = _verifier_class(backend)(model)
        self._drafter = self._drafters.make_drafter(self._method)

    def start(self, prompts: list[list[int]], params: SamplingParams) -> None:
        self.answer(prompts, replace(params, max_new_tokens=min(8, params.max_new_tokens)))
        self._drafter = self._drafters.make_drafter(self._method)

    def answer(self, prompts: list[list[int]], params: SamplingParams) -> Answer:
        """Of its times, "draft" is proposing and learning, "forward" a pass with its logits copied."""
        [prompt] = prompts
        stop: frozenset[int] = frozenset() if params.ignore_eos else self._stop
        start = time.perf_counter()
        found = self._engine.generate(
            self._verifier,
            prompt,
            params.max_new_tokens,
            self._drafter,
            _BUDGET,
            _AnyOf(stop),
            tree=self._is_tree,
            width=_WIDTH,
            sampler=self._sampler(params),
        )
        text = str(self._tokenizer.decode(found.tokens, skip_special_tokens=True))
        seconds = time.perf_counter() - start
        spent = {"draft": found.draft_s + found.learn_s, "forward": found.verify_s}
        spent["other"] = seconds - found.prefill_s - sum(spent.values())
        milliseconds = {phase: 1000 * one for phase, one in spent.items()}
        return Answer(
            [found.tokens], [text], seconds, found.steps, found.steps, found.drafted, milliseconds,
            prefill_seconds=found.prefill_s,
        )  # fmt: skip

    def _sampler(self, params: SamplingParams) -> Any:
        if params.temperature == 0:
            return None
        from dejavuu.core.sampling import Sampler

        return Sampler(params.temperature, 1.0, params.seed or 0)


class _AnyOf:
    """Equal to each of these tokens: the engine compares with one end-of-text token only."""

    def __init__(self, token_ids: frozenset[int]) -> None:
        self._token_ids = token_ids

    def __eq__(self, other: object) -> bool:
        return other in self._token_ids

    __hash__ = None  # type: ignore[assignment]


@cache
def _library() -> tuple[Any, Any, Any]:
    try:
        from dejavuu import drafters
        from dejavuu.core import engine
        from dejavuu.decoders import hf
    except ImportError as problem:
        raise MissingExtra(_INSTALL) from problem
    from loguru import logger

    logger.remove()
    return engine, drafters, hf


@cache
def _verifier_class(backend: Any) -> Any:
    class OnModel(backend.HFBackend):  # type: ignore[misc]
        """The package's own, on a model that is there already."""

        def __init__(self, model: Any) -> None:
            import torch

            self.device, self.emit_hidden = model.device, True
            self._model, self._torch = model, torch

        def rollback_kv(self, kv: Any, committed: int) -> Any:
            kv.crop(committed - kv.get_seq_length())
            return kv

    return OnModel
