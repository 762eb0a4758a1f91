"""Decides whether two texts that differ do so because of rounding only.

One row and many rows are multiplied in a different order, so their logits differ in the last bits. In float32
that is never an excuse: texts must be equal. In bfloat16 and float16 the first token that differs may be
excused if, right there, the gap between the two tokens' scores is no larger than gaps differ between passes.
After an excused token the texts are different texts, and nothing more can be said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence as AbstractSequence
from dataclasses import dataclass
from typing import Literal

import torch

from hasten.core import Acceptance, SamplingParams
from hasten.models.target import Target
from hasten.sampling import Sampler
from hasten.tree import DraftTree

Verdict = Literal["same", "near tie", "different"]

REPLAY_ROWS = (1, 32, 16, 8, 4)
"""Rows a prompt in the passes whose difference is the noise: plain decoding's, then the fewest passes."""

LogitsAfter = Callable[[list[int], list[int]], torch.Tensor]
"""(prompt token ids, written token ids) -> float32 [vocab], the logits of the next token."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How a text agrees with plain decoding's.

    Where they differ: since which position, how far the scores of the two tokens are apart there, and how far
    the passes; these are compared only until they are known to be far enough apart to excuse it.
    """

    verdict: Verdict
    position: int | None = None
    gap: float = 0.0
    noise: float = 0.0


def compare(
    prompt_ids: list[int],
    plain_ids: list[int],
    token_ids: list[int],
    *,
    ways: AbstractSequence[LogitsAfter],
    params: SamplingParams,
    seed: int,
    least_noise: float,
    is_exact: bool,
) -> Agreement:
    """Compare a text with plain decoding's.

    Args:
        ways: several ways to compute the same logits; the first one is plain decoding's. What lies between
            them is the noise.
        params, seed: how both texts were drawn.
        least_noise: what the noise of a logit is known to be at least.
        is_exact: the dtype leaves no room for rounding.
    """
    shorter = min(len(plain_ids), len(token_ids))
    differing = (index for index in range(shorter) if plain_ids[index] != token_ids[index])
    position = next(differing, None)
    if position is None:
        is_same = len(plain_ids) == len(token_ids)
        return Agreement("same") if is_same else Agreement("different", shorter)
    if is_exact:
        return Agreement("different", position)
    common = plain_ids[:position]
    logits = [ways[0](prompt_ids, common).float()]
    scores = Sampler(params, seed, 0).scores(logits[0], [*prompt_ids, *common])
    gap = float((scores[plain_ids[position]] - scores[token_ids[position]]).abs())
    scale = params.temperature or 1.0
    noise = least_noise / scale
    for way in ways[1:]:
        if gap <= noise:
            break
        found = way(prompt_ids, common).float()
        noise = max(noise, *(_gap_noise(found - other) / scale for other in logits))
        logits.append(found)
    return Agreement("near tie" if gap <= noise else "different", position, gap, noise)


def _gap_noise(difference: torch.Tensor) -> float:
    """The most that the gap between any two tokens moves between two passes; each of them may move."""
    return float(difference.max() - difference.min())


def is_exact(dtype: torch.dtype) -> bool:
    return torch.finfo(dtype).eps < 1e-5


def replay(target: Target, num_rows: int, companions: AbstractSequence[list[int]] = ()) -> LogitsAfter:
    """The way to compute logits that decoding with ``num_rows`` rows a step takes, rows and cache alike.

    Args:
        companions: the prompts that were answered side by side with this one. They take part with the same
            tokens: what the other rows of a pass hold does not matter, how many there are does.
    """
    batch = 1 + len(companions)

    def logits_after(prompt_ids: list[int], written: list[int]) -> torch.Tensor:
        session = target.open()
        session.prefill([prompt_ids, *companions])
        done = 0
        while done < len(written):
            known = written[done : done + num_rows]
            tree = session.fit(DraftTree.chain(known[:-1]))
            session.forward([tree] * batch)
            gained = known[: len(tree) + 1]
            session.keep([Acceptance(list(range(len(tree))), gained) for _ in range(batch)])
            done += len(gained)
        longest = max(map(len, (prompt_ids, *companions))) + len(written)
        room = max(0, (target.max_length or longest + num_rows) - longest)
        filler = session.fit(DraftTree.chain([0] * min(num_rows - 1, room)))
        return session.forward([filler] * batch)[0][0].float()

    return logits_after
