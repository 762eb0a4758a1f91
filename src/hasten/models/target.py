"""What the loop, the requests and the drafters need of a target, whichever library computes it."""

from __future__ import annotations

import math
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence as AbstractSequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import numpy as np
import torch

from hasten.core import Acceptance, LogitsProcessor, Sequence
from hasten.errors import PromptError
from hasten.logits import GREEDY
from hasten.models.probe import ProbeResult
from hasten.models.sessions.session import Session, find
from hasten.tree import DraftTree


class Target(ABC):
    """A model whose text is promised."""

    reads_source = False
    """whether it writes about what an encoder read"""

    @property
    @abstractmethod
    def architecture(self) -> str:
        """What kind of model it is."""

    @property
    @abstractmethod
    def vocab_size(self) -> int: ...

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where its logits are."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The type by which the rounding of its logits may be judged."""

    @property
    @abstractmethod
    def max_length(self) -> int | None:
        """Positions the model was built for, or None if it does not say."""

    @property
    @abstractmethod
    def stop_token_ids(self) -> frozenset[int]:
        """The model's own end-of-text tokens."""

    @property
    @abstractmethod
    def probe(self) -> ProbeResult:
        """What it can verify in one pass; found out once."""

    @abstractmethod
    def open(self, sequences: AbstractSequence[Sequence] = ()) -> Session:
        """A session for one batch."""

    @property
    def keeps_prefixes(self) -> Literal["exactly", "rounded", "never"]:
        """Whether what one text cached may serve another one that begins alike.

        "exactly": with the logits that reading it again would give; "rounded": as passes of other sizes round
        them in 16 bits.
        """
        return "never"

    @property
    @abstractmethod
    def pass_kind(self) -> str:
        """How its passes are run: what one costs is known for this kind alone."""

    @abstractmethod
    def num_bytes(self) -> int:
        """Memory of the weights."""

    def check_prompt(self, token_ids: list[int]) -> None:
        """Raises PromptError for token ids outside the vocabulary, or more than leave room for a new one."""
        check_token_ids(token_ids, self.vocab_size)
        limit = self.max_length
        if limit is not None and len(token_ids) >= limit:
            raise PromptError(
                f"the prompt has {len(token_ids)} tokens, the context holds {limit}; shorten the prompt"
            )

    def logits_processors(
        self,
        prompt_length: int,
        max_length: int,
        source_ids: AbstractSequence[int],
        given: AbstractSequence[LogitsProcessor] = (),
    ) -> list[LogitsProcessor]:
        """Those of one text: what the model's own settings demand, then the caller's, which replace any of
        the same type.

        Args:
            max_length: where a forced end of text stands, prompt included.
        """
        return list(given)

    def undisturbed(self) -> AbstractContextManager[None]:
        """What to hold during a step, so that nothing else takes the processor from its passes."""
        return nullcontext()

    @property
    def is_asynchronous(self) -> bool:
        """Whether the host may go on while the device computes."""
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        """Wait for the device, so that clocks mean something."""
        if self.is_asynchronous:
            torch.cuda.synchronize(self.device)

    def measure_cost(
        self,
        rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64),
        context: int = 256,
        repeats: int = 5,
        seconds: float = math.inf,
    ) -> dict[int, float]:
        """Median milliseconds of one pass over 1 root and ``rows - 1`` draft nodes after a context.

        Args:
            seconds: after which no more passes begin; sizes that were not reached by then are left out.
        """
        start_of_all = time.perf_counter()
        every = rows * (repeats + 1)
        limit = self.max_length or context + len(every) + max(rows)
        context = max(2, min(context, limit - max(rows) - len(every)))
        session = self.open()
        session.prefill([np.random.default_rng(0).integers(0, self.vocab_size, context).tolist()])
        times: dict[int, list[float]] = {}
        length = context  # every pass keeps its root
        for count in every:
            if times and time.perf_counter() - start_of_all > seconds:
                break
            if length + count - 1 > limit:
                continue
            length += 1
            with self.undisturbed():
                found, milliseconds = self.time_pass(session, count)
            times.setdefault(found, []).append(milliseconds)
        return {count: statistics.median(values[1:] or values) for count, values in times.items()}

    def time_pass(self, session: Session, num_rows: int) -> tuple[int, float]:
        """(rows that were run, milliseconds) of a pass over a chain that is rejected; its root is kept."""
        tree = session.fit(
            DraftTree.chain([1 + node % (self.vocab_size - 1) for node in range(num_rows - 1)])
        )
        start = time.perf_counter()
        find(session, [tree], [GREEDY])
        self.synchronize()
        milliseconds = 1000 * (time.perf_counter() - start)
        session.keep([Acceptance([], [0])])
        return len(tree) + 1, milliseconds


def check_token_ids(token_ids: list[int], vocab_size: int) -> None:
    """Raises PromptError for the first one outside the vocabulary."""
    wrong = next((token_id for token_id in token_ids if not 0 <= token_id < vocab_size), None)
    if wrong is not None:
        raise PromptError(f"token id {wrong} is outside the vocabulary of {vocab_size} tokens")
