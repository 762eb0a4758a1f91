"""A causal transformer over any permutation of a text: sigma-GPT (arXiv 2404.09562).

Every input row carries a token, where it stands, and where the token stands that comes next; its output is
about that one. So an order is told by the rows alone: a stock Llama runs them with all its own positions at
0, where its rotary angles do nothing. The row before the first token holds the mask token, which no text has.

An ordinary query is answered in one pass (a burst): the known tokens are rows in the order of their
positions, and each wanted position is a row of its own behind the last of them, which no other wanted one
sees. A written position is predicted from all tokens but its own. The rows of a chain come behind the known
tokens and see each other as in any causal model.

How tokens were revealed matters to a causal model, and the canvas does not tell: what is known of it is read
from left to right. So a row of a chain is the prediction of the canvas in which the tokens before it are
written, where those go on from left to right behind all that was known; the first row always is. Otherwise
the two are two readings of the same facts, which a model tells alike only as far as it has learnt to.
"""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from hasten.diffusion.canvas import DenoiserSpec, Ids, Prediction, Query
from hasten.errors import ConfigError, ModelError
from hasten.files import write_whole, writing
from hasten.models.sessions.attention import additive_mask

POSITIONS_FILE = "sigma_positions.safetensors"


class SigmaGPT(nn.Module):
    """See canvas.Denoiser; it keeps no rows.

    Args:
        model: a Llama, or another decoder whose only positions are rotary ones.
        spec: its attention is "any-order", its mask token no word of a text.
        max_length: the longest canvas.

    Raises ConfigError for a spec of another kind of model.
    """

    def __init__(self, model: Any, spec: DenoiserSpec, max_length: int) -> None:
        super().__init__()
        if spec.attention != "any-order" or spec.mask_id is None:
            raise ConfigError(
                f"attention={spec.attention!r} with mask_id={spec.mask_id} is no any-order model; give "
                "attention='any-order' and a mask token"
            )
        self.model, self.spec, self.max_length = model, spec, max_length
        weight = model.get_input_embeddings().weight
        self.own = nn.Embedding(max_length + 1, weight.shape[1])
        """where a row's token stands, plus 1; 0 before the first token"""
        self.next = nn.Embedding(max_length, weight.shape[1])
        for table in (self.own, self.next):
            nn.init.normal_(table.weight, std=float(weight.detach().std()))
        self.to(device=weight.device, dtype=weight.dtype)

    @classmethod
    def new(cls, shape: LlamaConfig, spec: DenoiserSpec, seed: int = 0) -> SigmaGPT:
        """Random weights, for canvases of up to ``shape.max_position_embeddings`` positions."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(LlamaForCausalLM(shape), spec, int(shape.max_position_embeddings))

    @classmethod
    def of(cls, model: Any, spec: DenoiserSpec, folder: Path) -> SigmaGPT:
        """A model that was loaded from a folder, with the positions stored beside it. Raises ModelError."""
        place = folder / POSITIONS_FILE
        try:
            tables = load_file(place)
            made = cls(model, spec, len(tables["next"]))
            made.own.load_state_dict({"weight": tables["own"]})
            made.next.load_state_dict({"weight": tables["next"]})
        except (OSError, KeyError, RuntimeError, SafetensorError) as problem:
            raise ModelError(f"cannot use {place}: {problem}") from problem
        return made.eval()

    def save(self, folder: Path) -> None:
        """Write model, positions and spec; the tokenizer is its caller's. Raises WriteError."""
        tables = {"own": self.own.weight.detach(), "next": self.next.weight.detach()}
        stored = {name: table.cpu().contiguous() for name, table in tables.items()}
        with writing(folder, "model"):
            self.model.save_pretrained(folder)
        write_whole(
            folder / POSITIONS_FILE, lambda temporary: save_file(stored, temporary), "position tables"
        )
        self.spec.save(folder)

    @property
    def vocab_size(self) -> int:
        return int(self.model.get_output_embeddings().weight.shape[0])

    def open(self, lengths: AbstractSequence[int], *, keeps_rows: bool) -> SigmaSession:
        """Raises ModelError where rows shall be kept."""
        if keeps_rows:
            raise ModelError(
                "an any-order model keeps no rows, because a token written between others changes them; use "
                "the cache 'none'"
            )
        return SigmaSession(self)

    def forward(self, asked: AbstractSequence[PermutedRows]) -> list[Tensor]:
        """Logits [targets, vocab] of each, in one pass; the mask token has -inf."""
        size = max(1, *(len(rows.token_ids) for rows in asked))
        tokens, own, upcoming = (np.zeros((len(asked), size), dtype=np.int64) for _ in range(3))
        sees = np.broadcast_to(np.eye(size, dtype=np.bool_), (len(asked), size, size)).copy()
        for place, rows in enumerate(asked):
            count = len(rows.token_ids)
            tokens[place, :count], own[place, :count] = rows.token_ids, rows.own
            upcoming[place, :count], sees[place, :count, :count] = rows.upcoming, rows.sees
        hidden = self._hidden(tokens, own, upcoming, sees)
        ends = [len(rows.token_ids) for rows in asked]
        wanted = [
            hidden[place, end - rows.num_targets : end]
            for place, (rows, end) in enumerate(zip(asked, ends, strict=True))
        ]
        logits = self.model.get_output_embeddings()(torch.cat(wanted))
        logits = logits if logits.dtype == torch.float64 else logits.float()
        index = torch.tensor([self.spec.mask_id], device=logits.device)
        return list(logits.index_fill(-1, index, -torch.inf).split([rows.num_targets for rows in asked]))

    def _hidden(self, tokens: Ids, own: Ids, upcoming: Ids, sees: NDArray[np.bool_]) -> Tensor:
        embed = self.model.get_input_embeddings()
        device = embed.weight.device
        words, places, targets = (torch.from_numpy(one).to(device) for one in (tokens, own, upcoming))
        output = self.model.get_decoder()(
            inputs_embeds=embed(words) + self.own(places) + self.next(targets),
            attention_mask=additive_mask(sees, embed.weight.dtype, device),
            position_ids=torch.zeros_like(words),
            use_cache=False,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden


@dataclass(frozen=True, slots=True, eq=False)
class PermutedRows:
    """What the model reads for one canvas; the last ``num_targets`` rows are answered."""

    token_ids: Ids
    """int64 [rows]"""
    own: Ids
    """int64 [rows]: the position of each token, plus 1"""
    upcoming: Ids
    """int64 [rows]: the position that each row is about"""
    sees: NDArray[np.bool_]
    """bool [rows, rows]"""
    num_targets: int

    @classmethod
    def chain(cls, token_ids: Ids, known: Ids, order: Ids, begin_id: int) -> PermutedRows:
        """Row k is about order[k], given the tokens at ``known``, which come first, and at order[:k]."""
        revealed = np.concatenate([known, order])
        before = revealed[:-1]
        return cls(
            np.concatenate([[begin_id], token_ids[before]]),
            np.concatenate([[0], before + 1]),
            revealed,
            np.tri(len(revealed), dtype=np.bool_),
            len(order),
        )

    @classmethod
    def burst(cls, token_ids: Ids, known: Ids, targets: Ids, begin_id: int) -> PermutedRows:
        """Each target given the tokens at ``known``, in this order, and nothing of the other targets."""
        count, first = len(targets), len(known)
        tokens, own = np.concatenate([[begin_id], token_ids[known]]), np.concatenate([[0], known + 1])
        sees = np.tri(first + count, dtype=np.bool_)
        sees[first:, first:] = np.eye(count, dtype=np.bool_)
        return cls(
            np.concatenate([tokens[:-1], np.repeat(tokens[-1:], count)]),
            np.concatenate([own[:-1], np.repeat(own[-1:], count)]),
            np.concatenate([known, targets]),
            sees,
            count,
        )


class SigmaSession:
    """See canvas.DenoiserSession."""

    def __init__(self, model: SigmaGPT) -> None:
        self._model = model

    @torch.inference_mode()
    def forward(self, queries: AbstractSequence[Query]) -> list[Prediction]:
        """Raises ValueError for a query of rows that were kept, or of hidden states."""
        asked = [self._asked(query) for query in queries]
        logits = iter(self._model([rows for one in asked for rows, _ in one]))
        return [
            _answer(query, [(places, next(logits)) for _, places in one])
            for query, one in zip(queries, asked, strict=True)
        ]

    def _asked(self, query: Query) -> list[tuple[PermutedRows, Ids]]:
        """Rows, and the positions that their targets are about."""
        if query.computed is not None or query.stores or query.wants_hidden:
            raise ValueError("an any-order model keeps no rows and has no hidden states of a canvas")
        begin_id = self._model.spec.mask_id
        assert begin_id is not None
        is_known = query.token_ids != begin_id
        if query.chain is not None:
            is_known[query.chain] = False
            known = np.flatnonzero(is_known)
            return [(PermutedRows.chain(query.token_ids, known, query.chain, begin_id), query.chain)]
        known, is_written = np.flatnonzero(is_known), is_known[query.wanted]
        targets = query.wanted[~is_written]
        asked = [(PermutedRows.burst(query.token_ids, known, targets, begin_id), targets)]
        for position in query.wanted[is_written]:
            target, others = np.array([position]), known[known != position]
            asked.append((PermutedRows.burst(query.token_ids, others, target, begin_id), target))
        return asked


def _answer(query: Query, parts: list[tuple[Ids, Tensor]]) -> Prediction:
    if query.chain is not None:
        return Prediction(query.chain, parts[0][1])
    positions = np.concatenate([places for places, _ in parts])
    order = np.argsort(positions)
    logits = torch.cat([logits for _, logits in parts])
    return Prediction(positions[order], logits[torch.from_numpy(order).to(logits.device)])
