"""How far the pictures of evaluations lie from drawn scenes, in the features of the model's autoencoder.

    python -m benchmarks.scene_distance runs/measured/base-guidance-3 runs/measured/lora-guidance-3

Each folder is one of `lens eval nano`, `lens eval claims` or `lens train rl measure`. A feature is the latent of 16 x
16 pixels, as the transformer sees it; the distance is Fréchet's between two normal distributions of them, as FID has it
of another network's features. It sees texture and edges, not whether a request was followed. Drawn scenes are compared
with as many others of them (the floor); requests name fewer things than scenes hold, which is a distance too, and the
same for all folders: what counts is the differences, whose intervals are bootstrapped over pictures, in pairs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from backend.checkpoints.resolve import resolve_model
from backend.loading import load_vae
from backend.sizes import GRID
from train.batches.encoders import encode_images
from train.evals.nano import EvalFolder
from train.rl.prompts.drawn import captioned

Floats = NDArray[np.float64]
Encode = Callable[[Iterable[Image.Image]], Floats]
ROUNDS = 200  # of the bootstrap


def moments(latents: Iterable[Floats]) -> Floats:
    """(pictures, 1 + C + C*C) numbers of (N, C) features a picture: how many, their sum, the sum of their products."""
    return np.stack([np.concatenate([[len(z)], z.sum(0), (z.T @ z).ravel()]) for z in latents])


def frechet(one: Floats, two: Floats) -> float:
    """The squared Fréchet distance of two rows of summed moments, a normal distribution each."""
    (mean, cov), (other, others) = _normal(one), _normal(two)
    # The trace of a product's root is the sum of the roots of its eigenvalues, which are those of a symmetric matrix.
    values, vectors = np.linalg.eigh(cov)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ others @ root), 0, None)).sum()
    return float(np.square(mean - other).sum() + np.trace(cov) + np.trace(others) - 2 * cross)


def _normal(row: Floats) -> tuple[Floats, Floats]:
    """(mean, covariance) of summed moments."""
    channels = round((len(row) - 0.75) ** 0.5 - 0.5)  # of 1 + C + C*C numbers
    mean = row[1 : 1 + channels] / row[0]
    return mean, row[1 + channels :].reshape(channels, channels) / row[0] - np.outer(mean, mean)


def main() -> None:
    """Encode, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="the first is what the others are compared with")
    parser.add_argument("--model", default="nano", help="whose autoencoder")
    parser.add_argument("--scenes", type=int, default=350)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    vae = load_vae(resolve_model(args.model), torch.float32, torch.device("cpu"))

    def encoded(pictures: Iterable[Image.Image]) -> Floats:
        return moments(
            encode_images(vae, np.array(p.convert("RGB"))[None], torch.device("cpu"))[0].double().numpy()
            for p in pictures
        )

    keys, rows = _same([EvalFolder(folder) for folder in args.folders], encoded)
    side = round(GRID * rows[0][0, 0] ** 0.5)
    scenes = encoded(picture for _, picture in captioned(2 * args.scenes, side, args.seed))
    reference = scenes[: args.scenes].sum(0)
    print(f"{len(keys)} pictures a folder, {args.scenes} scenes of {side}x{side}")
    print(f"{'other scenes':<40} {frechet(scenes[args.scenes :].sum(0), reference):8.2f}")
    distances = [frechet(row.sum(0), reference) for row in rows]
    rng = np.random.default_rng(args.seed)
    drawn = [rng.integers(len(keys), size=len(keys)) for _ in range(ROUNDS)]
    again = [[frechet(row[chosen].sum(0), reference) for chosen in drawn] for row in rows]
    for folder, distance, each in zip(args.folders, distances, again, strict=True):
        low, high = np.quantile(np.array(each) - np.array(again[0]), (0.025, 0.975))
        change = "" if folder == args.folders[0] else f"  {distance - distances[0]:+.2f} [{low:+.2f}, {high:+.2f}]"
        print(f"{folder!s:<40} {distance:8.2f}{change}")


def _same(folders: Sequence[EvalFolder], encoded: Encode) -> tuple[list[tuple[str, int]], list[Floats]]:
    """(the pictures that every folder has, their moments in each). Raises SystemExit where there are none."""
    results = [{result.key: result for result in folder.read() if not result.unmade} for folder in folders]
    keys = sorted(set[tuple[str, int]].intersection(*(set(found) for found in results)))
    if len(keys) < 2:
        raise SystemExit("the folders share no two pictures")
    return keys, [
        encoded(Image.open(folder.picture(found[key])) for key in keys)
        for folder, found in zip(folders, results, strict=True)
    ]


if __name__ == "__main__":
    main()
