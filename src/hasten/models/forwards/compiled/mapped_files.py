"""Checkpoints that are mapped into memory: pages that were copied need not stay."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import torch

_MAPS = Path("/proc/self/maps")
_DONT_NEED = getattr(mmap, "MADV_DONTNEED", None)


class MappedFiles:
    """The files mapped now; none where the system does not tell (it does on Linux).

    By no name: a hub snapshot is links to files that are called by their digests.
    """

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []
        if _DONT_NEED is None or not _MAPS.exists():
            return
        for line in _MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
            addresses, _, _, _, inode = line.split(maxsplit=5)[:5]
            if inode != "0":  # else it is no file, or a shared one without a name
                start, stop = addresses.split("-")
                self._ranges.append((int(start, 16), int(stop, 16)))

    def forget(self, tensor: torch.Tensor) -> None:
        """Give back the pages of a tensor that lies in such a file. Nobody may have written into it."""
        start, stop = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        if not any(first <= start and stop <= last for first, last in self._ranges):
            return
        start, stop = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
        if start < stop:
            libc = ctypes.CDLL(None)
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _DONT_NEED)
