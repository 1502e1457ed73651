"""What a picture looks like while it is drawn: the estimate of x0 after a step, as colours by one matrix.

The estimate is x0 = x - sigma v, not the noisy x: of few steps the latent is noise until the last. A projection is
fitted by least squares (`train.nano.projection`) and belongs to an encoder: it is found by the statistics of the
latents, which a decoder that was trained further shares.

Shapes: h = H / 16 and w = W / 16 for a picture of H x W pixels, N = h * w tokens, C = 128 packed channels; a token
becomes CELLS x CELLS pixels of three colours.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from backend.denoising import latents
from backend.errors import CheckpointError
from backend.model.autoencoder import AutoencoderKLFlux2, latent_statistics
from backend.paths import projections_dirs
from backend.sampling import Velocity

CELLS = 4  # of Lens-Nano, 48 numbers of a token's 128 leave 12 of 255 levels of error; 12 numbers (2 x 2) leave 10


class Watched:
    """A velocity that remembers its last call, for the estimate of what it leads to."""

    def __init__(self, velocity: Velocity) -> None:
        self.velocity = velocity
        self._last: tuple[Tensor, Tensor, float] | None = None

    def __call__(self, x_1NC: Tensor, sigma: float) -> Tensor:
        v_1NC = self.velocity(x_1NC, sigma)
        self._last = x_1NC, v_1NC, sigma
        return v_1NC

    def estimate(self) -> Tensor:
        """x0 (1, N, C), float32, by the last call; before the first there is none."""
        assert self._last is not None
        x, v, sigma = self._last
        return x - sigma * v.float()


@dataclass(frozen=True)
class Projection:
    """One matrix from a token of the normalised latent to the colours of its place."""

    weight_CK: Tensor  # (128, CELLS * CELLS * 3) float32
    bias_K: Tensor

    def picture(self, x0_1NC: Tensor, h: int, w: int) -> Image.Image:
        """RGB of CELLS w x CELLS h pixels."""
        colours = x0_1NC[0].float() @ self.weight_CK + self.bias_K
        image = rearrange(colours, "(h w) (r c k) -> 1 k (h r) (w c)", h=h, w=w, r=CELLS, c=CELLS)
        return Image.fromarray(latents.to_pixels(image)[0].cpu().numpy())


def encoder_key(vae: AutoencoderKLFlux2) -> str:
    """Which encoder's latents these are: 16 hexadecimal digits of their statistics, alike in float32 and bfloat16."""
    mean_C, var_C, _ = latent_statistics(vae)
    both = torch.cat([mean_C, var_C]).to("cpu", torch.bfloat16).float()
    return hashlib.sha256(both.numpy().astype("<f4").tobytes()).hexdigest()[:16]


def find_projection(vae: AutoencoderKLFlux2, device: torch.device) -> Projection | None:
    """The projection of this encoder's latents, of the package or of this person's own; None: nobody fitted one.

    Raises CheckpointError for a table of another shape.
    """
    name = f"{encoder_key(vae)}.safetensors"
    path = next((folder / name for folder in projections_dirs() if (folder / name).is_file()), None)
    return None if path is None else read_projection(path, device)


def no_projection(vae: AutoencoderKLFlux2) -> str:
    """What a person is told who asked for a preview that there is none of."""
    return (
        f"no preview: nobody fitted a projection to the latents of this autoencoder ({encoder_key(vae)}); --preview "
        "vae decodes them, and `python -m train.nano.projection` fits one"
    )


def read_projection(path: Path, device: torch.device) -> Projection:
    """A table as `train.nano.projection` writes it. Raises CheckpointError."""
    wanted = {"weight": (latents.PACKED, CELLS * CELLS * 3), "bias": (CELLS * CELLS * 3,)}
    try:
        found = load_file(path)
    except Exception as error:
        raise CheckpointError(f"{path}: no projection that can be read: {error}") from error
    if {name: tuple(tensor.shape) for name, tensor in found.items()} != wanted:
        raise CheckpointError(f"{path}: a projection has the tensors {wanted}", hint="fit it again, or remove the file")
    return Projection(found["weight"].float().to(device), found["bias"].float().to(device))
