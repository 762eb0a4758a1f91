"""The only place that knows transformers: probe, forward, cache, keep; and the bundled models."""

from hasten.models.causal_lm import CausalLM

__all__ = ["CausalLM"]
