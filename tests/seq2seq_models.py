"""Tiny encoder-decoder models, their sources, and what transformers writes about them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers as hf
from transformers.generation.utils import GenerationMixin

VOCAB = 97
EOS = 1
ENDS = {
    "vocab_size": VOCAB,
    "pad_token_id": 0,
    "eos_token_id": EOS,
    "bos_token_id": 2,
    "decoder_start_token_id": 2,
}
T5: dict[str, Any] = {
    **ENDS,
    "decoder_start_token_id": 0,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
}
GATED = {
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
}
LAYERS: dict[str, Any] = {
    **ENDS,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}
BART = {**LAYERS, "max_position_embeddings": 256}
LED = {
    **LAYERS,
    "max_encoder_position_embeddings": 256,
    "max_decoder_position_embeddings": 128,
    "attention_window": 8,
}
WHISPER = {**LAYERS, "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 128}
GEMMA = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 6,
    "max_position_embeddings": 256,
}
T5GEMMA = {**ENDS, "encoder": GEMMA, "decoder": {**GEMMA, "cross_attention_hidden_size": 32}}

SEQ2SEQ: dict[str, tuple[str, dict[str, Any], str, int, float]] = {
    "t5": ("T5Config", T5, "chain", 11, 1.0),
    "t5-gated": ("T5Config", {**T5, **GATED}, "chain", 3, 0.5),
    "bart": ("BartConfig", BART, "chain", 9, 1.0),
    "mbart": ("MBartConfig", BART, "chain", 3, 1.0),
    "pegasus": ("PegasusConfig", BART, "chain", 0, 1.0),
    "marian-two-vocabularies": (
        "MarianConfig",
        {**BART, "decoder_vocab_size": 61, "share_encoder_decoder_embeddings": False},
        "chain",
        10,
        1.0,
    ),
    "led": ("LEDConfig", LED, "chain", 8, 1.0),
    "whisper": ("WhisperConfig", WHISPER, "tree", 2, 1.0),
    "t5gemma": ("T5GemmaConfig", T5GEMMA, "tree", 3, 1.0),
}
"""name -> (config class, arguments, the mode the probe must find, seed and size of weights: texts wander)"""

RAGGED = [5, 12, 3, 30]


def build_seq2seq(name: str = "t5gemma", dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A random model; ``changes`` go into the config."""
    config_class, arguments, _, seed, size = SEQ2SEQ[name]
    config = getattr(hf, config_class)(**{**arguments, "tie_word_embeddings": False, **changes})
    is_speech = name == "whisper"
    model = (hf.AutoModelForSpeechSeq2Seq if is_speech else hf.AutoModelForSeq2SeqLM).from_config(config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, size)
    return model.to(dtype).eval()


def sources_for(name: str, count: int = len(RAGGED)) -> list[Any]:
    """Texts of different lengths, or recordings of one length."""
    rng = np.random.default_rng(0)
    if name == "whisper":
        return [rng.standard_normal((8, 40)).astype(np.float32) for _ in range(count)]
    return [
        rng.integers(3, 60, RAGGED[row % len(RAGGED)] + row // len(RAGGED)).tolist() for row in range(count)
    ]


def transformers_greedy(
    model: Any, source: Any, max_new_tokens: int, eos_token_id: Any = -1, **options: Any
) -> list[int]:
    """`generate` with one beam; without an end of text, unless one is given."""
    if isinstance(source, np.ndarray):
        inputs = {"input_features": torch.from_numpy(source)[None].to(model.dtype)}
    else:
        inputs = {"input_ids": torch.tensor([source]), "attention_mask": torch.ones(1, len(source)).long()}
    prompt = options.get("decoder_input_ids")
    written = GenerationMixin.generate(
        model,
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=eos_token_id,
        pad_token_id=0,
        **options,
    )
    skipped = 1 if prompt is None else prompt.shape[1] + int(written[0, 0] != prompt[0, 0])
    return [int(token_id) for token_id in written[0, skipped:]]
