"""Every error hasten raises on purpose.

HastenError
├── ConfigError          an option has a value that cannot work (also a ValueError)
├── PromptError          a prompt cannot be decoded: empty, too long, token id outside the vocabulary
├── ModelError           a model cannot be loaded or gives unusable output (NaN logits)
├── IncompatibleModels   two models or a store and a model do not share a vocabulary
├── StoreError           a drafter store cannot be read or written
│   └── WriteError       a file cannot be written: no such place, no permission, a full disk
└── MissingExtra         an optional dependency is not installed

GenerationInterrupted    Ctrl-C while writing (a KeyboardInterrupt); carries what was written so far
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class HastenError(Exception):
    """Base class: catch this to catch everything hasten raises on purpose."""


class ConfigError(HastenError, ValueError):
    """An option has a value that cannot work; the message names the value and the remedy."""


class PromptError(HastenError, ValueError):
    """A prompt that cannot be decoded."""


class ModelError(HastenError):
    """A model that cannot be loaded, or whose output cannot be used."""


class IncompatibleModels(HastenError, ValueError):
    """Vocabularies differ where they must agree."""


class StoreError(HastenError):
    """A drafter store that cannot be read or written."""


class WriteError(StoreError):
    """A file that was asked for cannot be written; what was there before is still there."""


class MissingExtra(HastenError, ImportError):
    """An optional dependency is missing; the message is the pip line that installs it."""


class GenerationInterrupted(KeyboardInterrupt):
    """Ctrl-C during ``generate``. ``outputs`` holds every text as far as it was written."""

    def __init__(self, outputs: Sequence[Any]) -> None:
        super().__init__("generation was interrupted")
        self.outputs = list(outputs)
