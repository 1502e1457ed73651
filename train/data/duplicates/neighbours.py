"""Near-duplicates among unit vectors: of all that are as like as a threshold, the first stays (paper section 2.1, 9).

The vectors come in order of preference. One is a duplicate where it is likelier than the threshold to one *that stays*:
likeness is no chain, and a is not dropped for c because both are like b. So only what stays is ever compared with, and
no list of pairs is kept, however many copies there are.

    up to 2 million     every vector with every other: exact (`by_blocks`)
    up to 100 million   FAISS, inverted lists of 8-bit vectors, the nearest `probes` lists (`by_lists`)
    beyond              k-means cells, each by itself; then what fell in two cells (`Cells`)

The second and third may miss a pair whose vectors lie in lists that neither probes; what they find is checked on the
vectors themselves, so none is called a duplicate that is not.

`by_blocks` compares most vectors in 48 of their dimensions. After an orthogonal turn, x = (p, q) with p the directions
of greatest spread, and x.y <= p.p' + |q||q'| (Cauchy-Schwarz): the inner product of (p, |q|) and (p', |q'|). What stays
below the threshold there is below it in truth; the few others are compared in full.

Heavy ring: numpy, torch; FAISS where it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

FLAT_LIMIT, LIST_LIMIT = 2_000_000, 100_000_000  # vectors, of one machine
_TURNED = 48  # dimensions compared first, the last of them the length of the rest
_SLACK = 1e-4  # of the first comparison's rounding, in float32
_SAMPLE = 50_000  # vectors that directions, lists and cells are learnt from
_WIDE_SLACK = 0.02  # of 8-bit vectors: how much lower FAISS looks than the threshold

# Rows and columns of one block of products. On a CPU it has to stay in the cache: 20,000 x 20,000 in 64 dimensions take
# 0.6 s of one core so, and 1.2 s by FAISS's flat index.
_BLOCKS = {"cpu": (512, 2048), "cuda": (8192, 32_768)}


def first_alike(vectors: np.ndarray, threshold: float, *, device: str = "cpu", probes: int = 4) -> np.ndarray:
    """(n, d) unit vectors in order of preference -> (n,) int64: the number of the one that it is a duplicate of, or -1.

    Vectors of any float type, memory-mapped ones too; normalised here, so float16's rounding does not add up.
    """
    if len(vectors) <= FLAT_LIMIT:
        return by_blocks(vectors, threshold, device=device)
    if len(vectors) <= LIST_LIMIT:
        return by_lists(vectors, threshold, probes=probes)
    cells = Cells.learn(vectors, probes=min(probes, 2))
    nearest = cells.assign(vectors)
    parts = [cells.alike(vectors, nearest, cell, threshold) for cell in range(cells.count)]
    return cells.merge(vectors, threshold, parts)


# ----------------------------------------------------------------------------------------------------- exact, in blocks


def by_blocks(vectors: np.ndarray, threshold: float, *, device: str = "cpu") -> np.ndarray:
    """Exact. See `first_alike`."""
    import torch

    found = np.full(len(vectors), -1, np.int64)
    if not len(vectors):
        return found
    rows, columns = _BLOCKS["cpu" if device == "cpu" else "cuda"]
    turned_ND = _turned(vectors, device)
    stays_KD = torch.empty_like(turned_ND)  # the turned vectors that stay, packed; `numbers` are theirs
    numbers = np.empty(len(vectors), np.int64)
    kept = 0
    product = torch.empty(rows, columns, device=device)
    bound = threshold - _SLACK
    for first in range(0, len(vectors), rows):
        block_RD = turned_ND[first : first + rows]
        size = len(block_RD)
        full = normalised(vectors[first : first + size])
        for start in range(0, kept, columns):
            others_CD = stays_KD[start : min(start + columns, kept)]
            out = product[:size, : len(others_CD)]
            torch.mm(block_RD, others_CD.T, out=out) if out.is_contiguous() else out.copy_(block_RD @ others_CD.T)
            if float(out.max()) > bound:
                mine, theirs = (part.cpu().numpy() for part in (out > bound).nonzero(as_tuple=True))
                _note(found, first, full, mine, numbers[start + theirs], vectors, threshold)
        _within(found, first, full, threshold)
        stay = np.flatnonzero(found[first : first + size] < 0)
        numbers[kept : kept + len(stay)] = first + stay
        stays_KD[kept : kept + len(stay)] = block_RD[torch.from_numpy(stay).to(device)]
        kept += len(stay)
    return found


def normalised(vectors: np.ndarray) -> np.ndarray:
    """Float32 copies of unit length; a vector of zeros stays one, and is like nothing."""
    full = np.asarray(vectors, np.float32)
    return full / np.maximum(np.linalg.norm(full, axis=1, keepdims=True), 1e-12)


def _turned(vectors: np.ndarray, device: str) -> Tensor:
    """(n, 48) float32: the coordinates along the directions of greatest spread, and the length of the rest."""
    import torch

    width = min(_TURNED, vectors.shape[1])
    step = max(1, len(vectors) // _SAMPLE)
    sample = normalised(vectors[::step][:_SAMPLE])
    directions = np.linalg.eigh(sample.T @ sample)[1][:, ::-1][:, : width - 1].astype(np.float32)
    turned = np.empty((len(vectors), width), np.float32)
    for first in range(0, len(vectors), 65_536):  # of a file that may be larger than memory
        full = normalised(vectors[first : first + 65_536])
        along = full @ directions
        turned[first : first + len(full), : width - 1] = along
        rest = (full**2).sum(axis=1) - (along**2).sum(axis=1)
        turned[first : first + len(full), width - 1] = np.sqrt(np.maximum(rest, 0))
    return torch.from_numpy(turned).to(device)


def _note(
    found: np.ndarray, first: int, full: np.ndarray, mine: np.ndarray, numbers: np.ndarray, vectors: np.ndarray,
    threshold: float,
) -> None:  # fmt: skip
    """Compare candidates in full; of several that stay, the most preferred is noted."""
    for begin in range(0, len(mine), 4096):  # bounds the memory of gathered vectors
        rows, others = mine[begin : begin + 4096], numbers[begin : begin + 4096]
        order = np.argsort(others, kind="stable")  # a memory-mapped file is read in its order
        rows, others = rows[order], others[order]
        alike = np.einsum("nd,nd->n", full[rows], normalised(vectors[others])) > threshold
        for row, other in zip(rows[alike].tolist(), others[alike].tolist(), strict=True):
            known = found[first + row]
            if known < 0 or other < known:
                found[first + row] = other


def _within(found: np.ndarray, first: int, full: np.ndarray, threshold: float) -> None:
    """Among the vectors of one block, in their order; those that are duplicates already are out."""
    out = found[first : first + len(full)] >= 0
    rows, columns = np.nonzero(np.tril(full @ full.T > threshold, k=-1))
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):  # by row, and so each after those before it
        if not out[row] and not out[column]:
            found[first + row] = first + column
            out[row] = True


# ------------------------------------------------------------------------------------------------------- inverted lists


def by_lists(vectors: np.ndarray, threshold: float, *, probes: int = 4, lists: int | None = None) -> np.ndarray:
    """FAISS inverted lists of 8-bit vectors; candidates checked in full. See `first_alike`. `lists` None: by FAISS's
    advice, between 4 sqrt(n) and 16 sqrt(n)."""
    import faiss

    count, width = vectors.shape
    lists = lists or max(1, min(round(8 * count**0.5), count // 39))  # 39 vectors a list are its least to learn from
    index: Any = faiss.index_factory(width, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    step = max(1, count // max(_SAMPLE, 64 * lists))
    index.train(normalised(vectors[::step]))
    index.nprobe = min(probes, lists)
    found = np.full(count, -1, np.int64)
    for first in range(0, count, 8192):
        full = normalised(vectors[first : first + 8192])
        if index.ntotal:
            ends, _, numbers = index.range_search(full, threshold - _WIDE_SLACK)
            mine = np.repeat(np.arange(len(full)), np.diff(ends.astype(np.int64)))
            _note(found, first, full, mine, numbers, vectors, threshold)
        _within(found, first, full, threshold)
        stay = np.flatnonzero(found[first : first + len(full)] < 0)
        index.add_with_ids(full[stay], first + stay)
    return found


# ---------------------------------------------------------------------------------------------------------------- cells


@dataclass(frozen=True)
class Cells:
    """k-means cells, so that no comparison needs more than one cell's vectors. Small enough for every worker."""

    centres: np.ndarray  # (cells, d) float32, unit length
    probes: int  # cells that a vector belongs to: a pair that a border divides is met in one of them

    @property
    def count(self) -> int:
        return len(self.centres)

    @classmethod
    def learn(cls, vectors: np.ndarray, *, size: int = 1_000_000, probes: int = 2) -> Cells:
        """Cells of about `size` vectors, from an evenly spread sample."""
        import faiss

        count = max(1, len(vectors) // size)
        step = max(1, len(vectors) // max(_SAMPLE, 256 * count))
        means = faiss.Kmeans(vectors.shape[1], count, niter=10, spherical=True, seed=1, verbose=False)
        means.train(normalised(vectors[::step]))
        return cls(centres=np.asarray(means.centroids, np.float32), probes=min(probes, count))

    def assign(self, vectors: np.ndarray) -> np.ndarray:
        """(n, probes) int32: the nearest cells of each vector, in no order."""
        nearest = np.empty((len(vectors), self.probes), np.int32)
        for first in range(0, len(vectors), 65_536):
            likeness = normalised(vectors[first : first + 65_536]) @ self.centres.T
            nearest[first : first + len(likeness)] = np.argpartition(-likeness, self.probes - 1)[:, : self.probes]
        return nearest

    def alike(self, vectors: np.ndarray, nearest: np.ndarray, cell: int, threshold: float) -> np.ndarray:
        """(m, 2) int64: duplicates in one cell, and what each is a duplicate of there. Cells need nothing of others."""
        members = np.flatnonzero((nearest == cell).any(axis=1))
        found = by_blocks(vectors[members], threshold)
        dropped = found >= 0
        return np.stack([members[dropped], members[found[dropped]]], axis=1)

    def merge(self, vectors: np.ndarray, threshold: float, parts: Sequence[np.ndarray]) -> np.ndarray:
        """One answer from all cells'. See `first_alike`."""
        pairs = np.concatenate([np.empty((0, 2), np.int64), *parts])
        return settle(len(vectors), pairs, lambda a, b: _likeness(vectors, a, b) > threshold)


def _likeness(vectors: np.ndarray, one: int, other: int) -> float:
    a, b = normalised(np.stack([vectors[one], vectors[other]]))
    return float(a @ b)


def settle(count: int, pairs: np.ndarray, alike: Callable[[int, int], bool]) -> np.ndarray:
    """From pairs (duplicate, of what) to (n,): what each is a duplicate of, or -1. Numbers rise with lesser preference.

    In order of preference: one is out where one of its pairs' others stays. Where that is out itself, it is compared
    with what that one is a duplicate of, which no pair may tell.
    """
    found = np.full(count, -1, np.int64)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    for mine, other in pairs.tolist():
        if found[mine] >= 0:
            continue
        stays = other if found[other] < 0 else int(found[other])
        if stays == other or (stays < mine and alike(mine, stays)):
            found[mine] = stays
    return found
