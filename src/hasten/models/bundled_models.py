"""Where the small models that come with hasten lie on disk; loads none of them."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from hasten.errors import ConfigError, ModelError

BUNDLED: tuple[str, ...] = ("demo", "demo-draft", "demo-diffusion", "demo-lists")
"""a target and its draft model; a masked-diffusion model of text, and one of list tasks"""


def bundled_path(name: str) -> Path:
    """The folder of a bundled model, as `AutoModelForCausalLM.from_pretrained` takes it.

    Raises ConfigError for a name that is not bundled, ModelError where the package came without its weights.
    """
    if name not in BUNDLED:
        raise ConfigError(f"bundled model {name!r} does not exist; choose one of {', '.join(BUNDLED)}")
    folder = Path(str(files("hasten.models") / "bundled" / name))
    if not (folder / "model.safetensors").is_file():
        raise ModelError(
            f"bundled model {name!r} has no weights in {folder}; install hasten from its wheel, unpacked"
        )
    return folder
