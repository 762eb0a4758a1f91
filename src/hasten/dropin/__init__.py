"""The drop-in: transformers' `generate`, same arguments, same results, decoded by hasten."""

from hasten.dropin.accelerated import Accelerated, accelerate, custom_generate, restore

__all__ = ["Accelerated", "accelerate", "custom_generate", "restore"]
