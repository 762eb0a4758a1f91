"""From what a user gives to a canvas; the only place where text becomes given tokens.

Text that spells the mask token stays text: models infill whatever is masked, so a prompt that could place
masks could make a model complete harmful text around them (DIJA, arXiv 2507.11097). Gaps come from ``Gap``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hasten.diffusion.canvas import Block, Canvas, DenoiserSpec
from hasten.diffusion.drawing import NoiseSource
from hasten.errors import ConfigError, PromptError
from hasten.prompts import tokenised
from hasten.values import prompt_ids, whole

_GAP = re.compile(r"<gap:([^<>]*)>")

Text = str | AbstractSequence[int]
"""a text, or its token ids"""


@dataclass(frozen=True, slots=True)
class Gap:
    """So many tokens to be written. Raises ConfigError for fewer than one."""

    num_tokens: int

    def __post_init__(self) -> None:
        num_tokens = whole(self.num_tokens, "num_tokens")
        if num_tokens < 1:
            raise ConfigError(f"a gap of {num_tokens} tokens cannot work; give it at least one")
        object.__setattr__(self, "num_tokens", num_tokens)


Template = AbstractSequence[Text | Gap]


def parse_template(text: str) -> list[Text | Gap]:
    """Pieces of a text such as "def f(x):<gap:20>return y".

    A text that holds such a mark literally is given as a list of pieces instead. Raises PromptError.
    """
    pieces: list[Text | Gap] = []
    for index, part in enumerate(_GAP.split(text)):
        if index % 2 == 0:
            if part:
                pieces.append(part)
        elif not part.isdecimal() or int(part) < 1:
            raise PromptError(f"<gap:{part}> cannot work; write the number of tokens, as in <gap:20>")
        else:
            pieces.append(Gap(int(part)))
    if not any(isinstance(piece, Gap) for piece in pieces):
        raise PromptError("the template has no gap; mark one as in 'def f(x):<gap:20>return y'")
    return pieces


class CanvasReader:
    """Makes canvases for one denoiser.

    Args:
        tokenizer: of the model; None where prompts are token ids.
        spec, vocab_size, max_length: of the denoiser.
    """

    def __init__(self, tokenizer: Any, spec: DenoiserSpec, vocab_size: int, max_length: int | None) -> None:
        self.tokenizer = tokenizer
        self.spec = spec
        self.vocab_size = vocab_size
        self.max_length = max_length

    def after(self, prompt: Text, num_new_tokens: int, noise: NoiseSource) -> Canvas:
        """The prompt with open positions after it. Raises PromptError."""
        token_ids = self.encode(prompt)
        if not token_ids:
            raise PromptError("the prompt has no tokens; give at least one")
        self._check_length(len(token_ids), num_new_tokens)
        return Canvas.after(token_ids, noise(np.arange(num_new_tokens), 0))

    def with_gaps(self, template: Template, noise: NoiseSource) -> tuple[Canvas, list[Block]]:
        """The pieces of a template in one canvas, and where each gap lies. Raises PromptError."""
        parts: list[list[int]] = []
        gaps: list[Block] = []
        length = 0
        for piece in template:
            if isinstance(piece, Gap):
                gaps.append(Block(length, length + piece.num_tokens))
                parts.append([-1] * piece.num_tokens)
            else:
                parts.append(self.encode(piece, is_first=length == 0))
            length += len(parts[-1])
        if not gaps:
            raise PromptError("the template has no gap; give a list with a Gap among the texts")
        num_open = sum(gap.size for gap in gaps)
        self._check_length(length - num_open, num_open)
        token_ids = np.array([token_id for part in parts for token_id in part], dtype=np.int64)
        is_open = token_ids < 0
        token_ids[is_open] = noise(np.flatnonzero(is_open), 0)
        return Canvas.with_gaps(token_ids, is_open), gaps

    def encode(self, text: Text, *, is_first: bool = True) -> list[int]:
        """Token ids of a text, none of them the mask. Raises PromptError.

        ``is_first``: whether tokens that a tokenizer puts at the beginning of a text belong here.
        """
        if not isinstance(text, str):
            return self._checked(prompt_ids(text, PromptError))
        token_ids = tokenised(text, self.tokenizer, add_special_tokens=is_first)
        if self.spec.mask_id not in token_ids:
            return self._checked(token_ids)
        return self._checked(self._mask_spelt_out(text, is_first))

    def _mask_spelt_out(self, text: str, is_first: bool) -> list[int]:
        """A text that spells the mask token, with that spelling as ordinary characters."""
        mask = self.tokenizer.convert_ids_to_tokens(self.spec.mask_id)
        token_ids: list[int] = []
        for index, part in enumerate(text.split(mask)):
            if index:
                token_ids += self.tokenizer(mask, add_special_tokens=False, split_special_tokens=True)[
                    "input_ids"
                ]
            if part or not index:
                special = is_first and not index
                token_ids += self.tokenizer(part, add_special_tokens=special)["input_ids"]
        return token_ids

    def _checked(self, token_ids: list[int]) -> list[int]:
        if self.spec.mask_id is not None and self.spec.mask_id in token_ids:
            raise PromptError(
                f"the prompt holds the mask token (id {self.spec.mask_id}), which only gaps may; use infill"
            )
        outside = [one for one in token_ids if not 0 <= one < self.vocab_size]
        if outside:
            raise PromptError(f"token id {outside[0]} is not in the vocabulary of {self.vocab_size} tokens")
        return token_ids

    def _check_length(self, num_given: int, num_open: int) -> None:
        length = num_given + num_open
        if self.max_length is not None and length > self.max_length:
            raise PromptError(
                f"a prompt of {num_given} tokens and a canvas of {num_open} are {length} positions, but this "
                f"model takes {self.max_length}; shorten the prompt, or write at most "
                f"{max(0, self.max_length - num_given)} tokens"
            )
