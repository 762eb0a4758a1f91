"""Finds out, by trying, what a model can verify in one pass.

A model that ignores or misreads a tree mask writes wrong text without any error, so no list of names is
trusted: the very session code that will decode runs on small random trees of rows that differ, with a
rejected branch left behind and another session in between, and every logit is compared with separate passes
over the plain token sequences. Rounding to 16 bits changes logits by as much as a wrong mask can, so all is
computed in float32 first, whatever the dtype of the weights (full_precision.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PretrainedConfig

from hasten.core import Acceptance
from hasten.models.forwards.forward import Forward
from hasten.models.forwards.full_precision import FullPrecision
from hasten.models.sessions.attention import short_windows
from hasten.models.sessions.chain_session import ChainSession
from hasten.models.sessions.own_cache import forgotten_by_its_cache
from hasten.models.sessions.session import Session
from hasten.models.sessions.tree_session import TreeSession
from hasten.tree import DraftTree

Mode = Literal["tree", "chain", "chain with snapshots", "off", "recompute"]

SESSIONS: dict[Mode, Callable[[Forward], Session]] = {
    "tree": TreeSession,
    "chain": lambda forward: ChainSession(forward, "crop"),
    "chain with snapshots": lambda forward: ChainSession(forward, "snapshot"),
    "off": lambda forward: ChainSession(forward, "snapshot", drafts=False),
    "recompute": lambda forward: ChainSession(forward, "recompute"),
}
"""From the most to the least a model can do."""

_log = logging.getLogger("hasten")

_NUM_TEXTS = 6
_NUM_NODES = 10
_NUM_DECOYS = 40
_LONGEST_WINDOW = 2048
_ALLOWED = 1e-2
"""of what one wrong token changes, in float32: see bench/probe_errors.py for both kinds of error"""
_ALLOWED_ROUNDED = 0.5
"""the same in 16 bits, of the middle row: rounding alone changes single rows of Gemma 3 by two thirds"""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What the probe found.

    ``noise`` is the largest difference between the two ways to compute the logits of a token, as a share of
    what one wrong token changes (L2 over the vocabulary); ``rejected`` says for every better mode why it
    cannot be used.
    """

    mode: Mode
    noise: float
    rejected: dict[str, str]


class PlainPasses(Protocol):
    """What the probe needs of a model besides its sessions; see Forward."""

    dtype: torch.dtype
    text_config: Any

    @property
    def vocab_size(self) -> int: ...

    def __call__(
        self,
        token_ids: NDArray[np.int64],
        position_ids: NDArray[np.int64] | None,
        attention_mask: None,
        cache: None,
        logits_to_keep: int = 0,
    ) -> torch.Tensor: ...

    def select(self, rows: list[int]) -> PlainPasses: ...


def probe(
    forward: Any, num_rows: int = 2, sessions: Mapping[Mode, Callable[[Any], Session]] = SESSIONS
) -> ProbeResult:
    """The best mode that reproduces plain passes over the same tokens.

    Args:
        forward: PlainPasses, as the sessions take them.
        num_rows: rows of the batch to try, of different texts.
        sessions: what there is to try, the best first. "recompute" is the answer where none will do.
    """
    trials = _Trials(forward, num_rows)
    rejected: dict[str, str] = {}
    if not trials.heed_windows and isinstance(forward, Forward):
        why_not = forgotten_by_its_cache(forward)
        if why_not:
            return ProbeResult("recompute", 0.0, {"recompute": why_not})
    for mode, start in sessions.items():
        noise, why_not = trials.run(lambda start=start: start(forward))  # type: ignore[misc]
        if not why_not:
            return ProbeResult(mode, noise, rejected)
        if trials.give_nan:
            # What is compared with NaN says nothing; the text's own NaN is found where its token is chosen.
            why_not = (
                "plain passes give NaN: load the model in float32 (dtype='float32'), or check its weights"
            )
            _log.warning("nothing can be drafted: %s", why_not)
            untried = [each for each in sessions if each not in rejected and each != "recompute"]
            return ProbeResult("recompute", 0.0, rejected | dict.fromkeys(untried, why_not))
        rejected[mode] = why_not
    return ProbeResult("recompute", 0.0, rejected)


def reproduces_plain_passes(forward: Any, start: Callable[[], Session]) -> bool:
    """Whether sessions of one row pass the probe's own test. One that raises does not."""
    return not _Trials(forward, 1).run(start)[1]


class _Trials:
    """The trials of one model: in float32 wherever that can be had, and as it is."""

    def __init__(self, forward: Any, num_rows: int) -> None:
        plain = forward.plain_passes() if isinstance(forward, Forward) else forward
        self._settings: list[_Setting] = []
        self.heed_windows = _heed_windows(plain)
        config = plain.text_config
        self._windows = (lambda: short_windows(config)) if self.heed_windows else nullcontext
        with self._windows():
            self._prepare(forward, plain, num_rows)

    def _prepare(self, forward: Any, plain: Any, num_rows: int) -> None:
        texts: list[_Text] | None = None
        is_exact = torch.finfo(plain.dtype).eps < 1e-5 or getattr(forward, "rows_are_exact", False)
        if is_exact or getattr(forward, "runs_modules", False):
            context = nullcontext if is_exact else FullPrecision
            try:
                with context():
                    texts = _texts(plain, num_rows)
                    self._settings.append(_Setting(_references(plain, texts), context, _ALLOWED))
            except Exception as problem:
                if is_exact:
                    raise
                _log.info(
                    "the probe cannot compute this model in float32 (%s): it allows for rounding", problem
                )
        if not is_exact:
            references = _references(plain, texts or _texts(plain, num_rows))
            self._settings.append(_Setting(references, nullcontext, _ALLOWED_ROUNDED))

    @property
    def give_nan(self) -> bool:
        """Whether logits of the model's own passes, as far as they were needed, are NaN."""
        return any(reference.has_nan for setting in self._settings for reference in setting.references)

    def run(self, start: Callable[[], Session]) -> tuple[float, str]:
        """(the largest error, why the sessions will not do or "")"""
        noise = 0.0
        for setting in self._settings:
            try:
                with self._windows(), setting.context():
                    found = _errors(start, setting.references)
            except Exception as problem:  # whatever a model does with a mask it cannot take
                message = str(problem).splitlines()[0] if str(problem) else ""
                return np.inf, f"{type(problem).__name__}: {message}"
            where, error = setting.judge(found)
            if not error <= setting.allowed:  # NaN is wrong
                return error, f"logits differ {where} by {error:.3g} of what a wrong token changes"
            noise = max(noise, error)
        return noise, ""


def _heed_windows(plain: Any) -> bool:
    """Whether the model's own passes heed the windows that the config says at the time of the pass."""
    if not isinstance(plain.text_config, PretrainedConfig):
        return False
    high = min(plain.vocab_size, 20_000)
    text = np.random.default_rng(0).integers(0, high, (1, 12))
    one = plain.select([0])
    arguments = (text, np.arange(12)[None], None, None, 1)
    with short_windows(plain.text_config):
        short = one(*arguments)
    return not torch.equal(short, one(*arguments))


@dataclass(frozen=True, slots=True)
class _Setting:
    references: list[_Reference]
    context: Callable[[], AbstractContextManager[Any]]
    allowed: float

    def judge(self, errors: dict[str, list[float]]) -> tuple[str, float]:
        """(where it is, the error): the largest one, or the middle one where rounding makes outliers."""
        every = [error for stage in errors.values() for error in stage]
        if self.allowed == _ALLOWED_ROUNDED:
            return "in 16 bits", float(np.median(every))
        where = max(errors, key=lambda stage: float(np.max(np.nan_to_num(errors[stage], nan=np.inf))))
        return where, float(np.max(errors[where]))


def _references(plain: PlainPasses, texts: list[_Text]) -> list[_Reference]:
    return [_Reference(plain.select([row]), text) for row, text in enumerate(texts)]


@dataclass(frozen=True, slots=True)
class _Text:
    """Random tokens of a row: a prompt, nodes of trees, nodes that are rejected."""

    token_ids: list[int]
    scale: float = 0.0
    """what a wrong token changes logits by, L2"""

    @classmethod
    def random(cls, plain: PlainPasses, seed: int, shorter: int = 0) -> _Text:
        high = min(plain.vocab_size, 20_000)
        size = _NUM_NODES + _NUM_DECOYS + 8 - shorter + _hidden_window(plain.text_config)
        # T5Gemma hides pad tokens from a plain pass, wherever they are.
        choices = np.setdiff1d(np.arange(high), [getattr(plain.text_config, "pad_token_id", None) or 0])
        return cls(np.random.default_rng(seed).choice(choices, size, replace=len(choices) < size).tolist())

    @property
    def nodes(self) -> list[int]:
        return self.token_ids[:_NUM_NODES]

    @property
    def decoys(self) -> list[int]:
        return self.token_ids[_NUM_NODES : _NUM_NODES + _NUM_DECOYS]

    @property
    def prompt(self) -> list[int]:
        return self.token_ids[_NUM_NODES + _NUM_DECOYS :]


def _texts(plain: PlainPasses, num_rows: int) -> list[_Text]:
    """Errors stand out in a text whose logits depend much on its tokens: the first row gets the best of some.

    A wrongly visible or hidden token changes logits by about as much as swapping one does.
    """
    best = _Text([])
    for seed in range(_NUM_TEXTS):
        text = _Text.random(plain, seed)
        reference = _Reference(plain.select([0]), text)
        logits = reference.logits(text.prompt)
        leak = float((logits - reference.logits([*text.prompt[:-2], text.nodes[0], text.prompt[-1]])).norm())
        if not (best.token_ids and leak <= best.scale):
            best = replace(text, scale=leak)
        if leak > 0.3 * float(logits.norm()):
            break
    others = [_Text.random(plain, _NUM_TEXTS + row, shorter=row) for row in range(1, num_rows)]
    return [best, *(replace(text, scale=best.scale) for text in others)]


class _Reference:
    """Logits of plain passes over whole token sequences."""

    def __init__(self, forward: PlainPasses, text: _Text) -> None:
        self._forward = forward
        self.text = text
        self._known: dict[tuple[int, ...], torch.Tensor] = {}
        self.logits(text.prompt)  # by a pass that ends there: what is to come must not matter (XLNet)

    @property
    def has_nan(self) -> bool:
        return any(bool(row.isnan().any()) for row in self._known.values())

    def error(self, found: torch.Tensor, token_ids: list[int]) -> float:
        """Of logits after a text, relative to what a wrong token changes.

        The norm over the vocabulary: the largest of 262,144 differences says how many tokens there are.
        """
        return float((found.float() - self.logits(token_ids)).norm()) / max(self.text.scale, 1e-30)

    def logits(self, token_ids: list[int]) -> torch.Tensor:
        """float32 [vocab] after ``token_ids``; one pass gives the last prefixes of the same text as well."""
        key = tuple(token_ids)
        if key not in self._known:
            positions = np.arange(len(key))[None]
            rows = self._forward(np.asarray([key]), positions, None, None, logits_to_keep=16)[0, -16:]
            for back, row in enumerate(rows.flip(0).float()):
                self._known.setdefault(key[: len(key) - back], row)
        return self._known[key]


def _hidden_window(config: Any) -> int:
    """The longest window that attention.py makes no mask for: the probe has to look beyond it."""
    sizes = [
        value
        for name, value in config.to_dict().items()
        if "window" in name and name not in ("sliding_window", "max_window_layers") and type(value) is int
    ]
    return min(max(sizes, default=0), _LONGEST_WINDOW)


def _errors(start: Callable[[], Session], references: list[_Reference]) -> dict[str, list[float]]:
    """A forked tree of which one branch is accepted, many rejected siblings, then a chain over all holes.

    The more holes, the clearer a model shows that it counts cache slots and not positions (ALiBi). Rows have
    texts of their own, and another session runs in between: some models keep a state in their modules.
    """
    session, other = start(), start()
    rows = [_Row(reference) for reference in references]
    session.prefill([row.text for row in rows])
    forks = [row.fork(session) for row in rows]
    errors = {"over a fork": _step_errors(session, rows, forks)}
    other.prefill([row.reference.text.decoys[:8] for row in rows])  # some models end after few positions
    other.forward([DraftTree()] * len(rows))
    _keep(session, rows, forks, 2, 5)
    wide = [row.wide(session) for row in rows]
    session.forward(wide)
    _keep(session, rows, wide, 6, 7)
    chains = [session.fit(DraftTree.chain(row.reference.text.nodes[8:])) for row in rows]
    errors["beside rejected tokens and another session"] = _step_errors(session, rows, chains)
    return errors


class _Row:
    """A text, and the trees that are tried after it."""

    def __init__(self, reference: _Reference) -> None:
        self.reference = reference
        self.text = list(reference.text.prompt)

    def fork(self, session: Session) -> DraftTree:
        return session.fit(
            DraftTree(self.reference.text.nodes[:5], [-1, -1, 1, 0, 2], [0.5, 0.6, 0.5, 0.3, 0.4])
        )

    def wide(self, session: Session) -> DraftTree:
        tokens = [*self.reference.text.decoys, self.reference.text.nodes[6]]
        return session.fit(DraftTree(tokens, [-1] * len(tokens), [0.1] * (len(tokens) - 1) + [0.9]))


def _keep(session: Session, rows: list[_Row], trees: list[DraftTree], last: int, bonus: int) -> None:
    """Accept in each row the path to the node with the token number ``last``, if the tree has it."""
    acceptances = []
    for row, tree in zip(rows, trees, strict=True):
        wanted = row.reference.text.nodes[last]
        path = next((tree.path_to(node) for node in range(len(tree)) if tree.token_ids[node] == wanted), [])
        gained = [*tree.token_ids[path].tolist(), row.reference.text.nodes[bonus]]
        acceptances.append(Acceptance(path, gained))
        row.text += gained
    session.keep(acceptances)


def _step_errors(session: Session, rows: list[_Row], trees: list[DraftTree]) -> list[float]:
    """Of the logits of all nodes of all rows."""
    errors = []
    for row, tree, logits in zip(rows, trees, session.forward(trees), strict=True):
        paths = [[], *(tree.path_to(node) for node in range(len(tree)))]
        ends = [[*row.text, *tree.token_ids[path].tolist()] for path in paths]
        for node in sorted(range(len(ends)), key=lambda node: -len(ends[node])):  # the leaves first
            errors.append(row.reference.error(logits[node], ends[node]))
    return errors
