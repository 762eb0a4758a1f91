"""llama.cpp's C interface, as far as it is used: a model file, and contexts that cache tokens of sequences.

The only file that knows llama-cpp-python. Positions and sequence ids are llama.cpp's own: a cached token has
one position and a set of sequences, and a token sees the cached ones before it of its own first sequence.
"""

from __future__ import annotations

import ctypes
import weakref
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.errors import MissingExtra, ModelError

MAX_SEQUENCES = 256
"""of one context, a limit of llama.cpp"""
PASS_TOKENS = 512
"""llama.cpp computes at most so many tokens at once; longer batches are cut"""
_ERROR = 4  # a level of its log
_FLOAT32, _FLOAT16 = 0, 1  # ggml's numbers of types
_PRECISIONS = {"0": torch.float32, "32": torch.bfloat16}
"""general.file_type -> the coarsest type of a pass; all others count as float16"""

_MISSING = (
    "GGUF models are run by llama.cpp: pip install 'hasten[llamacpp]', which compiles it for some minutes "
    "and needs a C++ compiler and CMake. Where llama.cpp is installed already, CMAKE_ARGS=-DLLAMA_BUILD=OFF "
    "before that command compiles nothing, and LLAMA_CPP_LIB_PATH names the folder of its libllama; a "
    "ready-made wheel of llama-cpp-python will do as well"
)


@cache
def bindings() -> Any:
    """The llama_cpp module, ready and silent. Raises MissingExtra where it is not installed."""
    try:
        import llama_cpp
    except ImportError as problem:
        raise MissingExtra(_MISSING) from problem
    llama_cpp.llama_log_set(_log_callback(llama_cpp), None)
    llama_cpp.llama_backend_init()
    return llama_cpp


_errors: list[str] = []


@cache
def _log_callback(llama_cpp: Any) -> Any:
    def keep(level: int, text: bytes, _: object) -> None:
        if level == _ERROR:
            _errors[:] = [*_errors[-1:], text.decode(errors="replace").strip()]

    return llama_cpp.llama_log_callback(keep)


def _failed(what: str, remedy: str) -> ModelError:
    """An error with what llama.cpp logged last."""
    why = f" ({'; '.join(_errors)})" if _errors else ""
    _errors.clear()
    return ModelError(f"llama.cpp {what}{why}; {remedy}")


class LlamaFile:
    """A loaded GGUF file.

    Raises:
        ModelError: no such file, or one that llama.cpp cannot load.
        MissingExtra: llama-cpp-python is not installed.
    """

    def __init__(self, path: str) -> None:
        self._llama = bindings()
        if not Path(path).is_file():
            raise ModelError(f"no GGUF file at {path!r}; make one with `hasten export MODEL --gguf FILE`")
        _errors.clear()
        found = self._llama.llama_model_load_from_file(
            path.encode(), self._llama.llama_model_default_params()
        )
        if not found:
            raise _failed(f"cannot load {path!r}", "give a GGUF file of a causal language model")
        self.pointer = found
        self.vocabulary = self._llama.llama_model_get_vocab(found)
        weakref.finalize(self, self._llama.llama_model_free, found)
        if self._llama.llama_model_has_encoder(found):
            raise ModelError(f"{path!r} has an encoder; GGUF models are run as causal language models only")

    @property
    def vocab_size(self) -> int:
        return int(self._llama.llama_vocab_n_tokens(self.vocabulary))

    @property
    def context_length(self) -> int:
        """Positions the model was trained for."""
        return int(self._llama.llama_model_n_ctx_train(self.pointer))

    @property
    def precision(self) -> torch.dtype:
        """The coarsest type of a pass, by which its rounding may be judged."""
        return _PRECISIONS.get(self.text_of("general.file_type") or "", torch.float16)

    @property
    def description(self) -> str:
        """Such as "llama 1B Q8_0"."""
        buffer = ctypes.create_string_buffer(256)
        self._llama.llama_model_desc(self.pointer, buffer, len(buffer))
        return buffer.value.decode(errors="replace")

    @property
    def num_bytes(self) -> int:
        return int(self._llama.llama_model_size(self.pointer))

    @property
    def num_parameters(self) -> int:
        return int(self._llama.llama_model_n_params(self.pointer))

    def text_of(self, key: str) -> str | None:
        """A value of the file's metadata as text; None where it is not there."""
        size = self._llama.llama_model_meta_val_str(self.pointer, key.encode(), None, 0)
        if size < 0:
            return None
        buffer = ctypes.create_string_buffer(size + 1)
        self._llama.llama_model_meta_val_str(self.pointer, key.encode(), buffer, size + 1)
        return buffer.value.decode(errors="replace")


class LlamaContext:
    """Cached tokens, each at a position of one or several sequences.

    Args:
        num_tokens: how many there may be.
        num_sequences: ids go from 0 to one less.

    Raises ModelError where there is not enough memory.
    """

    def __init__(self, file: LlamaFile, num_tokens: int, num_sequences: int) -> None:
        llama = self._llama = bindings()
        self._file = file  # lives longer than its contexts
        self.num_tokens, self.num_sequences = num_tokens, num_sequences
        self.vocab_size = file.vocab_size
        params = llama.llama_context_default_params()
        params.n_ctx = num_tokens
        params.n_batch, params.n_ubatch = max(PASS_TOKENS, num_tokens), PASS_TOKENS
        params.n_seq_max = num_sequences
        params.kv_unified = True  # what several sequences share is kept once
        params.swa_full = True  # rejected tokens must not push others out of a window
        params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it rounds to float16, even in float32
        params.no_perf = True
        kind = _FLOAT32 if file.precision == torch.float32 else _FLOAT16
        params.type_k = params.type_v = kind
        params.n_threads = params.n_threads_batch = torch.get_num_threads()
        _errors.clear()
        found = llama.llama_init_from_model(file.pointer, params)
        if not found:
            raise _failed(
                f"cannot make a cache of {num_tokens} tokens", "write fewer texts, or shorter ones, at once"
            )
        self._pointer = found
        self._memory = llama.llama_get_memory(found)
        self._num_threads = torch.get_num_threads()
        weakref.finalize(self, llama.llama_free, found)

    def clear(self) -> None:
        """Forget every token."""
        self._llama.llama_memory_clear(self._memory, False)

    def run(
        self,
        token_ids: NDArray[np.int64],
        positions: NDArray[np.int64],
        sequences: list[list[int]],
        wanted: NDArray[np.bool_],
    ) -> torch.Tensor:
        """Cache these tokens and return the logits float32 [wanted, vocab].

        Args:
            token_ids, positions, wanted: [tokens].
            sequences: the ids of each token's sequences.

        Raises ModelError where the cache is full, or a model cannot compute this.
        """
        if len(token_ids) > self.num_tokens:
            raise self._full()
        self._follow_threads()
        counts = np.fromiter(map(len, sequences), np.int32, len(sequences))
        flat = np.fromiter((each for ids in sequences for each in ids), np.int32, int(counts.sum()))
        places = flat.ctypes.data + 4 * (np.cumsum(counts) - counts).astype(np.uint64)
        columns: tuple[NDArray[Any], ...] = (
            token_ids.astype(np.int32),
            positions.astype(np.int32),
            wanted.astype(np.int8),
        )
        batch = self._llama.llama_batch()
        batch.n_tokens = len(token_ids)
        for name, values in zip(("token", "pos", "logits"), columns, strict=True):
            setattr(batch, name, _pointer(values, type(getattr(batch, name))))
        batch.n_seq_id = _pointer(counts, type(batch.n_seq_id))
        batch.seq_id = _pointer(places, type(batch.seq_id))
        _errors.clear()
        code = self._llama.llama_decode(self._pointer, batch)
        if code == 1:
            raise self._full()
        if code != 0:
            raise _failed(f"cannot compute this pass (code {code})", "decode this model without drafts")
        count = int(wanted.sum())
        if not count:
            return torch.empty(0, self.vocab_size)
        found = self._llama.llama_get_logits(self._pointer)
        return torch.from_numpy(np.ctypeslib.as_array(found, (count, self.vocab_size)).copy())

    def remove(self, sequence: int, start: int = -1) -> None:
        """A sequence forgets its tokens from this position on; tokens of no sequence are free.

        Raises ModelError for a model that cannot go back.
        """
        if not self._llama.llama_memory_seq_rm(self._memory, sequence, start, -1):
            raise ModelError("this model cannot forget single tokens, so drafts cannot be verified")

    def share(self, source: int, target: int, start: int, end: int) -> None:
        """The tokens of one sequence at positions start .. end - 1 belong to another one as well."""
        self._llama.llama_memory_seq_cp(self._memory, source, target, start, end)

    def saved(self, sequence: int) -> ctypes.Array[ctypes.c_uint8]:
        """A copy of what a sequence has cached, which ``restore`` puts into any context of the same file."""
        size = int(self._llama.llama_state_seq_get_size(self._pointer, sequence))
        state = (ctypes.c_uint8 * size)()
        if self._llama.llama_state_seq_get_data(self._pointer, state, size, sequence) != size:
            raise _failed("cannot copy a text out of its cache", "write fewer texts at once")
        return state

    def restore(self, sequence: int, state: ctypes.Array[ctypes.c_uint8]) -> None:
        """An empty sequence takes over what was saved. Raises ModelError where there is no room."""
        if self._llama.llama_state_seq_set_data(self._pointer, state, len(state), sequence) != len(state):
            raise _failed("cannot copy a text into another cache", "write fewer texts at once")

    def _full(self) -> ModelError:
        return ModelError(
            f"the cache of {self.num_tokens} tokens is full; write fewer texts, or shorter ones, at once"
        )

    def _follow_threads(self) -> None:
        if (wanted := torch.get_num_threads()) != self._num_threads:
            self._llama.llama_set_n_threads(self._pointer, wanted, wanted)
            self._num_threads = wanted


def _pointer(values: NDArray[Any], kind: Any) -> Any:
    return ctypes.cast(values.ctypes.data, kind)
