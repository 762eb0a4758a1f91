"""The draft model: a smaller causal LM that guesses in the target's tokens.

It may have the target's tokenizer or another (it then guesses the tokens that both have), a head cut down to
frequent tokens (VocabTrim, arXiv 2506.22694), and exits: numbers of layers after which its norm and head were
trained to work too (S2D, 2407.01955), listed under ``hasten_exits`` in its config.json.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hasten.errors import ConfigError, IncompatibleModels, ModelError
from hasten.models.bundled_models import BUNDLED, bundled_path
from hasten.models.causal_lm import CausalLM
from hasten.models.draft.part_models import first_layers, num_layers_of, with_head_rows
from hasten.models.draft.trimmed_vocabulary import TRIM_FILE, load_kept_ids
from hasten.models.forwards.choose import prepare
from hasten.models.loading import load_pretrained
from hasten.models.target import Target
from hasten.models.vocabulary import VocabularyMap, vocabulary_fingerprint, vocabulary_map


class DraftLM:
    """A smaller causal LM that guesses in the target's tokens.

    Args:
        model: the draft.
        vocabulary: how its tokens and the target's correspond.
        name: what tables and errors call it.
        kept_ids: the draft's token id of every column of its head; None for a whole head.
        context: tokens of its own that it may read at once; None for all that the model has positions for.
        folder: where it was loaded from, if that is a folder of this machine.

    Raises ModelError for exits in its config that cannot be.
    """

    def __init__(
        self,
        model: CausalLM,
        vocabulary: VocabularyMap,
        *,
        name: str = "draft",
        kept_ids: torch.Tensor | None = None,
        context: int | None = None,
        folder: Path | None = None,
    ) -> None:
        self.model = model
        self.vocabulary = vocabulary
        self.name = name
        self.context = context
        self.folder = folder
        self.exits = _exits_of(model.forward.model, name)
        self.head_ids = torch.arange(model.vocab_size) if kept_ids is None else kept_ids
        """the draft's own id of every column of its head"""
        self._columns, self._target_ids = self._correspondence()
        in_place = torch.arange(len(self._columns))
        self._is_prefix = self._columns.equal(in_place) and self._target_ids.equal(in_place)
        self._at_exit: dict[int, DraftLM] = {self.exits[-1]: self}

    @property
    def target_vocab_size(self) -> int:
        return len(self.vocabulary.draft_of)

    @property
    def num_proposable(self) -> int:
        """Tokens of the target that the draft can propose."""
        return len(self._columns)

    def to_draft(self, target_ids: list[int]) -> list[int]:
        """What the draft reads for these tokens: one target token may become several draft tokens, or none.

        What a text becomes is what its parts become, one after the other.
        """
        return self.vocabulary.to_draft(target_ids)

    def draft_token(self, target_id: int) -> int | None:
        """The one draft token of a shared token; None for others, which cannot be nodes inside a tree."""
        draft_id = int(self.vocabulary.draft_of[target_id])
        return None if draft_id < 0 else draft_id

    def to_target(self, logits: torch.Tensor) -> torch.Tensor:
        """The draft's logits [..., columns of its head] as float32 [..., target vocabulary].

        Tokens that the draft cannot propose have -inf. Nothing is copied where the columns are the target's.
        """
        count = len(self._target_ids)
        logits = logits.float()
        if self._is_prefix and count == self.target_vocab_size:
            return logits if logits.shape[-1] == count else logits[..., :count]
        found = logits.new_full((*logits.shape[:-1], self.target_vocab_size), float("-inf"))
        if self._is_prefix:
            found[..., :count] = logits[..., :count]
        else:
            self._columns = self._columns.to(logits.device)
            self._target_ids = self._target_ids.to(logits.device)
            found[..., self._target_ids] = logits[..., self._columns]
        return found

    def at_exit(self, num_layers: int) -> DraftLM:
        """The same weights, run for the first layers only, then norm and head. Shares the memory.

        Raises:
            ConfigError: the draft was not trained to stop there.
            ModelError: its layers cannot be told from its other parts.
        """
        if num_layers not in self.exits:
            raise ConfigError(
                f"the draft {self.name!r} cannot stop after {num_layers} layers; choose one of "
                f"{', '.join(map(str, self.exits))}"
            )
        if num_layers not in self._at_exit:
            part = first_layers(self.model.forward.model, num_layers)
            part.config.hasten_exits = [each for each in self.exits if each <= num_layers]
            self._at_exit[num_layers] = DraftLM(
                CausalLM(part),
                self.vocabulary,
                name=f"{self.name}@{num_layers}",
                kept_ids=self.head_ids,
                context=self.context,
            )
        return self._at_exit[num_layers]

    def _correspondence(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(columns of the head, target ids): one pair for each token the draft can propose."""
        draft_ids = self.head_ids.numpy()
        target_of = np.full(max(input_size(self.model), int(draft_ids.max()) + 1), -1, np.int64)
        shared = np.flatnonzero(self.vocabulary.draft_of >= 0)
        target_of[self.vocabulary.draft_of[shared]] = shared
        target_ids = target_of[draft_ids]
        columns = np.flatnonzero(target_ids >= 0)
        return torch.from_numpy(columns), torch.from_numpy(target_ids[columns])


def input_size(model: CausalLM) -> int:
    """Token ids a model can read."""
    return int(model.forward.model.get_input_embeddings().weight.shape[0])


def _exits_of(model: Any, name: str) -> tuple[int, ...]:
    total = num_layers_of(model)
    listed = getattr(model.config, "hasten_exits", None)
    if listed is None:
        return (total,)
    is_list = isinstance(listed, list | tuple) and all(type(each) is int for each in listed)
    if not is_list or not all(1 <= each <= total for each in listed):
        raise ModelError(
            f"the config of {name!r} has hasten_exits={listed!r}; give numbers of layers, 1 to {total}"
        )
    return tuple(sorted({*listed, total}))


def trim_head(draft: DraftLM, kept_ids: Iterable[int]) -> DraftLM:
    """The same draft with a head of these rows only; it reads all tokens as before.

    Args:
        kept_ids: ids of the draft's own tokens; the order does not matter.

    Raises:
        ConfigError: an id the head has no row for, or none that the target shares.
        ModelError: the draft's head is no linear layer.
    """
    kept = sorted(set(kept_ids))
    places = {draft_id: row for row, draft_id in enumerate(draft.head_ids.tolist())}
    unknown = next((each for each in kept if each not in places), None)
    if unknown is not None:
        raise ConfigError(f"the draft {draft.name!r} has no token {unknown} in its head to keep")
    if not set(kept).intersection(draft.vocabulary.draft_of.tolist()):
        raise ConfigError(f"none of the {len(kept)} tokens to keep of {draft.name!r} is one of the target's")
    rows = torch.tensor([places[each] for each in kept])
    model = with_head_rows(draft.model.forward.model, rows)
    return DraftLM(
        CausalLM(model),
        draft.vocabulary,
        name=draft.name,
        kept_ids=torch.tensor(kept),
        context=draft.context,
        folder=draft.folder,
    )


def load_draft(
    draft: Any,
    *,
    target: Target,
    target_tokenizer: Any,
    tokenizer: Any = None,
    dtype: str = "auto",
    device: str | None = None,
    forward: str = "auto",
    context: int | None = None,
    draft_vocab: str | os.PathLike[str] | None = None,
    trust_remote_code: bool = False,
) -> DraftLM:
    """Make a draft model ready to guess for a target.

    Args:
        draft: a bundled name, a local folder, a hub id, a transformers model, or a DraftLM, which is checked.
        tokenizer: of a transformers model given as an object. Without one, a vocabulary of the target's size
            is taken for the target's.
        dtype, forward, trust_remote_code: as for ``hasten.load``; a model given as an object is not changed.
        device: by default the target's.
        context: the draft reads at most so many of its own tokens at once; by default what it was built for.
        draft_vocab: a file of ``hasten train trim``: the head is cut down to its tokens. By default
            ``vocab_trim.safetensors`` in the draft's folder, where there is one.

    Raises:
        ConfigError: an option that cannot work here, a missing tokenizer, or a target with an encoder.
        ModelError: a model that cannot be loaded, or is no causal LM.
        IncompatibleModels: the vocabularies have almost nothing in common.
        StoreError: a trimmed vocabulary that cannot be read.
    """
    if target.reads_source:
        raise ConfigError(
            "a draft model writes for causal language models; this target reads with an encoder"
        )
    if context is not None and context < 1:
        raise ConfigError(f"context={context} cannot work; it must be at least 1")
    is_named = isinstance(draft, str | os.PathLike)
    loading = dtype != "auto" or device is not None or forward != "auto"
    if loading and not is_named:
        raise ConfigError(
            "the draft's dtype, device and forward go with a name or folder, not with an object"
        )
    if isinstance(draft, DraftLM):
        return _checked(draft, target, has_options=(tokenizer, context, draft_vocab) != (None, None, None))
    folder = _folder_of(os.fspath(draft)) if is_named else None
    name = os.fspath(draft) if is_named else getattr(draft, "name_or_path", "") or type(draft).__name__
    if is_named:
        if tokenizer is not None:
            raise ConfigError("tokenizer= goes with a transformers model; a name or folder brings its own")
        where = device or str(target.device)
        draft, tokenizer = load_pretrained(name, dtype, where, trust_remote_code=trust_remote_code)
        draft_vocab = draft_vocab or _beside(folder, TRIM_FILE)
    model = CausalLM(draft)
    vocabulary = vocabulary_map(target_tokenizer, target.vocab_size, tokenizer, input_size(model))
    found = DraftLM(model, vocabulary, name=name, context=context, folder=folder)
    if draft_vocab is not None:
        kept_ids = load_kept_ids(draft_vocab, vocabulary_fingerprint(tokenizer, input_size(model)))
        found = trim_head(found, kept_ids.tolist())
    if is_named:
        asked = forward if found.model.device.type == "cpu" else "stock"
        prepared = prepare(found.model.forward.model, asked).forward
        found.model.forward = prepared or found.model.forward
    return found


def _checked(draft: DraftLM, target: Target, *, has_options: bool) -> DraftLM:
    if has_options:
        raise ConfigError("tokenizer, context and draft_vocab of a DraftLM were chosen when it was made")
    if draft.target_vocab_size != target.vocab_size:
        raise IncompatibleModels(
            f"the draft {draft.name!r} was made for a target of {draft.target_vocab_size} tokens, this one "
            f"has {target.vocab_size}; load it for this target"
        )
    return draft


def _folder_of(name: str) -> Path | None:
    folder = Path(bundled_path(name)) if name in BUNDLED else Path(name).expanduser()
    return folder if folder.is_dir() else None


def _beside(folder: Path | None, name: str) -> Path | None:
    """A file of a draft's folder, where there is one."""
    return folder / name if folder is not None and (folder / name).is_file() else None
