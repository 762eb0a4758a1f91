"""A causal language model as the guide of a denoiser: how likely it finds each token of a proposal.

Guide and denoiser have one vocabulary, token for token and id for id, because a proposal is judged a token at
a time. Only control tokens may be missing, such as the mask; the guide reads past those.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.diffusion.canvas import Denoiser, Ids
from hasten.errors import ConfigError, IncompatibleModels, ModelError
from hasten.models.causal_lm import CausalLM
from hasten.models.loading import load_pretrained


class CausalGuide:
    """Ranks tokens in one forward pass over the whole text; nothing is cached between calls.

    Args:
        model: a causal language model of transformers.
        has: bool [vocabulary of the denoiser], the tokens that the guide has too, under the same ids.
    """

    def __init__(self, model: CausalLM, has: NDArray[np.bool_]) -> None:
        self.model = model
        self._has = has

    def ranks(self, token_ids: Ids, start: int = 0) -> Ids:
        """int64 [len(token_ids) - start]: how many tokens it holds likelier than each from ``start`` on.

        The first token that it reads has rank 0, and one that it does not have the size of the vocabulary.
        Of a text longer than its context it reads the end. Raises ModelError for logits that are NaN.
        """
        places = np.flatnonzero(self._has[token_ids])
        places = places[-(self.model.max_length or len(token_ids)) :]
        ranks = np.full(len(token_ids), self.model.vocab_size, dtype=np.int64)
        judged = places[1:][places[1:] >= start]
        if len(judged):
            ranks[judged] = self._read(token_ids[places], len(judged))
        if len(places) and places[0] >= start:
            ranks[places[0]] = 0
        return ranks[start:]

    def _read(self, token_ids: Ids, count: int) -> Ids:
        """Ranks of the last ``count`` tokens."""
        logits = self.model.forward(
            token_ids[None], np.arange(len(token_ids))[None], None, None, logits_to_keep=count + 1
        )[0, -count - 1 : -1]
        own = logits.gather(-1, torch.from_numpy(token_ids[-count:, None]).to(logits.device))
        if own.isnan().any():
            raise ModelError("the guide gave no usable logits; load it in float32")
        return np.asarray((logits > own).sum(-1).cpu().numpy(), dtype=np.int64)


def load_guide(
    guide: Any,
    *,
    denoiser: Denoiser,
    denoiser_tokenizer: Any,
    tokenizer: Any = None,
    dtype: str = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
) -> CausalGuide:
    """Make a causal language model the guide of a denoiser.

    Args:
        guide: a bundled name, a local folder, a hub id, or a transformers model.
        tokenizer: of a transformers model. Where one tokenizer is missing, vocabularies of one size are taken
            for the same.
        dtype, device, trust_remote_code: as for ``loading.load_pretrained``, of a guide given by name.

    Raises:
        ConfigError: an option that cannot work here, or a missing tokenizer.
        ModelError: a model that cannot be loaded, or is no causal language model; a denoiser.
        IncompatibleModels: another vocabulary than the denoiser's.
    """
    if isinstance(guide, str | os.PathLike):
        if tokenizer is not None:
            raise ConfigError("tokenizer= goes with a transformers model; a name or folder brings its own")
        guide, tokenizer = load_pretrained(
            os.fspath(guide), dtype, device, trust_remote_code=trust_remote_code
        )
    elif dtype != "auto" or device is not None:
        raise ConfigError("the guide's dtype and device go with a name or folder, not with an object")
    model = CausalLM(guide)
    if not getattr(model.forward.text_config, "is_causal", True):
        raise ModelError("the guide is a denoiser that sees what it judges; give an autoregressive model")
    return CausalGuide(model, _shared(denoiser, denoiser_tokenizer, tokenizer, _input_size(model)))


def _input_size(model: CausalLM) -> int:
    return int(model.forward.model.get_input_embeddings().weight.shape[0])


def _shared(denoiser: Denoiser, ours: Any, theirs: Any, guide_size: int) -> NDArray[np.bool_]:
    """bool [vocabulary of the denoiser]"""
    size = denoiser.vocab_size
    if ours is None or theirs is None:
        if size != guide_size:
            whose = "denoiser" if ours is None else "guide"
            raise ConfigError(
                f"denoiser and guide have {size} and {guide_size} tokens, and the {whose} has no tokenizer "
                "to tell whether they are the same; load both by name, or give tokenizer= with a model object"
            )
        return np.ones(size, dtype=np.bool_)
    known = theirs.get_vocab()
    has = np.zeros(size, dtype=np.bool_)
    missing = []
    for token, token_id in ours.get_vocab().items():
        if token_id >= size:
            continue
        has[token_id] = known.get(token) == token_id < guide_size
        if not has[token_id]:
            missing.append((token_id, token))
    controls = {denoiser.spec.mask_id, *ours.all_special_ids}
    controls |= {token_id for token_id, token in ours.added_tokens_decoder.items() if token.special}
    strange = sorted(pair for pair in missing if pair[0] not in controls)
    if strange:
        token_id, token = strange[0]
        raise IncompatibleModels(
            f"the guide has another vocabulary than the denoiser: {len(strange)} tokens differ, such as "
            f"{token!r}, which is {token_id} for the denoiser and {known.get(token)} for the guide; choose a "
            "guide with the denoiser's tokenizer"
        )
    return has
