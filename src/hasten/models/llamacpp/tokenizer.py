"""The tokenizer in a GGUF file, as far as prompts, texts, stores and chats need one of transformers."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping, Sequence as AbstractSequence
from functools import cached_property
from types import SimpleNamespace
from typing import Any

from hasten.errors import ModelError
from hasten.models.llamacpp.interface import LlamaFile, bindings

_ROLES = ("bos", "eos", "pad", "mask")


class GgufTokenizer:
    """Called with a text, it gives ``{"input_ids": [...]}``; names are those of transformers' tokenizers.

    Attributes:
        chat_template: Jinja source, or None.
        all_special_ids: tokens that stand for no text.
        added_tokens_decoder: the special ones and those the vocabulary was extended with, by id.
    """

    unk_token_id: int | None = None
    """byte-level vocabularies spell everything"""

    def __init__(self, file: LlamaFile) -> None:
        self._llama = bindings()
        self._file = file
        self._vocabulary = file.vocabulary
        self._pieces: dict[int, bytes] = {}
        template = self._llama.llama_model_chat_template(file.pointer, None)
        self.chat_template = None if template is None else template.decode(errors="replace")
        self.bos_token_id, self.eos_token_id, self.pad_token_id, self.mask_token_id = (
            self._role(role) for role in _ROLES
        )

    @classmethod
    def of(cls, file: LlamaFile) -> GgufTokenizer | None:
        """None where the file has no vocabulary, so that it takes and gives token ids only."""
        none = bindings().LLAMA_VOCAB_TYPE_NONE
        return None if bindings().llama_vocab_type(file.vocabulary) == none else cls(file)

    def _role(self, role: str) -> int | None:
        found = int(getattr(self._llama, f"llama_vocab_{role}")(self._vocabulary))
        return found if found >= 0 else None

    def __len__(self) -> int:
        return len(self.get_vocab())

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": self.encode(text, add_special_tokens=add_special_tokens)}

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; names of special tokens in it become these tokens."""
        data = text.encode()
        room = len(data) + 8
        while True:
            found = (ctypes.c_int32 * room)()
            count = self._llama.llama_tokenize(
                self._vocabulary, data, len(data), found, room, add_special_tokens, True
            )
            if count >= 0:
                return list(found[:count])
            if -count <= room:
                raise ModelError("llama.cpp cannot tokenise this text; give token ids")
            room = -count

    def decode(
        self,
        token_ids: int | Iterable[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> str:
        """The text of these tokens; bytes that are no UTF-8 become U+FFFD."""
        ids = [token_ids] if isinstance(token_ids, int) else [int(each) for each in token_ids]
        kept = [each for each in ids if not (skip_special_tokens and each in self._special)]
        return b"".join(map(self._piece, kept)).decode(errors="replace")

    def _piece(self, token_id: int) -> bytes:
        if token_id not in self._pieces:
            size = -self._llama.llama_token_to_piece(self._vocabulary, token_id, None, 0, 0, True)
            buffer = ctypes.create_string_buffer(max(size, 1))
            count = self._llama.llama_token_to_piece(self._vocabulary, token_id, buffer, size, 0, True)
            self._pieces[token_id] = buffer.raw[: max(count, 0)]
        return self._pieces[token_id]

    def get_vocab(self) -> dict[str, int]:
        """Token -> id, without ids that are there only to fill the vocabulary up."""
        return dict(self._tokens)

    @cached_property
    def _tokens(self) -> dict[str, int]:
        unused = self._llama.LLAMA_TOKEN_ATTR_UNUSED
        return {
            self._text(token_id): token_id
            for token_id in range(self._file.vocab_size)
            if not self._attributes(token_id) & unused
        }

    @cached_property
    def _special(self) -> frozenset[int]:
        control = self._llama.LLAMA_TOKEN_ATTR_CONTROL
        ids = range(self._file.vocab_size)
        return frozenset(each for each in ids if self._attributes(each) & control)

    @property
    def all_special_ids(self) -> list[int]:
        return sorted(self._special)

    @cached_property
    def added_tokens_decoder(self) -> dict[int, Any]:
        added = self._llama.LLAMA_TOKEN_ATTR_USER_DEFINED | self._llama.LLAMA_TOKEN_ATTR_CONTROL
        return {
            each: SimpleNamespace(content=text, special=each in self._special)
            for text, each in self._tokens.items()
            if self._attributes(each) & added
        }

    def _text(self, token_id: int) -> str:
        text: bytes = self._llama.llama_vocab_get_text(self._vocabulary, token_id)
        return text.decode(errors="replace")

    def _attributes(self, token_id: int) -> int:
        return int(self._llama.llama_vocab_get_attr(self._vocabulary, token_id))

    def apply_chat_template(
        self,
        messages: AbstractSequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        chat_template: str | None = None,
        **options: Any,
    ) -> str | list[int]:
        """The text of a conversation, special tokens written out; arguments are those of transformers.

        Raises ModelError without a template.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        chat_template = chat_template or self.chat_template
        if chat_template is None:
            raise ModelError("this GGUF file has no chat template; write the prompt yourself")
        names = {"bos_token": self.bos_token_id, "eos_token": self.eos_token_id}
        tokens: dict[str, Any] = {name: self._text(each) for name, each in names.items() if each is not None}
        texts, _ = render_jinja_template(  # type: ignore[str-unpack]  # annotated as if it gave one text
            [[dict(each) for each in messages]],
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
            **{**tokens, **options},
        )
        return self.encode(texts[0], add_special_tokens=False) if tokenize else str(texts[0])
