"""One decoder pass of an encoder-decoder model: the sources are encoded once, their keys computed once.

Sessions see what they see of a causal model: tokens, positions, a mask and a self-attention cache. Which
source belongs to which row, and the cross-attention cache, live here and follow ``select``. Knows nothing of
generation settings.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence as AbstractSequence
from typing import Any, cast

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from hasten.errors import ModelError
from hasten.models.forwards.forward import Forward

Source = AbstractSequence[int] | torch.Tensor
"""Token ids, or float features [mel bins, frames]."""


class Seq2SeqForward(Forward):
    """Calls the decoder; ``bind`` first, so that there is something to attend to."""

    can_pack_prompts = False  # texts in one row would share a source
    _prefix = "decoder_"
    _hidden_name = "decoder_hidden_states"
    _sources: _Sources | None = None
    _output_class: type[Any] = BaseModelOutput

    def bind(self, sources: AbstractSequence[Source]) -> Seq2SeqForward:
        """The same model for a batch whose row i reads ``sources[i]``; one object is encoded once."""
        distinct = {id(source): source for source in sources}
        states = dict(zip(distinct, self._encode(list(distinct.values())), strict=True))
        bound = copy.copy(self)
        bound._sources = _Sources([states[id(source)] for source in sources])
        return bound

    def select(self, rows: list[int]) -> Seq2SeqForward:
        selected = copy.copy(self)
        selected._sources = self._bound().select(rows)
        return selected

    def join(self, other: Forward) -> Seq2SeqForward:
        assert isinstance(other, Seq2SeqForward)
        joined = copy.copy(self)
        joined._sources = self._bound().join(other._bound())
        return joined

    def _bound(self) -> _Sources:
        if self._sources is None:
            raise ModelError(
                f"{type(self.model).__name__} writes about a source: open() it with the sequences, or choose "
                "a drafter that does not run the model by itself"
            )
        return self._sources

    def _run(self, token_ids: torch.Tensor, arguments: dict[str, Any]) -> Any:
        sources = self._bound()
        cache = arguments.pop(self._cache_argument, None)
        if cache is not None:  # the pair notices which of its cross-attention keys are there already
            arguments[self._cache_argument] = EncoderDecoderCache(cache, sources.keys)
        encoded = self._output_class(last_hidden_state=sources.states)
        return self.model(
            decoder_input_ids=token_ids, encoder_outputs=encoded, attention_mask=sources.mask, **arguments
        )

    @torch.inference_mode()
    def _encode(self, sources: list[Source]) -> list[torch.Tensor]:
        """States [positions, hidden] of each source. Equal lengths share a pass: no encoder sees padding."""
        encoder = self.model.get_encoder()
        takes_mask = "attention_mask" in inspect.signature(encoder.forward).parameters
        tensors = [
            source.to(self.device, self.dtype)
            if isinstance(source, torch.Tensor)
            else torch.tensor(source, device=self.device)
            for source in sources
        ]
        groups: dict[torch.Size, list[int]] = {}
        for index, tensor in enumerate(tensors):
            groups.setdefault(tensor.shape, []).append(index)
        states: list[torch.Tensor] = [torch.empty(0)] * len(sources)
        for members in groups.values():
            inputs = torch.stack([tensors[index] for index in members])
            arguments = {self.model.main_input_name: inputs, "return_dict": True}
            if takes_mask and not inputs.is_floating_point():
                arguments["attention_mask"] = torch.ones_like(inputs)
            output = encoder(**arguments)
            self._output_class = type(output)  # a mixture of experts has fields of its own
            for index, found in zip(members, output.last_hidden_state, strict=True):
                states[index] = found
        return states


class _Sources:
    """What the rows of a batch attend to, padded on the right to the longest.

    ``mask`` [rows, positions] is None where nothing is padded; ``keys`` fills itself in the first pass.
    """

    def __init__(self, states: list[torch.Tensor], keys: DynamicCache | None = None) -> None:
        self.lengths = [len(of_one) for of_one in states]
        self.states = pad_sequence(states, batch_first=True)
        width = self.states.shape[1]
        self.mask: torch.Tensor | None = None
        if min(self.lengths) < width:
            slots = torch.arange(width, device=self.states.device)
            self.mask = (slots < torch.tensor(self.lengths, device=slots.device)[:, None]).long()
        self.keys = DynamicCache() if keys is None else keys

    def select(self, rows: list[int]) -> _Sources:
        width = max(self.lengths[row] for row in rows)
        index = torch.tensor(rows, device=self.states.device)
        keys = DynamicCache()
        for place, layer in enumerate(cast(list[Any], self.keys.layers)):
            found = [states.index_select(0, index)[:, :, :width] for states in (layer.keys, layer.values)]
            keys.update(found[0], found[1], place)
        return _Sources([self.states[row, : self.lengths[row]] for row in rows], keys)

    def join(self, other: _Sources) -> _Sources:
        """Those of both, padded to the longer ones."""
        keys = DynamicCache()
        width = max(self.states.shape[1], other.states.shape[1])
        mine, theirs = (cast(list[Any], one.keys.layers) for one in (self, other))
        # Where one of them has none yet, the next pass computes all.
        for place, pair in enumerate(zip(mine, theirs, strict=False)):
            found = [
                torch.cat([pad(states, (0, 0, 0, width - states.shape[2])) for states in side])
                for side in zip(*((one.keys, one.values) for one in pair), strict=True)
            ]
            keys.update(found[0], found[1], place)
        states = [
            sources.states[row, :length]
            for sources in (self, other)
            for row, length in enumerate(sources.lengths)
        ]
        return _Sources(states, keys)
