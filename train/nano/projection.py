"""Fit what shows a latent as colours while a picture is drawn: one matrix by least squares, for any model's encoder.

    python -m train.nano.projection                                      # Lens-Nano's, of drawn scenes
    python -m train.nano.projection --model lens --pictures photographs/ # of a folder of pictures

The last line is the file: in this person's own folder of projections, where `--preview proj` finds it, or with
`--package` among those that are shipped. A hundred pictures are enough: a million pixels for a few thousand numbers.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from backend.checkpoints.resolve import resolve_model
from backend.denoising import latents
from backend.denoising.preview import CELLS, Projection, encoder_key
from backend.disk import make_folder, write_atomic
from backend.errors import FileError
from backend.inputs.files import load_pixels
from backend.loading import load_vae
from backend.model.autoencoder import AutoencoderKLFlux2
from backend.paths import projections_dirs
from backend.sizes import GRID
from train.nano.decoder import DecoderConfig, draw_batch, encode
from train.nano.vae import as_pixels

SIDE = 512  # pixels of a piece that is cut out of a picture
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@torch.no_grad()
def fit(vae: AutoencoderKLFlux2, pictures: Iterable[np.ndarray]) -> Projection:
    """The projection of least squared error over pictures (B, H, W, 3) uint8, in float64.

    Sums of products are all that is kept of a picture. Raises FileError where there are too few to tell.
    """
    products = torch.zeros(latents.PACKED + 1, latents.PACKED + 1, dtype=torch.float64)
    towards = torch.zeros(latents.PACKED + 1, CELLS * CELLS * 3, dtype=torch.float64)
    for batch in pictures:
        tokens, colours = pairs(vae, batch)
        products += tokens.T @ tokens
        towards += tokens.T @ colours
    if products[-1, -1] < 4 * len(products):  # the last of a token is 1
        raise FileError(f"{int(products[-1, -1])} places of pictures are too few", hint="give more pictures")
    solved = torch.linalg.lstsq(products, towards).solution
    return Projection(solved[:-1].float(), solved[-1].float())


@torch.no_grad()
def pairs(vae: AutoencoderKLFlux2, images: np.ndarray) -> tuple[Tensor, Tensor]:
    """(tokens with a 1 behind, colours of their places), both float64."""
    image = as_pixels(images)
    tokens = latents.pack(encode(vae, image)).reshape(-1, latents.PACKED).double()
    small = F.avg_pool2d(image, GRID // CELLS)
    colours = rearrange(small, "b k (h r) (w c) -> (b h w) (r c k)", r=CELLS, c=CELLS).double()
    return torch.cat([tokens, torch.ones(len(tokens), 1, dtype=torch.float64)], 1), colours


def error(projection: Projection, vae: AutoencoderKLFlux2, pictures: Iterable[np.ndarray]) -> float:
    """Root mean square error in 255ths of the colours of pictures."""
    table = torch.cat([projection.weight_CK, projection.bias_K[None]]).double()
    squares = [(tokens @ table - colours).square().mean() for tokens, colours in (pairs(vae, p) for p in pictures)]
    return float(torch.stack(squares).mean().sqrt() * 127.5)


def scenes(first: int, last: int) -> Iterator[np.ndarray]:
    """Drawn scenes of Lens-Nano's world, of every shape."""
    config = DecoderConfig(run_dir=Path())
    return (draw_batch(step, config=config) for step in range(first, last))


def pieces(paths: list[Path]) -> Iterator[np.ndarray]:
    """A piece of each picture, in a size and at a place of its own."""
    for path in paths:
        rng, image = random.Random(path.name), load_pixels(path)
        scale = rng.uniform(SIDE, max(SIDE, min(image.size))) / min(image.size)
        size = [max(SIDE, round(side * scale)) for side in image.size]
        image = image.resize((size[0], size[1]), Image.Resampling.LANCZOS)
        left, top = rng.randint(0, image.width - SIDE), rng.randint(0, image.height - SIDE)
        yield np.asarray(image.crop((left, top, left + SIDE, top + SIDE)))[None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="a name of `lens models list`, or a path")
    parser.add_argument("--pictures", type=Path, help="a folder of pictures; left out: drawn scenes, which suit nano")
    parser.add_argument("--package", action="store_true", help="write into the package, to be shipped")
    args = parser.parse_args()
    vae = load_vae(resolve_model(args.model), torch.float32, "cpu")
    if args.pictures is None:
        known, held = scenes(0, 200), scenes(5_000, 5_030)
    else:
        files = sorted(path for path in args.pictures.rglob("*") if path.suffix.lower() in SUFFIXES)
        known, held = pieces(files[10:]), pieces(files[:10])
    projection = fit(vae, known)
    print(f"error on pictures that were held out: {error(projection, vae, held):.1f} of 255 levels")
    package, own = projections_dirs()
    path = (package if args.package else own) / f"{encoder_key(vae)}.safetensors"
    make_folder(path.parent)
    table = {"weight": projection.weight_CK.half(), "bias": projection.bias_K.half()}
    write_atomic(path, save({name: tensor.contiguous() for name, tensor in table.items()}))
    print(path)


if __name__ == "__main__":
    main()
