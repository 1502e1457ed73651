"""How long near-duplicates take, and whether they are found: synthetic embeddings with copies planted among them.

    python -m benchmarks.near_duplicates --vectors 200000 --threads 2

Two kinds of vectors. `even`: directions without any structure, the worst case for pruning. `clustered`: 2,000 clusters
whose members have cosines of about 0.9, the kind of crowd that real pictures' embeddings are. One vector in twenty is
a copy with noise, at cosines of 0.99 and above; besides, one in a hundred is a near miss at about 0.97. Exactness is
checked against plain products of all pairs on the first `--checked` vectors.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

WIDTH, THRESHOLD = 768, 0.985


def vectors(count: int, kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """((n, 768) float16 unit vectors, numbers of the planted copies)."""
    rng = np.random.default_rng(seed)
    made = np.empty((count, WIDTH), np.float16)
    centres = unit(rng.standard_normal((2000, WIDTH), np.float32))
    for first in range(0, count, 20_000):
        size = min(20_000, count - first)
        noise = unit(rng.standard_normal((size, WIDTH), np.float32))
        if kind == "clustered":
            noise = unit(centres[rng.integers(0, 2000, size)] + noise * 0.33)
        made[first : first + size] = noise
    chosen = rng.permutation(count)[: count * 6 // 100]
    copies, misses = chosen[: count // 20], chosen[count // 20 :]
    others = np.setdiff1d(np.arange(count), chosen)
    for targets, cosines in ((copies, rng.uniform(0.99, 1.0, len(copies))), (misses, np.full(len(misses), 0.97))):
        for begin in range(0, len(targets), 20_000):
            part = targets[begin : begin + 20_000]
            origin = made[rng.choice(others, len(part))].astype(np.float32)
            side = rng.standard_normal(origin.shape).astype(np.float32)
            side = unit(side - (side * origin).sum(1, keepdims=True) * origin)
            c = cosines[begin : begin + 20_000, None].astype(np.float32)
            made[part] = unit(c * origin + np.sqrt(1 - c**2) * side)
    return made, np.sort(copies)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def plainly(x: np.ndarray) -> np.ndarray:
    """The rule as it is written: one after another, compared in full with all that stay."""
    full = unit(x.astype(np.float32))
    found = np.full(len(x), -1, np.int64)
    stays: list[int] = []
    for number in range(len(x)):
        near = np.flatnonzero(full[stays] @ full[number] > THRESHOLD) if stays else np.empty(0, np.int64)
        if len(near):
            found[number] = stays[near[0]]
        else:
            stays.append(number)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--vectors", type=int, default=200_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kind", choices=("even", "clustered"), default="even")
    parser.add_argument("--method", choices=("blocks", "lists"), default="blocks")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--checked", type=int, default=3000)
    given = parser.parse_args()

    import faiss
    import torch

    from train.data.duplicates.neighbours import by_blocks, by_lists

    torch.set_num_threads(given.threads)
    faiss.omp_set_num_threads(given.threads)
    made, copies = vectors(given.vectors, given.kind, 0)
    wall, work = time.perf_counter(), time.process_time()
    if given.method == "lists":
        found = by_lists(made, THRESHOLD)
    else:
        found = by_blocks(made, THRESHOLD, device=given.device)
    wall, work = time.perf_counter() - wall, time.process_time() - work
    exact = by_blocks(made[: given.checked], THRESHOLD) == plainly(made[: given.checked])
    dropped = np.flatnonzero(found >= 0)
    print(f"{given.kind}, {given.method}: {given.vectors:,} x {WIDTH} on {given.threads} threads")
    print(f"  {wall:.1f} s, {work:.1f} s of processor time; peak {peak_gb():.2f} GB")
    print(f"  {len(dropped):,} duplicates for {len(copies):,} planted copies")
    print(f"  the first {given.checked:,}: {int(exact.sum()):,} as by plain comparison")


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
