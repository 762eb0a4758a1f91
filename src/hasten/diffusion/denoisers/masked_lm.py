"""An unmodified transformers model as a denoiser: many canvases, any rows, one model call where possible.

A decoder is run with ``config.is_causal=False``, which transformers' own masks honour; a probe makes sure.
One canvas, or several of one shape, then need no mask at all. Block-causal denoisers, and calls that pad,
get a 4-D mask. Logits are computed for the wanted rows only. Knows no policy; how the model was trained, the
spec tells.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence as AbstractSequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from hasten.diffusion.canvas import DenoiserSpec, Ids, Prediction, Query
from hasten.diffusion.denoisers.denoiser_probe import DenoiserProbe, check_attention
from hasten.diffusion.denoisers.row_cache import ComputedRows, KeptRows, RowView
from hasten.errors import ModelError
from hasten.models.forwards.forward import Forward
from hasten.models.sessions.attention import additive_mask

_FREE_PADDING = 64
"""Rows that may be padded for nothing: a second model call costs more."""
_MAX_PADDING = 1.5
"""Beyond that, how often the rows of a call may be those that were asked for."""


class MaskedLM:
    """See canvas.Denoiser. For decoders of transformers with full attention in every layer.

    Sets ``config.is_causal=False`` on the model.

    Args:
        model: a transformers model with a language-model head, in evaluation mode.
        spec: how it was trained; its attention is "full" or "block-causal".

    Raises ModelError, with the reason, for a model that cannot look ahead or does not honour its masks.
    """

    def __init__(self, model: Any, spec: DenoiserSpec) -> None:
        self.model, self.spec = model, spec
        check_attention(model, spec)
        self.forward = WantedForward(model)
        self._probe = DenoiserProbe(
            type(model).__name__,
            spec,
            self.vocab_size,
            lambda length, keeps_rows: MaskedSession(self.forward, spec, [length], keeps_rows=keeps_rows),
            is_precise=torch.finfo(self.forward.dtype).eps < 1e-5,
        )
        self.findings = self._probe.run()

    @property
    def vocab_size(self) -> int:
        return self.forward.vocab_size

    @property
    def max_length(self) -> int | None:
        """Positions the model was built for, or None if its config does not say."""
        limit = getattr(self.forward.text_config, "max_position_embeddings", None)
        return int(limit) if limit else None

    def open(self, lengths: AbstractSequence[int], *, keeps_rows: bool) -> MaskedSession:
        """Raises ModelError where rows shall be kept and the model does not read them as they were."""
        if keeps_rows and self._why_rows_fail:
            raise ModelError(f"this model cannot keep rows: {self._why_rows_fail}; use the cache 'none'")
        return MaskedSession(
            self.forward, self.spec, lengths, keeps_rows=keeps_rows, can_pad=self.findings.can_pad
        )

    @cached_property
    def _why_rows_fail(self) -> str:
        return self._probe.why_rows_fail()


class WantedForward(Forward):
    """A pass that hands only the wanted rows to the model's head."""

    @torch.inference_mode()
    def wanted(
        self,
        token_ids: Ids,
        position_ids: Ids,
        attention_mask: torch.Tensor | None,
        cache: Any | None,
        rows: Ids,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [wanted, vocab] and last hidden states [batch, rows, hidden].

        Args:
            token_ids, position_ids: int [batch, rows].
            rows: int [wanted], which of the batch * rows.
        """
        index = torch.from_numpy(rows).to(self.device)
        thread, heard = threading.get_ident(), []

        def choose(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
            if threading.get_ident() != thread:  # the same model at work for someone else
                return None
            heard.append(inputs[0])
            return (inputs[0].reshape(-1, inputs[0].shape[-1])[index][None],)

        handle = self.model.get_output_embeddings().register_forward_pre_hook(choose)
        try:
            logits = self(token_ids, position_ids, attention_mask, cache)
        finally:
            handle.remove()
        return logits[0], heard[-1]


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """One query, as rows of a model call."""

    query: Query
    positions: Ids
    """[rows]"""
    kept: Ids
    """[rows]: the same, -1 for those that are there for their logits only"""
    limits: Ids
    """[rows]: each sees the positions below its limit"""
    wanted: Ids
    """[wanted]: the row that predicts each wanted position"""

    @property
    def end(self) -> int:
        return int(self.limits.max())

    @property
    def uses_rows(self) -> bool:
        return self.query.computed is not None or self.query.stores


class MaskedSession:
    """See canvas.DenoiserSession.

    Where logits are shifted, the row before a wanted one is run as well if it is not among the computed. Its
    keys and values are not used, so that what is stored does not depend on what was wanted. Two queries of
    one pass must not store rows of one canvas.

    Args:
        can_pad: whether canvases of different shapes may share a model call.
    """

    def __init__(
        self,
        forward: WantedForward,
        spec: DenoiserSpec,
        lengths: AbstractSequence[int],
        *,
        keeps_rows: bool,
        can_pad: bool = True,
    ) -> None:
        self._spec, self._forward, self._can_pad = spec, forward, can_pad
        self._kept = KeptRows(lengths) if keeps_rows else None

    def forward(self, queries: AbstractSequence[Query]) -> list[Prediction]:
        """Raises ValueError for a query that needs rows where none are kept, or one that was never stored."""
        asked = [self._rows(query) for query in queries]
        groups = list(self._groups(asked))
        found: dict[int, Prediction] = {}
        views = []
        for group in groups:
            view = self._view(group, alone=len(groups) == 1)
            views.append(view)
            for rows, prediction in zip(group, self._call(group, view), strict=True):
                found[id(rows)] = prediction
        for view in views:  # only now: all queries see what was stored before the pass
            if view is not None:
                view.keep()
        return [found[id(rows)] for rows in asked]

    def _rows(self, query: Query) -> _Rows:
        if query.chain is not None:
            raise ValueError("a chain needs an any-order denoiser")
        length = len(query.token_ids)
        predictors = np.maximum(query.wanted - self._spec.logits_shift, 0)
        positions = kept = np.arange(length) if query.computed is None else query.computed
        if self._spec.logits_shift:
            positions = np.union1d(kept, predictors)
            kept = np.where(np.isin(positions, kept), positions, -1)
        size = self._spec.block_size
        limits = np.full(len(positions), length)
        if size is not None:
            limits = np.minimum(limits, (positions // size + 1) * size)
        rows = _Rows(query, positions, kept, limits, np.searchsorted(positions, predictors))
        self._check(rows)
        return rows

    def _check(self, rows: _Rows) -> None:
        query = rows.query
        if not rows.uses_rows:
            return
        if self._kept is None:
            raise ValueError("this session keeps no rows; open it with keeps_rows=True")
        needed = np.ones(rows.end, dtype=np.bool_)
        needed[rows.kept[rows.kept >= 0]] = False
        self._kept.check(query.sequence, needed)

    def _groups(self, asked: AbstractSequence[_Rows]) -> Iterator[list[_Rows]]:
        """Queries that share a model call, so that not too many rows are padding."""
        ordered = sorted(asked, key=lambda rows: len(rows.positions))
        group: list[_Rows] = []
        for rows in ordered:
            if group and not self._fits(group, rows):
                yield group
                group = []
            group.append(rows)
        yield group

    def _fits(self, group: list[_Rows], rows: _Rows) -> bool:
        size = len(rows.positions)
        if not self._can_pad:
            return size == len(group[0].positions) and rows.end == group[0].end
        real = size + sum(len(one.positions) for one in group)
        return (len(group) + 1) * size <= max(_MAX_PADDING * real, real + _FREE_PADDING)

    def _view(self, group: list[_Rows], *, alone: bool) -> RowView | None:
        if self._kept is None or not any(rows.uses_rows for rows in group):
            return None
        return RowView(
            self._kept,
            ComputedRows(
                np.array([rows.query.sequence for rows in group]),
                _padded([rows.kept for rows in group], -1),
                np.array([rows.query.stores for rows in group]),
            ),
            max(rows.end for rows in group),
            self._forward.device,
            in_place=alone,
        )

    def _call(self, group: list[_Rows], view: RowView | None) -> list[Prediction]:
        positions = _padded([rows.positions for rows in group], 0)
        token_ids = _padded([rows.query.token_ids[rows.positions] for rows in group], 0)
        width = positions.shape[1]
        wanted = np.concatenate([rows.wanted + width * row for row, rows in enumerate(group)])
        logits, hidden = self._forward.wanted(token_ids, positions, self._mask(group), view, wanted)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        predictions, start = [], 0
        for number, rows in enumerate(group):
            own = slice(start, start + len(rows.wanted))
            start = own.stop
            predictions.append(
                Prediction(
                    rows.query.wanted,
                    self._without_mask_token(logits[own]),
                    hidden[number, : len(rows.positions)].clone() if rows.query.wants_hidden else None,
                )
            )
        return predictions

    def _mask(self, group: list[_Rows]) -> torch.Tensor | None:
        """None where every row sees every key; [batch, 1, 1, keys] where all rows of a canvas see alike."""
        end = max(rows.end for rows in group)
        if all((rows.limits == end).all() for rows in group):
            return None
        if self._spec.block_size is None:
            limits = np.array([[rows.end] for rows in group])
        else:
            limits = _padded([rows.limits for rows in group], end)
        allowed = np.arange(end) < limits[:, :, None]
        return additive_mask(allowed, self._forward.dtype, self._forward.device)

    def _without_mask_token(self, logits: torch.Tensor) -> torch.Tensor:
        """A copy in which the mask token is impossible; a plain tensor, which one may write to."""
        if self._spec.mask_id is None:
            return logits.clone()
        index = torch.tensor([self._spec.mask_id], device=logits.device)
        return logits.index_fill(-1, index, -torch.inf)


def _padded(pieces: list[Ids], fill: int) -> Ids:
    """int64 [pieces, longest]."""
    if len(pieces) == 1:
        return pieces[0][None]
    filled = np.full((len(pieces), max(len(piece) for piece in pieces)), fill, dtype=np.int64)
    for row, piece in enumerate(pieces):
        filled[row, : len(piece)] = piece
    return filled
