"""Weights that were copied out of a mapped checkpoint do not stay in memory beside the copy."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from conftest import build_model
from hasten.models.forwards.choose import prepare
from hasten.models.forwards.compiled.mapped_files import MappedFiles

SMAPS = Path("/proc/self/smaps")
pytestmark = pytest.mark.skipif(not SMAPS.exists(), reason="the system does not tell what is in memory")


def resident(file):
    """Bytes of the pages of a mapped file that are in memory."""
    total, is_in = 0, False
    for line in SMAPS.read_text(encoding="utf-8").splitlines():
        if "-" in line.split()[0]:
            is_in = line.endswith(str(file))
        elif is_in and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


@pytest.mark.parametrize("layout", ["folder", "snapshot"])
def test_a_checkpoint_is_not_kept_beside_the_tiles(layout, tmp_path):
    """A hub snapshot is a folder of links to files without an ending."""
    build_model(hidden_size=256, intermediate_size=512, vocab_size=2048).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    if layout == "snapshot":
        blob = tmp_path / "blobs" / "0123456789abcdef"
        blob.parent.mkdir()
        file.rename(blob)
        file.symlink_to(blob)
        file = blob
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    model(torch.tensor([[5, 6, 7]]))
    before = resident(file)
    if not before:
        pytest.skip("this version of transformers does not map checkpoints")
    prepared = prepare(model, "compiled")
    assert prepared.name == "compiled"
    gc.collect()
    embedding = model.get_input_embeddings().weight.nbytes
    assert resident(file) <= embedding + 200_000 < before


def test_other_memory_is_left_alone():
    tensor = torch.randn(100_000)
    expected = tensor.clone()
    MappedFiles().forget(tensor)
    assert torch.equal(tensor, expected)
