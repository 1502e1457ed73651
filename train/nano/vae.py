"""Train a small FLUX.2-shaped autoencoder (`AutoencoderKLFlux2`) from nothing on drawn scenes.

Loss: L1 of pixels, 8x8 means and colour differences + 0.5 L1 of the image gradients + a small L2 on the latent mean,
with Gaussian noise of fixed size added to the latent instead of a learned variance (a sampled posterior stalls at
PSNR 18 at this size). When the weights are done, the batch-norm statistics of the packed latents are measured: they
are the normalisation of the pipeline.
"""

from __future__ import annotations

import contextlib
import functools
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from backend.model.autoencoder import AutoencoderKLFlux2, build_vae, encode_mean, set_latent_statistics
from backend.model.decode import decode_latent
from backend.params import VAEParams
from train.overrides import as_json
from train.run import checkpoints
from train.run.distributed import Ranks
from train.run.feed import Feed
from train.run.learner import Learner
from train.run.metrics import Metrics
from train.run.optim import Optimizers
from train.run.stopping import Stopper, check_finite
from train.world.drawing import render
from train.world.scenes import sample_scene

RATE = "vae.learning_rate"  # what `train.recipes.NanoConfig` calls the rate


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    params: VAEParams
    run_dir: Path
    steps: int = 9000
    batch: int = 16  # crops
    crop: int = 64  # pixels, a multiple of 16
    crops_per_scene: int = 2
    learning_rate: float = 1e-3
    warmup: int = 200  # steps
    gradient_weight: float = 0.5
    mean_weight: float = 1e-4  # of the L2 on the latent mean: keeps the latent near unit scale
    latent_noise: float = 0.1  # standard deviation added to the latent in training, once warmed up
    noise_warmup: int = 1000  # steps; full noise from the start drowns the latent before it carries anything
    seed: int = 0
    workers: int = 1  # processes that draw
    save_every: int = 500
    device: str = "cpu"
    # No torch.compile here: on a CPU with AMX, torch 2.13's inductor gives wrong gradients for this network
    # (cosine 0.56 to the eager ones, in bfloat16, channels last), and training silently collapses.


def draw_crops(step: int, *, seed: int, batch: int, crop: int, per_scene: int) -> np.ndarray:
    """(batch, crop, crop, 3) uint8: several crops of few scenes at several scales, a function of (seed, step)."""
    rng = random.Random(f"vae {seed} {step}")
    out: list[np.ndarray] = []
    while len(out) < batch:
        side = rng.choice((128, 192, 256))
        image = np.asarray(render(sample_scene(rng), side, side))
        for _ in range(min(per_scene, batch - len(out))):
            x, y = rng.randrange(side - crop + 1), rng.randrange(side - crop + 1)
            out.append(image[y : y + crop, x : x + crop])
    return np.stack(out)


def reconstruction_loss(out_BCHW: Tensor, image_BCHW: Tensor, gradient_weight: float) -> Tensor:
    """L1 of the pixels, of 8x8 means, of colour differences, plus weighted L1 of the horizontal and vertical steps.

    Means and colour differences weigh more than their share of the pixels: with plain L1 outlines come out sharp and
    flat colours wrong (pale yellow turns peach), and colour is what captions speak of.
    """
    error = out_BCHW - image_BCHW
    dx, dy = error.diff(dim=3).abs().mean(), error.diff(dim=2).abs().mean()
    colour = error - error.mean(dim=1, keepdim=True)
    return error.abs().mean() + F.avg_pool2d(error, 8).abs().mean() + colour.abs().mean() + gradient_weight * (dx + dy)


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB for values in [-1, 1]."""
    return 10 * math.log10(4 / max(float((a - b).square().mean()), 1e-12))


def run(config: VAEConfig, initial: dict[str, Tensor] | None = None) -> AutoencoderKLFlux2:
    """Train to `config.steps`; the same call again resumes. Returns the model with its latent statistics set.

    `initial`: weights to start from, None: random ones. Raises CancelledError where it was asked to stop, with its
    state saved; NumericsError before a step whose loss or gradient is not finite.
    """
    device = torch.device(config.device)
    torch.manual_seed(config.seed)
    vae = build_vae(config.params)
    cast(Any, vae).to(device, memory_format=torch.channels_last)  # diffusers types its `to` as a wrapper
    if initial is not None:
        vae.load_state_dict(initial)
    ranks = Ranks(device)
    adam = torch.optim.AdamW(vae.parameters(), config.learning_rate, betas=(0.9, 0.98), weight_decay=1e-4)
    learner = Learner(vae, Optimizers(vae, [adam]), ranks)
    writer = checkpoints.Writer(config.run_dir, ranks, keep=2, background=False)
    found = checkpoints.latest(config.run_dir, ranks)
    if found is not None:
        learner.restore(found)
    start = 0 if found is None else found.step
    make = functools.partial(
        draw_crops, seed=config.seed, batch=config.batch, crop=config.crop, per_scene=config.crops_per_scene
    )
    held = as_pixels(draw_crops(-1, seed=config.seed, batch=32, crop=config.crop, per_scene=1), device)

    loss = torch.tensor(math.nan)
    feed = Feed(make, start=start, stop=config.steps, workers=config.workers)
    with Stopper() as stopper, contextlib.closing(Metrics(config.run_dir, start)) as metrics:

        def save(done: int) -> None:
            metrics.log(done, loss=loss.item(), psnr=evaluate(vae, held))
            writer.save(done, learner.tensors(), {"config": as_json(config)})

        for step, crops in stopper.steps(feed, start, config.steps, save=save, save_every=config.save_every):
            scale = min(1.0, (step + 1) / config.warmup) * 0.5 * (1 + math.cos(math.pi * step / config.steps))
            image = as_pixels(crops, device)
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            shape = (config.batch, config.params.latent_channels, config.crop // 8, config.crop // 8)
            strength = config.latent_noise * min(1.0, step / config.noise_warmup)
            noise = strength * torch.randn(shape, generator=generator).to(device)
            with torch.autocast(device.type, torch.bfloat16):
                loss, mean = _step_loss(vae, image, noise, config.gradient_weight)
            total = loss + config.mean_weight * mean.square().mean()
            learner.optimizer.zero_grad()
            learner.backward(total)
            check_finite(step, total.item(), learner.clip(1.0), config.run_dir, RATE)
            learner.move(config.learning_rate * scale)

            if (step + 1) % 100 == 0 or step + 1 == config.steps:
                metrics.log(step + 1, loss=loss.item(), latent_std=mean.std().item())
    measure_latents(vae, config)
    return vae


def _step_loss(vae: AutoencoderKLFlux2, image: Tensor, noise: Tensor, gradient_weight: float) -> tuple[Tensor, Tensor]:
    """Reconstruction loss and latent mean, both float32; of one batch."""
    mean = encode_mean(vae, image)
    out = decode_latent(vae, mean + noise.to(mean.dtype))
    return reconstruction_loss(out.float(), image, gradient_weight), mean.float()


def as_pixels(images_BHWC: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in [-1, 1], channels last in memory."""
    image = torch.from_numpy(images_BHWC).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    return image.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def evaluate(vae: AutoencoderKLFlux2, image_BCHW: Tensor) -> float:
    """PSNR in dB of reconstructing from the latent mean, float32."""
    return psnr(decode_latent(vae, encode_mean(vae, image_BCHW)).clamp(-1, 1), image_BCHW)


@torch.no_grad()
def measure_latents(vae: AutoencoderKLFlux2, config: VAEConfig, scenes: int = 1024) -> None:
    """Set `vae.bn` to the mean and variance of each of the 128 packed latent channels over drawn scenes."""
    device = torch.device(config.device)
    rows: list[Tensor] = []
    for i in range(scenes // 32):
        rng = random.Random(f"latents {config.seed} {i}")
        side = (128, 192, 256)[i % 3]
        images = np.stack([np.asarray(render(sample_scene(rng), side, side)) for _ in range(32)])
        with torch.autocast(device.type, torch.bfloat16):
            mean = encode_mean(vae, as_pixels(images, device)).float()
        rows.append(rearrange(mean, "b c (h p1) (w p2) -> (b h w) (c p1 p2)", p1=2, p2=2))
    packed = torch.cat(rows)
    set_latent_statistics(vae, packed.mean(0), packed.var(0))
