"""Runs a transformers decoder as one compiled pass; what that cannot do, the module itself still does."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence as AbstractSequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.finding import Found, Search, nothing_found
from hasten.logits import Logits, found_by, search_for
from hasten.models.forwards.compiled import step
from hasten.models.forwards.compiled.arguments import NONE, Call, Model, Scratch
from hasten.models.forwards.compiled.blueprint import Blueprint, Matrix, Unsupported, norm_vectors
from hasten.models.forwards.compiled.mapped_files import MappedFiles
from hasten.models.forwards.compiled.memory import new_scratch
from hasten.models.forwards.compiled.products import LANES
from hasten.models.forwards.compiled.thread_pool import thread_pool
from hasten.models.forwards.compiled.tiles import DTYPES, TiledEmbedding, TiledLinear, Tiles, num_tiles
from hasten.models.forwards.forward import Asked, Forward, Kept, Mask, check_layers, columns_kept
from hasten.models.sessions.attention import AttentionKinds, TreeMask
from hasten.models.sessions.slot_cache import SlotCache


class CompiledForward(Forward):
    """Passes over a SlotCache run compiled; all others run the modules, which read the same weights."""

    runs_modules = False
    rows_are_exact = True
    pads_rows = False

    def __init__(self, model: Any, plan: CompiledModel) -> None:
        super().__init__(model)
        self._plan = plan

    def plain_passes(self) -> _CausalPasses:
        return _CausalPasses(self)

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """torch's threads look for work for milliseconds after each parallel operation; here they rest."""
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    @torch.inference_mode()
    def __call__(
        self,
        token_ids: NDArray[np.int64],
        position_ids: NDArray[np.int64] | None,
        attention_mask: Mask,
        cache: Any | None,
        logits_to_keep: Kept = 0,
    ) -> torch.Tensor:
        if not isinstance(attention_mask, TreeMask):
            return super().__call__(token_ids, position_ids, attention_mask, cache, logits_to_keep)
        assert position_ids is not None
        return self._plan.run(token_ids, position_ids, attention_mask, cache, logits_to_keep)

    def find(
        self,
        token_ids: NDArray[np.int64],
        position_ids: NDArray[np.int64] | None,
        attention_mask: Mask,
        cache: Any | None,
        asked: Asked,
    ) -> list[Logits]:
        if not isinstance(attention_mask, TreeMask):
            return super().find(token_ids, position_ids, attention_mask, cache, asked)
        assert position_ids is not None
        return self._plan.find(token_ids, position_ids, attention_mask, cache, asked)


class _CausalPasses:
    """See probe.PlainPasses: passes over whole texts that run compiled too."""

    def __init__(self, forward: CompiledForward) -> None:
        self._forward = forward
        self.vocab_size, self.dtype, self.text_config = forward.vocab_size, forward.dtype, forward.text_config

    def __call__(
        self,
        token_ids: NDArray[np.int64],
        position_ids: NDArray[np.int64],
        attention_mask: None = None,
        cache: None = None,
        logits_to_keep: int = 0,
    ) -> torch.Tensor:
        mask = TreeMask.causal(AttentionKinds.of(self.text_config), position_ids)
        return self._forward(token_ids, position_ids, mask, SlotCache(), logits_to_keep)

    def select(self, rows: list[int]) -> _CausalPasses:
        return self


class CompiledModel:
    """The weights of a model as tiles, and its pass.

    Takes the linear layers of ``model`` over: afterwards they read the tiles.
    """

    def __init__(self, model: Any, blueprint: Blueprint) -> None:
        self._dtype: torch.dtype = model.dtype
        self._vocab_size = blueprint.head.layers[0].out_features
        self._rotary = blueprint.rotary
        self._angle_kinds = list(
            dict.fromkeys(one.angle_kind for one in blueprint.layers if one.angle_kind is not None)
        )
        self._angles = self._read_angles(0, 1)
        self._vectors: list[torch.Tensor] = []
        self._num_vector_values = 0
        self._files = MappedFiles()
        self._tiles = Tiles(_num_values(blueprint), model.dtype)
        self._model = self._take_over(blueprint)
        self._scratch_sizes: tuple[int, ...] = ()
        self._scratch: Scratch
        self._first_buffer: Callable[[], torch.Tensor | None] = lambda: None
        self._addresses = np.empty((0, 3), np.int64)
        self._last: Call | None = None
        self._is_read = False  # whether somebody read the last logits as a whole

    def _take_over(self, blueprint: Blueprint) -> Model:
        matrices, norms, kinds = [], [], []
        for layer in blueprint.layers:
            matrices.append([self._add(matrix) for matrix in layer.matrices])
            norms.append(
                [NONE if norm is None else self._add_vector(norm_vectors(norm)) for norm in layer.norms]
            )
            angle = NONE if layer.angle_kind is None else self._angle_kinds.index(layer.angle_kind)
            kinds.append([layer.mask_kind, angle])
        parent, name = blueprint.embedding
        embeddings = np.empty(0, DTYPES[self._dtype])
        if not blueprint.is_tied:
            embeddings = _as_numpy(getattr(parent, name).weight.detach().reshape(-1))
        last_norm = self._add_vector(norm_vectors(blueprint.last_norm))
        head = self._add(blueprint.head)
        if blueprint.is_tied:
            tiled = TiledEmbedding(
                getattr(parent, name), getattr(blueprint.head.parent, blueprint.head.names[0])
            )
            setattr(parent, name, tiled)
        sizes: dict[str, Any] = {
            key: np.float32(v) if isinstance(v, float) else v for key, v in blueprint.sizes.items()
        }
        return Model(
            weights=self._tiles.values,
            matrices=np.array(matrices, np.int64),
            vectors=torch.cat([*self._vectors, torch.zeros(LANES)]).numpy(),
            norms=np.array(norms, np.int64),
            last_norm=last_norm,
            head=np.array(head, np.int64),
            embeddings=embeddings,
            layers=np.array(kinds, np.int64),
            rotary_size=self._angles.shape[2],
            **sizes,
        )

    def _add(self, matrix: Matrix) -> list[int]:
        """Move a matrix into the tiles; its place, its number of tiles, the place of its bias."""
        layers = matrix.layers
        rows = (
            torch.cat([one.weight.detach() for one in layers])
            if len(layers) > 1
            else layers[0].weight.detach()
        )
        biases = [one.bias for one in layers]
        rows = rows if matrix.order is None else rows[matrix.order]
        at = self._tiles.add(*rows.chunk(matrix.turns))
        outputs, inner = rows.shape
        bias = NONE
        if any(one is not None for one in biases):
            values = torch.cat(
                [
                    torch.zeros(layer.out_features) if one is None else one.detach().float()
                    for layer, one in zip(layers, biases, strict=True)
                ]
            )
            values = values if matrix.order is None else values[matrix.order]
            if matrix.turns > 1:
                values = values.view(matrix.turns, -1, LANES).transpose(0, 1).reshape(-1)
            bias = self._add_vector(torch.cat((values, torch.zeros(-outputs % LANES))))
        for layer in layers:
            self._files.forget(layer.weight)
        self._replace(matrix, at, inner)
        return [at, matrix.turns * num_tiles(outputs // matrix.turns), bias]

    def _replace(self, matrix: Matrix, at: int, inner: int) -> None:
        """Put modules into the model that read the tiles."""
        layers = matrix.layers
        for turn, (name, layer) in enumerate(zip(matrix.names, layers, strict=True)):
            outputs, order, place = layer.out_features, None, (1, 0)
            if matrix.order is not None:
                order = matrix.order.argsort()
            elif len(layers) > 1 and matrix.turns > 1:
                place = (matrix.turns, turn)
            elif matrix.turns > 1:
                order = (
                    torch.arange(outputs).view(matrix.turns, -1, LANES).transpose(0, 1).reshape(-1).argsort()
                )
            tiled = TiledLinear(layer, self._tiles, at, *place, order=order)
            tiled.release()
            setattr(matrix.parent, name, tiled)
            if matrix.turns == 1:
                at += outputs * inner

    def _add_vector(self, values: torch.Tensor) -> int:
        at = self._num_vector_values
        self._vectors.append(values.float())
        self._num_vector_values += len(values)
        return at

    def _read_angles(self, start: int, stop: int) -> NDArray[np.float32]:
        """[kinds, positions, rotary channels]: the cosines of one half of the channels, then the sines."""
        positions = torch.arange(start, stop)[None]
        kinds = []
        for kind in self._angle_kinds or [""]:
            arguments = {"layer_type": kind} if kind else {}
            cosines, sines = self._rotary(torch.zeros(1), positions, **arguments)
            half = cosines.shape[-1] // 2
            for one in (cosines, sines):
                if not torch.equal(one[..., :half], one[..., half:]):
                    raise Unsupported("its rotary positions pair neighbours, not halves")
            kinds.append(torch.cat((cosines[0, :, :half], sines[0, :, :half]), -1).float())
        return torch.stack(kinds).numpy()

    def run(
        self,
        token_ids: NDArray[np.int64],
        position_ids: NDArray[np.int64],
        mask: TreeMask,
        cache: Any,
        logits_to_keep: Kept,
    ) -> torch.Tensor:
        """Logits float32 [batch, tokens, vocab], those of padding are 0; of the tokens to keep only."""
        batch, width = token_ids.shape
        columns = columns_kept(logits_to_keep, width)
        is_wanted = np.tile(np.isin(np.arange(width), columns), (batch, 1))
        call, rows = self._call(token_ids, position_ids, mask, cache, is_wanted, keeps_logits=True)
        self._compute(call, search_for([], [], 0, self._vocab_size))
        if len(call.wanted) == batch * len(columns):
            return self._kept(call).clone().view(batch, len(columns), -1)  # the memory is used again
        logits = torch.zeros(batch * width, self._vocab_size)
        logits[torch.from_numpy(rows[call.wanted])] = self._kept(call)
        return logits.view(batch, width, -1)[:, torch.from_numpy(columns)]

    def find(
        self,
        token_ids: NDArray[np.int64],
        position_ids: NDArray[np.int64],
        mask: TreeMask,
        cache: Any,
        asked: Asked,
    ) -> list[Logits]:
        """What is asked for; logits as a whole stay here where they are likely to be read."""
        is_wanted = np.zeros(token_ids.shape, np.bool_)
        for row, tokens in zip(is_wanted, asked.tokens, strict=True):
            row[tokens] = True
        keeps_logits = self._is_read or None in asked.draws
        check_layers(asked.hidden, len(self._model.layers) + 1)
        inputs = (token_ids, position_ids, mask, cache, is_wanted)
        call, _ = self._call(*inputs, keeps_logits=keeps_logits, hidden=asked.hidden)
        counts = is_wanted.sum(axis=1).tolist()
        search = search_for(asked.draws, counts, asked.top_k, self._vocab_size)
        found = self._compute(call, search)
        places = list(itertools.pairwise([0, *itertools.accumulate(counts)]))
        logits = [
            found_by(search, found, slice(*place), draw, partial(self._read, call, *place))
            for place, draw in zip(places, asked.draws, strict=True)
        ]
        if asked.hidden:
            states = torch.from_numpy(call.hidden[:, call.wanted]).to(self._dtype)
            for one, place in zip(logits, places, strict=True):
                one.hidden = dict(zip(asked.hidden, states[:, slice(*place)], strict=True))
        return logits

    def _call(
        self,
        token_ids: NDArray[np.int64],
        position_ids: NDArray[np.int64],
        mask: TreeMask,
        cache: Any,
        is_wanted: NDArray[np.bool_],
        *,
        keeps_logits: bool,
        hidden: AbstractSequence[int] = (),
    ) -> tuple[Call, NDArray[np.int64]]:
        """A pass, and which tokens [batch * tokens] its rows are: all but padding, which sees nothing."""
        batch, width = token_ids.shape
        rows = np.flatnonzero(mask.is_token)
        positions = position_ids.reshape(-1)[rows]
        if self._angles.shape[1] <= int(positions.max()):
            more = self._read_angles(
                self._angles.shape[1], max(int(positions.max()) + 1, self._angles.shape[1] + 512)
            )
            self._angles = np.concatenate((self._angles, more), axis=1)
        wanted = np.flatnonzero(is_wanted.reshape(-1)[rows])
        first_slot, addresses = self._make_room(cache, batch, width)
        call = Call(
            token_ids=token_ids.reshape(-1)[rows],
            positions=positions,
            slots=first_slot + rows % width,
            starts=np.searchsorted(rows, width * np.arange(batch + 1)).astype(np.int64),
            num_slots=mask.num_slots,
            visible=mask.visible.view(np.uint8),
            slot_positions=mask.positions,
            own=mask.own.reshape(-1, mask.own.shape[2])[rows].view(np.uint8),
            first_positions=mask.kinds.first_positions(positions),
            wanted=wanted,
            keeps_logits=keeps_logits,
            hidden_layers=np.array(hidden, np.int64),
            hidden=np.empty((len(hidden), len(rows), self._model.hidden_size), np.float32),
            is_only_head=False,
            caches=addresses,
            angles=self._angles,
            phase=0,
        )
        self._scratch_for(max(len(rows), batch), len(wanted), mask.num_slots, keeps_logits)
        return call, rows

    def _compute(self, call: Call, search: Search) -> Found:
        found = self._run(call, search)
        self._last, self._is_read = call, False
        return found

    def _run(self, call: Call, search: Search) -> Found:
        workers, scratch = thread_pool(self._tiles.num_threads), self._scratch
        found = nothing_found(search, workers.num_threads)
        call = call._replace(phase=int(scratch.arrivals[0]) // workers.num_threads + 1)
        workers.run(step.run, self._model, call, scratch, search, found)
        return found

    def _read(self, call: Call, start: int, stop: int) -> torch.Tensor:
        """Logits of some wanted rows of the last pass; where it did not keep them, its head is run again."""
        if self._last is None or self._last.wanted is not call.wanted:
            raise RuntimeError("logits of an earlier pass are gone: they are to be read before the next pass")
        if not self._last.keeps_logits:
            num_rows = max(len(call.token_ids), len(call.starts) - 1)
            self._scratch_for(num_rows, len(call.wanted), call.num_slots, True)
            self._last = call._replace(keeps_logits=True)
            self._run(self._last._replace(is_only_head=True), search_for([], [], 0, self._vocab_size))
        self._is_read = True
        return self._kept(call)[start:stop].clone()  # the memory is used again

    def _kept(self, call: Call) -> torch.Tensor:
        """Logits [wanted, vocab] of the last pass."""
        rows = torch.from_numpy(self._scratch.logits).view(-1, int(self._model.head[1]) * LANES)
        return rows[: len(call.wanted), : self._vocab_size]

    def _make_room(self, cache: Any, batch: int, count: int) -> tuple[int, NDArray[np.int64]]:
        """(the first new slot, what Call calls caches)"""
        sizes = self._model
        heads, channels = sizes.num_kv_heads, sizes.head_size
        if len(cache.used_layers) < len(sizes.layers):
            for index in range(len(sizes.layers)):
                layer = cache.layer(index)
                if not layer.is_initialized:
                    layer.allocate(batch, heads, channels, channels, dtype=self._dtype, device="cpu")
        first, capacity = cache.layers[0].width, cache.layers[0].capacity
        if first + count > capacity:
            cache.extend(count)
        else:  # all layers are of one size
            for layer in cache.layers:
                layer.width = first + count
        return first, self._addresses_of(cache)

    def _addresses_of(self, cache: SlotCache) -> NDArray[np.int64]:
        """Asked for again only when a cache has other buffers, which all its layers get together."""
        buffer = cache.layers[0].key_buffer
        if self._first_buffer() is not buffer:
            self._first_buffer = weakref.ref(buffer)
            self._addresses = np.array(
                [
                    [layer.key_buffer.data_ptr(), layer.value_buffer.data_ptr(), layer.capacity]
                    for layer in cache.layers
                ],
                np.int64,
            )
        return self._addresses

    def _scratch_for(self, num_rows: int, num_wanted: int, num_slots: int, keeps_logits: bool) -> None:
        """Make ``_scratch`` large enough; what it holds stays where it is large enough already."""
        threads = self._tiles.num_threads
        rows, wanted = (-(-count // 64) * 64 for count in (num_rows, num_wanted))
        slots = -(-num_slots // 256) * 256
        sizes = (threads, rows, wanted, slots)
        if sizes != self._scratch_sizes:
            self._scratch, self._scratch_sizes = new_scratch(self._model, *sizes), sizes
        num_logits = wanted * int(self._model.head[1]) * LANES if keeps_logits else 0
        if len(self._scratch.logits) < num_logits:
            self._scratch = self._scratch._replace(logits=np.empty(num_logits, np.float32))


def _num_values(blueprint: Blueprint) -> int:
    total = 0
    for matrix in (*(one for layer in blueprint.layers for one in layer.matrices), blueprint.head):
        layers = matrix.layers
        outputs = sum(layer.out_features for layer in layers)
        total += matrix.turns * num_tiles(outputs // matrix.turns) * LANES * layers[0].in_features
    return total


def _as_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
