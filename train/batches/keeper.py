"""What the frozen networks make of pictures and captions, kept on the disk: made once, read ever after.

A file is named by the SHA-256 of everything that decides its numbers: the picture's bytes and crop or the caption, the
network's weights, what stands around the caption, the processor. So epochs, runs, ranks and stages may share one
folder, a changed picture is encoded anew and nothing else is. Whoever keeps something encodes it alone, so that what it
is does not depend, not in its last bit, on what is encoded beside it, on the number of ranks, or on whether it was kept
already.

Heavy ring: torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path

import torch
from torch import Tensor

from backend.cache import tensors
from backend.cache.store import Store, remove_abandoned
from backend.disk import make_folder, write_atomic

Make = Callable[[Sequence[int]], Iterable[Tensor]]  # places of what is missing -> its rows, in their order


class RunStore(Store):
    """Files of runs: none is ever forgotten, and one that cannot be written ends the run."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        super().__init__(folder, ".safetensors", sys.maxsize, say)

    def write(self, key: str, data: bytes) -> None:
        """Raises FileError."""
        write_atomic(self.path(key), data)


class Keeper:
    """Rows of one width and dtype: the latents, or the text features, of whatever was encoded."""

    def __init__(
        self,
        folder: Path,
        width: tuple[int, ...],
        dtype: torch.dtype,
        say: Callable[[str], None],
        threads: Executor | None = None,
    ) -> None:
        """`say` is told of files that are damaged and made again; files are read by `threads`."""
        self.store, self.width, self.dtype, self.threads = RunStore(folder, say), width, dtype, threads

    def open(self) -> None:
        """Make the folder, and remove what processes that were killed left half-written. Raises FileError."""
        make_folder(self.store.folder)
        remove_abandoned(self.store.folder)

    def has(self, key: str) -> bool:
        """Whether there is a file; whether it is whole, reading says."""
        return self.store.path(key).exists()

    def read(self, key: str) -> Tensor | None:
        """(rows, *width) on the CPU; None: not kept, or damaged, which is then removed."""
        return tensors.read_rows(self.store, key, self.width, self.dtype)

    def rows(self, keys: Sequence[str], make: Make) -> list[Tensor]:
        """(rows, *width) of every key: what is kept is read at once; what is not is made and kept.

        Raises FileError (no space) and what `make` raises.
        """
        found = list((self.threads.map if self.threads else map)(self.read, keys))
        missing = [place for place, rows in enumerate(found) if rows is None]
        found = dict(enumerate(found)) | dict(self._made(keys, missing, make))
        return [rows for rows in found.values() if rows is not None]

    def fill(self, keys: Sequence[str], make: Make) -> None:
        """Make and keep what has no file yet, one after the other; nothing is read. Raises as `rows` does."""
        for _ in self._made(keys, [place for place, key in enumerate(keys) if not self.has(key)], make):
            pass

    def _made(self, keys: Sequence[str], places: Sequence[int], make: Make) -> Iterator[tuple[int, Tensor]]:
        """Numbers that are not finite are given back and not kept: whoever asked says whose they are."""
        for place, made in zip(places, make(places) if places else (), strict=True):
            rows = made.to(self.dtype)
            if bool(torch.isfinite(rows).all()):
                tensors.write_rows(self.store, keys[place], rows)
            yield place, rows
