"""OpenVINO GenAI: plain decoding by its LLMPipeline on the CPU.

Its own GGUF reader takes float16 and quantized files only, so the weights would not be the same; the model is
traced instead by OpenVINO's converter, and its cache becomes the state that the pipeline asks for. Weights,
arithmetic and cache have the model's precision. At a temperature it draws random numbers of its own.
"""

from __future__ import annotations

import copy
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils import logging

from hasten.bench.methods import Answer
from hasten.core import SamplingParams
from hasten.errors import MissingExtra, ModelError
from hasten.models.sessions.attention import AttentionKinds

_PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}
_HIDDEN = -65504.0  # added to the score of what a token must not see
_TEXT_INPUTS = ("input_ids", "attention_mask", "position_ids")


class OpenVinoMethod:
    """For a single prompt.

    Args:
        model, tokenizer: transformers' own; the weights are copied.
        stop: end-of-text tokens.
        num_threads: of every pass.

    Raises MissingExtra without the package, and ModelError with the reason where the model cannot be traced.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, stop: frozenset[int], num_threads: int) -> None:
        self.name = name
        self._tokenizer = tokenizer
        self._stop = stop
        self._library = _library()
        self._pipeline = self._open(model, num_threads)

    def _open(self, model: Any, num_threads: int) -> Any:
        if model.device.type != "cpu" or model.dtype not in _PRECISIONS:
            dtype = str(model.dtype).removeprefix("torch.")
            raise ModelError(f"it is run on the CPU in float32 or bfloat16, not on {model.device} in {dtype}")
        if _has_windows(model.config.get_text_config(decoder=True)):
            raise ModelError(
                f"{type(model).__name__} has layers that do not see the whole text; not traced here"
            )
        precision = _PRECISIONS[model.dtype]
        # A file that is still mapped outlives its name; where it does not, the folder stays.
        with tempfile.TemporaryDirectory(prefix="hasten-", ignore_cleanup_errors=True) as folder:
            try:
                _export(model, Path(folder) / "openvino_model.xml")
                return self._library.LLMPipeline(
                    folder,
                    "CPU",
                    INFERENCE_PRECISION_HINT=precision,
                    KV_CACHE_PRECISION=precision,
                    INFERENCE_NUM_THREADS=num_threads,
                    ATTENTION_BACKEND="SDPA",
                )
            except Exception as problem:  # whatever a model has that the converter or the runtime cannot take
                raise ModelError(
                    f"OpenVINO cannot run {type(model).__name__}: {_reason(problem)}"
                ) from problem

    def start(self, prompts: list[list[int]], params: SamplingParams) -> None:
        self.answer(prompts, params)

    def answer(self, prompts: list[list[int]], params: SamplingParams) -> Answer:
        """Passes are one a token: it drafts nothing."""
        from openvino import Tensor as OpenVinoTensor

        token_ids = np.array(prompts, np.int64)
        inputs = self._library.TokenizedInputs(
            OpenVinoTensor(token_ids), OpenVinoTensor(np.ones_like(token_ids))
        )
        settings = self._settings(params)
        start = time.perf_counter()
        [written] = self._pipeline.generate(inputs, settings).tokens
        text = str(self._tokenizer.decode(written, skip_special_tokens=True))
        seconds = time.perf_counter() - start
        return Answer([list(written)], [text], seconds, len(written), len(written))

    def _settings(self, params: SamplingParams) -> Any:
        settings = self._library.GenerationConfig()
        settings.max_new_tokens = params.max_new_tokens
        settings.ignore_eos = params.ignore_eos or not self._stop
        settings.set_eos_token_id(min(self._stop, default=0))  # it wants one in any case
        if not settings.ignore_eos:
            settings.stop_token_ids = set(self._stop)
        settings.do_sample = params.temperature > 0
        if settings.do_sample:
            settings.temperature = params.temperature
            settings.rng_seed = params.seed or 0
        return settings


def _library() -> Any:
    try:
        import openvino_genai
    except ImportError as problem:
        raise MissingExtra("it needs OpenVINO GenAI: pip install openvino-genai") from problem
    return openvino_genai


def _has_windows(config: Any) -> bool:
    """A mask that is handed over, as it is when tracing, is the same for all layers."""
    try:
        return any(AttentionKinds.of(config).sizes.values())
    except KeyError:
        return True


def _reason(problem: BaseException) -> str:
    """The last line of what went wrong first."""
    while cause := problem.__cause__ or problem.__context__:
        problem = cause
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return lines[-1] if lines else type(problem).__name__


class _Past:
    """What a traced pass asks of a transformers cache: old and new tokens of every layer, joined."""

    is_compileable = False

    def __init__(self, past: list[Tensor]) -> None:
        self._past = past
        self.joined: list[Tensor] = []

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        found = (
            torch.cat([self._past[2 * layer], keys], -2),
            torch.cat([self._past[2 * layer + 1], values], -2),
        )
        self.joined += found
        return found

    def get_seq_length(self, *_: Any) -> int:
        return self._past[0].shape[-2]


class _Pass(nn.Module):
    """A pass with the cache as inputs and outputs: logits, then keys and values of every layer."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        total, count = attention_mask.shape[1], input_ids.shape[1]
        is_earlier = torch.arange(total)[None] <= (torch.arange(count) + (total - count))[:, None]
        is_visible = is_earlier[None, None] & attention_mask[:, None, None].bool()
        cache = _Past(past)
        output = self.model(
            input_ids=input_ids,
            attention_mask=torch.where(is_visible, 0.0, _HIDDEN).to(self.model.dtype),
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return (output.logits.float(), *cache.joined)


def _export(model: Any, path: Path) -> None:
    """Write a model whose inputs are those of the text and ``beam_idx``, and whose cache is its state."""
    import openvino
    from openvino._offline_transformations import apply_make_stateful_transformation

    config = model.config.get_text_config(decoder=True)
    num_layers = config.num_hidden_layers
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    channels = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    past = [torch.zeros(1, heads, 3, channels, dtype=model.dtype) for _ in range(2 * num_layers)]
    example = (torch.zeros(1, 2, dtype=torch.int64), torch.ones(1, 5, dtype=torch.int64))
    with _silent(), torch.inference_mode(False), torch.no_grad():
        traced = openvino.convert_model(  # it changes what it traces in half precision
            _Pass(copy.deepcopy(model)).eval(), example_input=(*example, torch.tensor([[3, 4]]), past)
        )
    kinds = [f"{layer}.{kind}" for layer in range(num_layers) for kind in ("key", "value")]
    states = {f"past.{kind}": f"present.{kind}" for kind in kinds}
    shapes = {}
    for port, name in zip(traced.inputs, (*_TEXT_INPUTS, *states), strict=True):
        port.get_tensor().set_names({name})
        sizes = [-1, heads, -1, channels] if name in states else [-1, -1]
        shapes[port] = openvino.PartialShape(sizes)
    for port, name in zip(traced.outputs, ("logits", *states.values()), strict=True):
        port.get_tensor().set_names({name})
    traced.reshape(shapes)
    _add_beams(traced, states)
    apply_make_stateful_transformation(traced, states)
    _begin_empty(traced, heads, channels)
    openvino.save_model(traced, str(path), compress_to_fp16=False)


def _add_beams(traced: Any, states: dict[str, str]) -> None:
    """The pipeline says which row of the cache each row goes on from."""
    import openvino
    from openvino import opset13

    beams = opset13.parameter(name="beam_idx", dtype=openvino.Type.i32, shape=openvino.PartialShape([-1]))
    beams.output(0).get_tensor().add_names({"beam_idx"})
    traced.add_parameters([beams])
    for name in states:
        port = traced.input(name)
        readers = port.get_target_inputs()
        chosen = opset13.gather(port, beams, opset13.constant(0))
        for reader in readers:
            reader.replace_source_output(chosen.output(0))
    traced.validate_nodes_and_infer_types()


def _begin_empty(traced: Any, heads: int, channels: int) -> None:
    """A state that was never written holds no tokens, in as many rows as there are texts."""
    from openvino import opset13

    sizes = opset13.shape_of(traced.input("input_ids"), output_type="i64")
    rows = opset13.gather(sizes, opset13.constant(np.array([0])), opset13.constant(0))
    shape = opset13.concat([rows, opset13.constant(np.array([heads, 0, channels], np.int64))], axis=0)
    for node in traced.get_ops():
        if node.get_type_name() == "ReadValue":
            zero = opset13.convert(
                opset13.constant(np.float32(0)), node.get_output_element_type(0).get_type_name()
            )
            node.set_arguments([opset13.broadcast(zero, shape)])
    traced.validate_nodes_and_infer_types()


@contextmanager
def _silent() -> Iterator[None]:
    """Tracing warns of every size it takes as fixed; those here are not."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
