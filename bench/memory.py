# ruff: noqa: PLR0917
"""Peak memory of loading a model and decoding with it, over the size of its weights and its cache.

python bench/memory.py compare [--shape 135m] [--dtype bfloat16] [--forwards stock,packed] [--drafter off]

Each forward is measured in a process of its own, which imports everything before it starts to count (Linux).
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import hasten
from hasten.bench.memory_limit import cache_bytes_per_token
from hasten.bench.models import fastest_dtype, load_stock
from hasten.core import SamplingParams
from hasten.models.forwards.choose import FORWARDS

MEBIBYTE = 2**20
app = typer.Typer(add_completion=False)


@app.command()
def compare(
    shape: Annotated[
        str, typer.Option(help="the sizes of a published model; none for demo as it is")
    ] = "135m",
    dtype: str = "",
    forwards: str = ",".join(name for name in FORWARDS if name != "auto"),
    drafter: str = "off",
    prompt: Annotated[int, typer.Option(help="tokens of the prompt")] = 256,
    tokens: Annotated[int, typer.Option(help="new tokens")] = 128,
) -> None:
    """A line for every forward."""
    dtype = dtype or fastest_dtype()
    with tempfile.TemporaryDirectory(prefix="hasten-") as folder:
        model, tokenizer = load_stock(
            "demo", dtype=dtype, device="cpu", shape=None if shape == "none" else shape
        )
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        for forward in forwards.split(","):
            arguments = [folder, dtype, forward, drafter, str(prompt), str(tokens)]
            command = [sys.executable, __file__, "one", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{forward}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            print(sentence(found))
            print(json.dumps({"shape": shape, "dtype": dtype, **found}))


@app.command()
def one(folder: Path, dtype: str, forward: str, drafter: str, prompt: int, tokens: int) -> None:
    """Measure one forward in this process, which must be new."""
    before = resident_bytes("VmRSS")
    language_model = hasten.load(
        str(folder), dtype=dtype, device="cpu", forward=forward, drafter=drafter, prefix_cache=0
    )
    loaded = resident_bytes("VmHWM")
    target = language_model.target
    token_ids = np.random.default_rng(0).integers(3, target.vocab_size, prompt).tolist()
    language_model.generate([token_ids], SamplingParams(max_new_tokens=tokens, ignore_eos=True))
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    found = {
        "forward": forward,
        "weights": weights,
        "cache": (cache_bytes_per_token(target) or 0) * (prompt + tokens),
        "loading": loaded - before,
        "peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before,
        "afterwards": resident_bytes("VmRSS") - before,
    }
    print(json.dumps(found))


def sentence(found: dict[str, Any]) -> str:
    needed = found["weights"] + found["cache"]
    sizes = {name: found[name] / MEBIBYTE for name in ("weights", "cache", "loading", "peak", "afterwards")}
    return (
        f"{found['forward']}: weights {sizes['weights']:.1f} MiB and cache {sizes['cache']:.1f} MiB; "
        f"while loading {sizes['loading']:.1f} MiB, at most {sizes['peak']:.1f} MiB "
        f"({found['peak'] / needed:.2f}×), "
        f"afterwards {sizes['afterwards']:.1f} MiB ({found['afterwards'] / needed:.2f}×)"
    )


def resident_bytes(name: str) -> int:
    """ "VmRSS", what is resident now, or "VmHWM", the most that ever was, of this process."""
    lines = Path(f"/proc/{os.getpid()}/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    app()
