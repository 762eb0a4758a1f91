"""llama.cpp, through llama-cpp-python: plain decoding, and decoding with its prompt lookup.

The loop is written on llama.cpp's own passes and samplers instead of the package's ``generate``, which copies
the logits of every row to Python when it drafts; what is drafted is the package's own drafter's work. Weights
and cache have the model's precision. At a temperature it draws random numbers of its own.
"""

from __future__ import annotations

import tempfile
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hasten.bench.methods import Answer
from hasten.core import SamplingParams
from hasten.errors import ModelError
from hasten.models.llamacpp.export import export_gguf
from hasten.models.llamacpp.interface import PASS_TOKENS, LlamaFile, bindings

LOOKUP_TOKENS = {"cpu": 2, "cuda": 10}
"""kind of device -> tokens to look up for a pass, as the package's documentation recommends"""

_MIN_CONTEXT = 2048
_CACHE_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30}
"""ggml's numbers of the types; the package names only some"""

Look = Callable[[Any], Any]
"""the token ids so far, int32 -> those that are proposed to follow"""


@dataclass(frozen=True, slots=True)
class Written:
    token_ids: list[int]
    num_passes: int
    """the prompt's is one of them, as it gives the first token"""
    num_draft_tokens: int


class LlamaCpp:
    """A model in llama.cpp, and a context that grows with the longest text asked for.

    Args:
        model: transformers' own; the weights are copied.
        num_threads: of every pass.

    Raises MissingExtra without the package, and ModelError for a model that has no GGUF form, that llama.cpp
    does not load, or whose device it has no kernels for.
    """

    def __init__(self, model: Any, num_threads: int) -> None:
        self._llama = bindings()
        if model.device.type != "cpu" and not self._llama.llama_supports_gpu_offload():
            raise ModelError(f"this build of llama.cpp has no kernels for {model.device.type}")
        if model.dtype not in _CACHE_TYPES:
            raise ModelError(f"llama.cpp does not compute in {str(model.dtype).removeprefix('torch.')}")
        self._dtype = model.dtype
        self._num_threads = num_threads
        # A file that is still mapped outlives its name; where it does not, the folder stays.
        with tempfile.TemporaryDirectory(prefix="hasten-", ignore_cleanup_errors=True) as folder:
            path = Path(folder) / "model.gguf"
            export_gguf(model, None, path)
            self._file = LlamaFile(str(path))
        self._batch = self._llama.llama_batch_init(PASS_TOKENS, 0, 1)
        weakref.finalize(self, self._llama.llama_batch_free, self._batch)
        for row in range(PASS_TOKENS):
            self._batch.n_seq_id[row] = 1
            self._batch.seq_id[row][0] = 0
        self._context: Any = None
        self._free_context: Callable[[], object] = lambda: None

    def reserve(self, num_tokens: int) -> None:
        """Room for a text of so many tokens, prompt included; a context that is too small is made anew.

        Raises ModelError where there is not enough memory.
        """
        if self._context is not None and self._llama.llama_n_ctx(self._context) >= num_tokens:
            return
        self._free_context()
        params = self._llama.llama_context_default_params()
        params.n_ctx = max(_MIN_CONTEXT, 1 << (num_tokens - 1).bit_length())
        params.n_batch = params.n_ubatch = PASS_TOKENS
        params.n_threads = params.n_threads_batch = self._num_threads
        params.type_k = params.type_v = _CACHE_TYPES[self._dtype]
        # The fused attention is the faster one in half precision; in float32 it is slower, and rounds.
        params.flash_attn_type = int(self._dtype != torch.float32)
        self._context = self._llama.llama_init_from_model(self._file.pointer, params)
        if not self._context:
            raise ModelError(f"llama.cpp has no memory for a context of {params.n_ctx} tokens")
        self._free_context = weakref.finalize(self, self._llama.llama_free, self._context)

    def write(
        self, prompt: list[int], params: SamplingParams, stop: frozenset[int], look: Look | None
    ) -> Written:
        """The continuation of a prompt, its end-of-text token included. Raises ModelError if a pass fails."""
        text = np.empty(len(prompt) + params.max_new_tokens, np.intc)
        text[: len(prompt)] = prompt
        length, num_passes, num_drafted = len(prompt), 1, 0
        drafted: list[int] = []
        sampler = self._sampler(params)
        memory = self._llama.llama_get_memory(self._context)
        try:
            self._prefill(prompt, memory)
            while True:
                gained = self._sample(sampler, drafted, stop)
                text[length : length + len(gained)] = gained
                length += len(gained)
                if length == len(text) or gained[-1] in stop:
                    return Written(text[len(prompt) : length].tolist(), num_passes, num_drafted)
                if len(gained) <= len(drafted):
                    self._llama.llama_memory_seq_rm(memory, 0, length - 1, -1)
                # The pass gives one token more than it verifies.
                drafted = look(text[:length])[: len(text) - length - 1].tolist() if look else []
                self._decode([gained[-1], *drafted], length - 1, every_row=True)
                num_passes, num_drafted = num_passes + 1, num_drafted + len(drafted)
        finally:
            self._llama.llama_sampler_free(sampler)

    def _sampler(self, params: SamplingParams) -> Any:
        llama = self._llama
        chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        if params.temperature == 0:
            llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_greedy())
            return chain
        llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_temp(params.temperature))
        llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_dist((params.seed or 0) & 0xFFFFFFFF))
        return chain

    def _sample(self, sampler: Any, drafted: list[int], stop: frozenset[int]) -> list[int]:
        """Tokens after the last pass, as far as the draft agrees, and one more."""
        gained: list[int] = []
        for row in range(len(drafted) + 1):
            gained.append(self._llama.llama_sampler_sample(sampler, self._context, row - len(drafted) - 1))
            if gained[-1] in stop or gained[-1] not in drafted[row : row + 1]:
                break
        return gained

    def _prefill(self, prompt: list[int], memory: Any) -> None:
        """Into an empty cache; logits of the last token only."""
        self._llama.llama_memory_clear(memory, False)
        for start in range(0, len(prompt), PASS_TOKENS):
            self._decode(prompt[start : start + PASS_TOKENS], start, every_row=False)

    def _decode(self, token_ids: list[int], position: int, *, every_row: bool) -> None:
        batch = self._batch
        batch.n_tokens = len(token_ids)
        for row, token_id in enumerate(token_ids):
            batch.token[row] = token_id
            batch.pos[row] = position + row
            batch.logits[row] = every_row
        batch.logits[len(token_ids) - 1] = True
        if code := self._llama.llama_decode(self._context, batch):
            raise ModelError(f"llama.cpp failed with code {code} in a pass of {len(token_ids)} tokens")


class LlamaCppMethod:
    """Plain decoding by llama.cpp, or with its prompt lookup; for a single prompt.

    Args:
        tokenizer: transformers', for the texts.
        stop: end-of-text tokens.
        num_lookup: how many tokens are looked up for a pass; 0 for plain decoding.
    """

    def __init__(
        self, name: str, engine: LlamaCpp, tokenizer: Any, stop: frozenset[int], num_lookup: int = 0
    ) -> None:
        self.name = name
        self._engine = engine
        self._tokenizer = tokenizer
        self._stop = stop
        self._look = _prompt_lookup(num_lookup) if num_lookup else None

    def start(self, prompts: list[list[int]], params: SamplingParams) -> None:
        self.answer(prompts, params)

    def answer(self, prompts: list[list[int]], params: SamplingParams) -> Answer:
        [prompt] = prompts
        self._engine.reserve(len(prompt) + params.max_new_tokens)
        stop: frozenset[int] = frozenset() if params.ignore_eos else self._stop
        start = time.perf_counter()
        written = self._engine.write(prompt, params, stop, self._look)
        text = str(self._tokenizer.decode(written.token_ids, skip_special_tokens=True))
        seconds = time.perf_counter() - start
        passes = written.num_passes
        return Answer([written.token_ids], [text], seconds, passes, passes, written.num_draft_tokens)


def _prompt_lookup(num_tokens: int) -> Look:
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    found: Look = LlamaPromptLookupDecoding(num_pred_tokens=num_tokens)
    return found
