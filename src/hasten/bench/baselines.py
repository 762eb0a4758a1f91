"""The baselines by name: transformers' own ``generate``, and other programs that run the same weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch

from hasten.bench.methods import ASSISTED, COMPILED, Method, TransformersMethod
from hasten.bench.peers.dejavuu import CHAIN, DEFAULT, METHODS

if TYPE_CHECKING:
    from hasten.bench.peers.llamacpp import LlamaCpp


class Given:
    """What baselines are made of.

    Args:
        stock: transformers' model and tokenizer, the layers untouched.
        stock_draft: the same of a draft model, or None.
        stop: end-of-text tokens.
    """

    def __init__(
        self, stock: tuple[Any, Any], stock_draft: tuple[Any, Any] | None, stop: frozenset[int]
    ) -> None:
        self.stock, self.stock_draft, self.stop = stock, stock_draft, stop

    @cached_property
    def llamacpp(self) -> LlamaCpp:
        """One copy of the weights for both ways to decode."""
        from hasten.bench.peers.llamacpp import LlamaCpp

        return LlamaCpp(self.stock[0], torch.get_num_threads())


@dataclass(frozen=True, slots=True)
class Baseline:
    """How a baseline is made, and what has to be known of it before."""

    make: Callable[[str, Given], Method]
    """Raises MissingExtra if its package is not installed, and ModelError if it cannot run the model."""
    is_one_by_one: bool = False
    """answers a single prompt at a time"""
    needs_draft: bool = False
    is_peer: bool = False
    """another program with kernels of its own: its rounding differs, so another text of it is no error"""


def _transformers(name: str, given: Given) -> Method:
    return TransformersMethod(name, *given.stock, assistant=given.stock_draft)


def _llamacpp(name: str, given: Given, *, looks_up: bool) -> Method:
    from hasten.bench.peers.llamacpp import LOOKUP_TOKENS, LlamaCppMethod

    model, tokenizer = given.stock
    num_lookup = LOOKUP_TOKENS[model.device.type] if looks_up else 0
    return LlamaCppMethod(name, given.llamacpp, tokenizer, given.stop, num_lookup)


def _openvino(name: str, given: Given) -> Method:
    from hasten.bench.peers.openvino import OpenVinoMethod

    return OpenVinoMethod(name, *given.stock, given.stop, torch.get_num_threads())


def _dejavuu(name: str, given: Given, *, method: str) -> Method:
    from hasten.bench.peers.dejavuu import DejavuuMethod

    return DejavuuMethod(name, method, *given.stock, given.stop)


def _dejavuu_baselines() -> dict[str, Baseline]:
    named = {f"dejavuu-{method}{shape}": method + shape for method in METHODS for shape in ("", CHAIN)}
    every = {"dejavuu": DEFAULT, **named}
    return {
        name: Baseline(partial(_dejavuu, method=method), is_one_by_one=True, is_peer=True)
        for name, method in every.items()
    }


BASELINES: dict[str, Baseline] = {
    "hf": Baseline(_transformers),
    COMPILED: Baseline(_transformers),
    "hf-prompt-lookup": Baseline(_transformers, is_one_by_one=True),
    ASSISTED: Baseline(_transformers, is_one_by_one=True, needs_draft=True),
    "llamacpp": Baseline(partial(_llamacpp, looks_up=False), is_one_by_one=True, is_peer=True),
    "llamacpp-lookup": Baseline(partial(_llamacpp, looks_up=True), is_one_by_one=True, is_peer=True),
    "openvino-genai": Baseline(_openvino, is_one_by_one=True, is_peer=True),
    **_dejavuu_baselines(),
}
