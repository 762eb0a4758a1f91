"""What each verification rule accepts for a target and a draft, and what any could: `hasten verify-lab`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence as AbstractSequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hasten.core import SamplingParams
from hasten.errors import ConfigError
from hasten.models.causal_lm import require_torch
from hasten.models.draft.draft_session import open_draft_session
from hasten.sampling import Sampler
from hasten.text.engine import LanguageModel
from hasten.tree import ROOT
from hasten.verify.bounds import ACCEPTANCES, acceptance, transport_bound

Law = NDArray[np.float64]

BOUNDS = {"bound, distinct": True, "bound, independent": False}
"""name -> whether the candidates are drawn without replacement"""


@dataclass(frozen=True, slots=True)
class Lab:
    """Means over positions of texts that the target wrote."""

    num_positions: int
    agreement: float
    """how often the likeliest tokens of the two are the same"""
    acceptances: dict[str, dict[int, float]]
    """rule, or bound -> number of candidates below a node -> probability that one is accepted"""


def measure(
    language_model: LanguageModel,
    prompts: AbstractSequence[str | list[int]],
    params: SamplingParams,
    widths: AbstractSequence[int],
    num_positions: int = 32,
) -> Lab:
    """Weigh the laws of target and draft at positions spread over what the target writes to the prompts.

    Raises ConfigError without a draft model, for a greedy text, whose laws hold one token, or for widths or
    positions below 1.
    """
    if language_model.resources.draft is None:
        raise ConfigError("verify-lab compares a target with a draft model: give --draft MODEL")
    if params.temperature == 0:
        raise ConfigError(
            "temperature=0 leaves one token in every law, where all rules are the same; raise it"
        )
    if min(widths, default=0) < 1 or num_positions < 1:
        raise ConfigError(f"widths={list(widths)} and num_positions={num_positions} must all be at least 1")
    outputs = language_model.generate(list(prompts), replace(params, n=1), drafter="off")
    texts = [
        (language_model.encode(prompt), output.token_ids)
        for prompt, output in zip(prompts, outputs, strict=True)
    ]
    stride = math.ceil(sum(len(written) for _, written in texts) / num_positions)
    pairs = [
        pair for prompt, written in texts for pair in _laws(language_model, prompt, written, params, stride)
    ]
    agreement = float(np.mean([p.argmax() == q.argmax() for p, q in pairs]))
    found: dict[str, dict[int, float]] = {}
    for name in ("follow", *ACCEPTANCES, *BOUNDS):
        found[name] = {k: float(np.mean([_value(name, p, q, k) for p, q in pairs])) for k in widths}
    return Lab(len(pairs), agreement, found)


def _value(name: str, p: Law, q: Law, k: int) -> float:
    if name == "follow":
        return coupled(p, q, k)
    if name in BOUNDS:
        return transport_bound(p, q, k, distinct=BOUNDS[name])
    return acceptance(name, p, q, k)


def coupled(p: Law, q: Law, k: int, num_samples: int = 64) -> float:
    """How often the target's token is among the draft's k best, both drawn with the same Gumbel noise.

    A mean over ``num_samples`` seeded noises.
    """
    with np.errstate(divide="ignore"):
        target, draft = np.log(p), np.log(q)
    noises = np.random.default_rng(0).gumbel(size=(num_samples, len(p)))
    drawn = (target + noises).argmax(axis=1)
    scores = draft + noises
    ranks = (scores > scores[np.arange(num_samples), drawn][:, None]).sum(axis=1)
    return float(((ranks < k) & (q[drawn] > 0)).mean())


def _laws(
    language_model: LanguageModel,
    prompt: list[int],
    written: list[int],
    params: SamplingParams,
    stride: int,
) -> Iterator[tuple[Law, Law]]:
    """(target's law, draft's law) before every ``stride``-th written token."""
    draft = language_model.resources.draft
    assert draft is not None
    sampler = Sampler(params)
    text = np.array([*prompt, *written], np.int64)
    target = require_torch(language_model.target, "verify-lab")
    logits = target.forward(text[None], np.arange(len(text))[None], None, None)[0]
    session = open_draft_session(draft.model, draft.context)
    for end in range(len(prompt), len(text), stride):
        session.read([draft.to_draft(text[:end].tolist())])
        yield sampler.law(logits[end - 1]), sampler.law(draft.to_target(session.logits(0, ROOT)))
