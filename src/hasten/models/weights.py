"""Weights of a checkpoint on a transformers model, all of them or none.

transformers fills what a checkpoint lacks with random numbers, skips what it has too much, and says so in a
log. A model with one random layer writes nonsense without an error, so here each of these is one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import safe_open

from hasten.errors import ModelError

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_SHOWN = 4
_INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL")
_ANYWAY = "if that is what you want, load it with transformers and give hasten the object instead of the name"


def load_weights(model_class: Any, source: str, **options: Any) -> Any:
    """``model_class.from_pretrained(source, **options)``, if the files hold exactly the model's weights.

    What transformers itself declares dispensable (tied weights, buffers it computes, layers of another
    task) may be missing or there.

    Raises:
        ModelError: weights that are missing, have no place, have another shape, or are integers.
        OSError, ValueError, RuntimeError, SafetensorError: what transformers raises.
    """
    model, found = model_class.from_pretrained(
        source, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    misshaped = sorted(
        f"{name} is {list(theirs)}, not {list(ours)}" for name, theirs, ours in found["mismatched_keys"]
    )
    if misshaped:
        raise ModelError(f"config.json is not that of these weights: {listed(misshaped)}")
    missing = sorted(found["missing_keys"])
    if missing:
        raise ModelError(
            f"the files do not have the weights of {listed(missing)}, which would stay random; copy the "
            f"checkpoint again, or correct its config.json; {_ANYWAY}"
        )
    unused = sorted(found["unexpected_keys"])
    if unused:
        raise ModelError(
            f"{type(model).__name__} has no place for {listed(unused)}; the config.json of another model, or "
            f"weights of another task? {_ANYWAY}"
        )
    if getattr(model, "hf_quantizer", None) is None:
        _refuse_integers(model, Path(source))
    return model


def _refuse_integers(model: Any, folder: Path) -> None:
    """Raises ModelError for integers where the model has floats: quantised weights without their recipe.

    transformers would take them for the values themselves. Looks at a local folder's safetensors files.
    """
    floats = {name for name, weight in model.named_parameters() if weight.is_floating_point()}
    for file in filter(Path.is_file, weight_files(folder)):
        with safe_open(file, framework="pt") as opened:
            wrong = [
                name
                for name in opened.keys()  # noqa: SIM118  # not a dict
                if name in floats and opened.get_slice(name).get_dtype() in _INTEGERS
            ]
        if wrong:
            raise ModelError(
                f"{file.name} holds integers for {listed(sorted(wrong))}, and config.json does not say how "
                "they were quantised (quantization_config); take the checkpoint that is not quantised"
            )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, there or not; what else lies in its folder is none of them.

    As in transformers, an index counts where there is no single file.
    """
    single, index = folder / WEIGHTS_FILE, folder / INDEX_FILE
    if single.is_file() or not index.is_file():
        return [single]
    names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    return [folder / name for name in sorted(set(names))]


def listed(names: Iterable[str]) -> str:
    """The first few of them."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
