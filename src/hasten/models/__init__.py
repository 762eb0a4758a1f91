"""The only place that knows transformers: probe, forward, cache, keep; and the bundled models."""

import hasten.compile_cache  # noqa: F401 - before what is compiled
from hasten.core import System
from hasten.models.causal_lm import CausalLM
from hasten.models.draft.trimmed_vocabulary import SYSTEM as VOCAB_TRIM_SYSTEM
from hasten.models.sessions.prepacking import SYSTEM as PREPACKING_SYSTEM
from hasten.models.sessions.shared_prefix import SYSTEM as HYDRAGEN_SYSTEM
from hasten.models.vocabulary import SYSTEM as SHARED_TOKENS_SYSTEM

SYSTEMS: tuple[System, ...] = (
    PREPACKING_SYSTEM,
    HYDRAGEN_SYSTEM,
    SHARED_TOKENS_SYSTEM,
    VOCAB_TRIM_SYSTEM,
)

__all__ = ["SYSTEMS", "CausalLM"]
