"""Near-duplicates among vectors: exactly the rule as it is written, however it is made fast.

Why it can be trusted: the rule stands here as a loop over all vectors in full; the planted cosines lie on both sides of
the threshold, also among vectors that crowd together, where pruning has most to do.
"""

from __future__ import annotations

import numpy as np
import pytest

from train.data.duplicates import neighbours
from train.data.duplicates.neighbours import Cells, by_blocks, by_lists, first_alike, settle

THRESHOLD = 0.985


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def crowd(count: int, width: int, seed: int, *, clusters: int = 30) -> np.ndarray:
    """Vectors in tight clusters, a fifth of them copies at cosines from 0.975 to 1."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.standard_normal((clusters, width)))
    made = unit(centres[rng.integers(0, clusters, count)] + 0.5 * unit(rng.standard_normal((count, width))))
    for number in rng.choice(count, count // 5, replace=False):
        origin = made[rng.integers(0, count)]
        side = rng.standard_normal(width)
        side = unit(side - (side @ origin) * origin)
        cosine = rng.uniform(0.975, 1.0)
        made[number] = cosine * origin + np.sqrt(1 - cosine**2) * side
    return made.astype(np.float16)


def plainly(x: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
    full = unit(x.astype(np.float64))
    likeness = full @ full.T
    found = np.full(len(x), -1)
    for number in range(len(x)):
        near = np.flatnonzero((likeness[number, :number] > threshold) & (found[:number] < 0))
        found[number] = near[0] if len(near) else -1
    return found


@pytest.mark.parametrize(("count", "width"), [(1300, 768), (700, 40), (600, 3), (1, 8), (0, 8)])
def test_blocks_are_exact(count: int, width: int) -> None:
    vectors = crowd(count, width, count) if count > 1 else np.ones((count, width), np.float16)
    found = by_blocks(vectors, THRESHOLD)
    assert found.tolist() == plainly(vectors).tolist()
    assert count < 100 or 0 < (found >= 0).sum() < count


def test_blocks_of_other_sizes_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = crowd(900, 64, 1)
    expected = plainly(vectors).tolist()
    for sizes in ((7, 13), (256, 64), (1000, 1000)):
        monkeypatch.setattr(neighbours, "_BLOCKS", {"cpu": sizes, "cuda": sizes})
        assert by_blocks(vectors, THRESHOLD).tolist() == expected


def test_likeness_is_no_chain() -> None:
    """Five vectors 8 degrees apart on a circle: each is like its neighbours alone, and every second one stays."""
    angles = np.deg2rad(8.0 * np.arange(5))
    vectors = np.stack([np.cos(angles), np.sin(angles), np.zeros(5)], axis=1).astype(np.float32)
    assert by_blocks(vectors, THRESHOLD).tolist() == [-1, 0, -1, 2, -1]


def test_many_copies_and_nothing_at_all() -> None:
    copies = np.tile(unit(np.arange(1.0, 9.0)), (3000, 1)).astype(np.float16)
    assert by_blocks(copies, THRESHOLD).tolist() == [-1] + [0] * 2999
    nothing = np.zeros((5, 16), np.float16)  # of a broken model: like nothing, not like everything
    assert by_blocks(nothing, THRESHOLD).tolist() == [-1] * 5


def test_lists_find_nearly_all_and_nothing_wrong() -> None:
    vectors = crowd(6000, 64, 3, clusters=300)
    exact, found = by_blocks(vectors, THRESHOLD), by_lists(vectors, THRESHOLD, lists=60)
    assert ((found >= 0) & (exact >= 0)).sum() >= 0.98 * (exact >= 0).sum()
    full = unit(vectors.astype(np.float64))
    dropped = np.flatnonzero(found >= 0)
    assert (np.einsum("nd,nd->n", full[dropped], full[found[dropped]]) > THRESHOLD - 1e-6).all()
    assert (found[found[dropped]] < 0).all() and (found[dropped] < dropped).all()


def test_cells_find_nearly_all_and_nothing_wrong() -> None:
    """Every cell by itself and in any order, as workers would; then what fell in two cells."""
    vectors = crowd(6000, 64, 4, clusters=300)
    exact = by_blocks(vectors, THRESHOLD)
    cells = Cells.learn(vectors, size=600, probes=2)
    assert cells.count == 10
    nearest = cells.assign(vectors)
    parts = [cells.alike(vectors, nearest, cell, THRESHOLD) for cell in reversed(range(cells.count))]
    found = cells.merge(vectors, THRESHOLD, parts)
    assert ((found >= 0) & (exact >= 0)).sum() >= 0.98 * (exact >= 0).sum()
    full = unit(vectors.astype(np.float64))
    dropped = np.flatnonzero(found >= 0)
    assert (np.einsum("nd,nd->n", full[dropped], full[found[dropped]]) > THRESHOLD - 1e-6).all()
    assert (found[found[dropped]] < 0).all() and (found[dropped] < dropped).all()


def test_the_tier_follows_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = crowd(3000, 64, 5)
    exact = (first_alike(vectors, THRESHOLD) >= 0).sum()
    monkeypatch.setattr(neighbours, "FLAT_LIMIT", 1000)
    lists = (first_alike(vectors, THRESHOLD) >= 0).sum()
    monkeypatch.setattr(neighbours, "LIST_LIMIT", 1000)
    cells = (first_alike(vectors, THRESHOLD) >= 0).sum()
    assert 0.95 * exact <= lists <= exact and cells == exact  # one cell: everything meets


def test_settling_pairs() -> None:
    """2 is like 1, 1 is like 0; whether 2 is out depends on whether it is like 0."""
    pairs = np.array([[2, 1], [1, 0]])
    assert settle(3, pairs, lambda one, other: False).tolist() == [-1, 0, -1]
    assert settle(3, pairs, lambda one, other: True).tolist() == [-1, 0, 0]
    assert settle(2, np.empty((0, 2), np.int64), lambda one, other: True).tolist() == [-1, -1]
