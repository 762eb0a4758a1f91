"""Under which conditions a number was measured; a number without them says nothing."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from hasten import __version__
from hasten.bench.models import OpenModel
from hasten.models.draft.draft_lm import DraftLM


def describe(opened: OpenModel) -> dict[str, Any]:
    """JSON-ready: the model and the machine."""
    target, draft = opened.language_model.target, opened.language_model.resources.draft
    return {
        "model": opened.name,
        "shape": opened.shape,
        "parameters": opened.num_parameters,
        "dtype": str(target.dtype).removeprefix("torch."),
        "device": str(target.device),
        "forward": opened.forward,
        "startup_seconds": round(opened.startup_seconds, 3),
        "mode": target.probe.mode,
        "draft": None if draft is None else _describe_draft(draft),
        **_machine(target.device),
    }


def describe_canvases(name: str, model: Any) -> dict[str, Any]:
    """JSON-ready: a diffusion model, a transformers module, and the machine."""
    parameter = next(model.parameters())
    return {
        "model": name,
        "parameters": sum(one.numel() for one in model.parameters()),
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": str(parameter.device),
        **_machine(parameter.device),
    }


def _machine(device: torch.device) -> dict[str, Any]:
    return {
        "threads": torch.get_num_threads(),
        "processor": processor_name(device),
        "versions": {
            "hasten": __version__,
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "python": platform.python_version(),
        },
        "git_revision": git_revision(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _describe_draft(draft: DraftLM) -> dict[str, Any]:
    return {
        "model": draft.name,
        "dtype": str(draft.model.dtype).removeprefix("torch."),
        "device": str(draft.model.device),
        "proposable_tokens": draft.num_proposable,
        "exits": list(draft.exits),
    }


def processor_name(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def git_revision() -> str | None:
    """The revision of the checkout this package lies in; None for an installed package."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
