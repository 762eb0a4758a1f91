"""Finds out, by trying, whether a transformers model looks ahead, and what its masks and caches do.

A decoder that stays causal, or misreads a mask, writes wrong text without any error, so no list of names is
trusted: the very session code that will decode runs on small canvases, and logits are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.diffusion.canvas import DenoiserSession, DenoiserSpec, Ids, Query
from hasten.errors import ModelError
from hasten.models.sessions.attention import AttentionKinds

_LENGTH = 12
OpenSession = Callable[[int, bool], DenoiserSession]
"""(length of its only canvas, whether it keeps rows); it pads where it likes"""


@dataclass(frozen=True, slots=True)
class Findings:
    """What the probe found."""

    leak: float
    """how much the last token of a canvas changes the logits of the first"""
    can_pad: bool
    """whether canvases of different lengths may share a pass"""


def check_attention(model: Any, spec: DenoiserSpec) -> None:
    """Makes every layer bidirectional. Raises ModelError where config or spec tell that this cannot work."""
    if spec.attention not in {"full", "block-causal"}:
        raise ModelError(
            f"attention={spec.attention!r} is not what MaskedLM computes; load it by its own class"
        )
    if model.get_output_embeddings() is None:
        raise ModelError(f"{type(model).__name__} has no language-model head; load it with one")
    config = model.config.get_text_config(decoder=True)
    vocab_size = model.get_input_embeddings().weight.shape[0]
    if spec.mask_id is not None and not 0 <= spec.mask_id < vocab_size:
        raise ModelError(f"mask_id={spec.mask_id} is no token of this model, which knows {vocab_size}")
    try:
        windows = {kind: size for kind, size in AttentionKinds.of(config).sizes.items() if size is not None}
    except KeyError as kind:
        raise ModelError(
            f"layers of kind {kind} read from left to right only; a denoiser looks ahead"
        ) from None
    if windows:
        found = ", ".join(f"{kind} of {size}" for kind, size in windows.items())
        raise ModelError(f"some layers see a window only ({found}); load with sliding_window=None")
    model.config.is_causal = config.is_causal = False


class DenoiserProbe:
    """Random canvases, run by the sessions of a denoiser.

    Args:
        name: of the model, for messages.
        vocab_size: ids to draw from.
        is_precise: whether the model computes in float32 or better.
    """

    def __init__(
        self, name: str, spec: DenoiserSpec, vocab_size: int, open_session: OpenSession, *, is_precise: bool
    ) -> None:
        self._name, self._spec, self._open = name, spec, open_session
        size = spec.block_size
        self._inside = _LENGTH if size is None else min(size, _LENGTH)
        self._length = _LENGTH if size is None else 2 * size
        drawn = np.random.default_rng(0).integers(0, vocab_size, self._length)
        self._text = np.asarray(drawn, dtype=np.int64)
        self._other = (self._text + 1 + vocab_size // 2) % vocab_size
        self._tolerance = 1e-3 if is_precise else 0.1

    def run(self) -> Findings:
        """Raises ModelError for a model that reads from left to right, or ignores the borders of blocks."""
        try:
            return self._run()
        except ModelError:
            raise
        except Exception as problem:  # whatever a model does with a mask it cannot take
            raise ModelError(f"{self._name} does not run as a denoiser: {problem!r}") from problem

    def _run(self) -> Findings:
        ahead = self._influence(self._inside - 1, self._inside)
        behind = self._influence(0, self._inside)
        if self._inside > 1 and behind[-1] > 0 and not ahead[0] > 0:
            raise ModelError(
                f"{self._name} reads from left to right only, whatever config.is_causal says; "
                "a denoiser looks ahead"
            )
        if self._spec.block_size is not None:
            beyond = self._influence(self._length - 1, self._length)[: self._spec.block_size]
            if beyond.max() > self._allowed():
                raise ModelError(
                    f"{self._name} sees later blocks, so it does not honour a 4-D mask; "
                    "load it with attn_implementation='sdpa'"
                )
        return Findings(float(ahead[0]), self._can_pad())

    def why_rows_fail(self) -> str:
        """Why rows cannot be kept; empty if they can."""
        try:
            error = self._row_error()
        except Exception as problem:  # whatever a model does with a cache it cannot take
            return f"{type(problem).__name__}: {problem}"
        allowed = self._allowed()
        return "" if error <= allowed else f"logits differ by {error:.3g} (allowed {allowed:.3g})"

    def _logits(self, *queries: Query, keeps_rows: bool = False) -> list[torch.Tensor]:
        session = self._open(self._length, keeps_rows)
        return [one.logits for one in session.forward(queries)]

    def _query(self, text: Ids) -> Query:
        return Query(sequence=0, token_ids=text, wanted=np.arange(len(text)))

    def _influence(self, place: int, length: int) -> NDArray[np.float64]:
        """float64 [length]: how much the logits change when one token of a canvas does."""
        text = self._text[:length].copy()
        (before,) = self._logits(self._query(text))
        text[place] = self._other[place]
        (after,) = self._logits(self._query(text))
        return _difference(before, after)

    def _allowed(self) -> float:
        """A wrongly visible or hidden token changes logits by about as much as swapping one does."""
        change = np.delete(self._influence(0, self._length), 0)
        if change.max(initial=0.0) > 0:
            return self._tolerance * float(change.max())
        (logits,) = self._logits(self._query(self._text))  # tokens that see nothing but themselves
        return self._tolerance * float(logits[torch.isfinite(logits)].abs().max())

    def _can_pad(self) -> bool:
        short, whole = self._query(self._text[: self._length - 1]), self._query(self._text)
        alone = [self._logits(query)[0] for query in (short, whole)]
        try:
            together = self._logits(short, whole)
        except Exception:  # whatever a model does with a mask it cannot take
            return False
        errors = [_difference(*pair).max() for pair in zip(alone, together, strict=True)]
        return float(np.max(errors)) <= self._allowed()

    def _row_error(self) -> float:
        """Stores one text, then computes some rows of it again, beside a batch of copies."""
        session = self._open(self._length, True)
        whole = replace(self._query(self._text), stores=True)
        (expected,) = session.forward([whole])
        some = np.arange(0, self._length, 3)
        again = replace(whole, wanted=some, computed=some)
        found = session.forward([replace(again, stores=False)] * 2) + session.forward([again])
        return float(
            np.max([_difference(one.logits, expected.at(some).logits).max() for one in found])
        )  # unlike max, never loses a NaN


def _difference(left: torch.Tensor, right: torch.Tensor) -> NDArray[np.float64]:
    """float64 [rows]: the largest difference of a logit; the mask token's are equal, and infinite."""
    same = left == right
    difference = torch.where(same, 0.0, left.double() - right.double()).abs().amax(-1)
    return np.asarray(difference.cpu().numpy())
