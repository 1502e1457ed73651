"""The Fréchet distance of `benchmarks.scene_distance`, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.scene_distance import frechet, moments


def test_one_dimension_is_the_distance_of_means_and_deviations() -> None:
    """(m1 - m2)^2 + (s1 - s2)^2, of numpy's own mean and deviation."""
    rng = np.random.default_rng(0)
    one, two = rng.normal(1, 2, (3, 50, 1)), rng.normal(-1, 0.5, (5, 40, 1))
    stated = (one.mean() - two.mean()) ** 2 + (one.std() - two.std()) ** 2
    assert frechet(moments(one).sum(0), moments(two).sum(0)) == pytest.approx(stated, rel=1e-9)


def test_two_dimensions_that_do_not_commute() -> None:
    """The trace of the root of a 2 x 2 matrix M is sqrt(tr M + 2 sqrt(det M)), by its two eigenvalues."""
    rng = np.random.default_rng(1)
    one = rng.normal(size=(4, 60, 2)) @ np.array([[2.0, 0.3], [0.9, 0.5]])
    two = rng.normal(size=(4, 60, 2)) @ np.array([[0.4, -1.0], [0.2, 1.5]]) + 3
    flat, other = one.reshape(-1, 2), two.reshape(-1, 2)
    a, b = np.cov(flat.T, bias=True), np.cov(other.T, bias=True)
    assert np.abs(a @ b - b @ a).max() > 0.1
    root = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    stated = np.square(flat.mean(0) - other.mean(0)).sum() + np.trace(a) + np.trace(b) - 2 * root
    assert frechet(moments(one).sum(0), moments(two).sum(0)) == pytest.approx(stated, rel=1e-9)


def test_the_same_pictures_are_no_distance_apart() -> None:
    row = moments(np.random.default_rng(2).normal(size=(2, 64, 16))).sum(0)
    assert frechet(row, row) == pytest.approx(0, abs=1e-9)
