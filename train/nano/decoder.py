"""Train the decoder of Lens-Nano's autoencoder further; its encoder, and so the latents and the transformer, stay.

What the decoder sees is a third what the transformer makes of a latent (the last steps of its sampling, from a drawn
picture that was noised), and else the encoder's latent with noise of a random strength, so that what is decoded in use
is what was trained on. Whole pictures of every base and shape; some on pure white paper, some of one flat place alone.

    python -m train.nano.decoder --run-dir runs/decoder            # again: goes on; the last line is the file
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from backend import sampling
from backend.checkpoints.resolve import ModelFiles, resolve_model
from backend.checkpoints.tokenizer_files import load_tokenizer
from backend.checkpoints.write_safetensors import write_vae
from backend.denoising import latents
from backend.errors import CancelledError
from backend.loading import load_text_encoder, load_transformer, load_vae
from backend.model.autoencoder import AutoencoderKLFlux2, encode_mean, latent_statistics
from backend.model.decode import decode_latent
from backend.sizes import GRID, buckets
from backend.text.harmony import encode_prompt
from train.nano.vae import as_pixels, psnr
from train.overrides import as_json
from train.run import checkpoints
from train.run.distributed import Ranks
from train.run.feed import Feed
from train.run.learner import Learner
from train.run.metrics import Metrics
from train.run.optim import muon_and_adamw
from train.run.stopping import Stopper, check_finite
from train.world.drawing import render
from train.world.grid import sample_on_grid
from train.world.scene_text import brief
from train.world.scenes import Background, Scene, sample_scene

RATE = "learning_rate"
PAIR_SIDE = 256  # pixels: the base the transformer was trained at longest


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    run_dir: Path
    model: str = "nano"  # whose encoder, transformer and first decoder
    steps: int = 14_000
    batch: int = 2  # whole pictures of one shape
    learning_rate: float = 5e-4  # of Muon (convolutions) and AdamW (the rest): to 0 along one cosine
    warmup: int = 100  # steps
    noise: float = 0.25  # strongest noise on the normalised latent; uniform from 0
    pairs: int = 3_000  # latents that the transformer makes once
    pair_share: float = 0.35  # of steps that decode those
    white_share: float = 0.12  # of scenes that are set on pure white
    grid_share: float = 0.5  # of scenes that are drawn as the transformer's were
    flat_share: float = 0.1  # of steps that decode one flat place all over, where the weave shows
    gradient_weight: float = 0.5
    seed: int = 0
    workers: int = 1  # processes that draw
    save_every: int = 500
    measure_every: int = 1_000


# ------------------------------------------------------------------------------------------------------------- pictures


def draw_batch(step: int, *, config: DecoderConfig) -> np.ndarray:
    """(batch, H, W, 3) uint8 of one shape, a function of (seed, step)."""
    rng = random.Random(f"decoder {config.seed} {step}")
    base = rng.choices((128, 192, 256, 384), (0.15, 0.2, 0.55, 0.1))[0]
    width, height = buckets(base)[4] if rng.random() < 0.6 else rng.choice(buckets(base))
    scenes = [draw_scene(rng, width, height, config) for _ in range(config.batch)]
    return np.stack([np.array(render(scene, width, height)) for scene in scenes])


def draw_scene(rng: random.Random, width: int, height: int, config: DecoderConfig) -> Scene:
    """A scene of the world, on the transformer's grid or as it comes, some on white paper."""
    if rng.random() < config.grid_share:
        cells = min(width, height) // GRID
        scene = sample_on_grid(rng, cells, aspect=width / height, weights=None, flat_share=0.7)
    else:
        scene = sample_scene(rng, aspect=width / height)
    if scene.style != "chalk" and rng.random() < config.white_share:  # chalk is drawn on its board
        scene = replace(scene, background=Background(plain="white"))
    return scene


def encode(vae: AutoencoderKLFlux2, image_BCHW: Tensor) -> Tensor:
    """Pictures -> normalised latents (B, 128, h, w), float32."""
    return latents.normalise(latents.patchify(encode_mean(vae, image_BCHW)), *latent_statistics(vae))


def decode(vae: AutoencoderKLFlux2, z_BChw: Tensor) -> Tensor:
    """Normalised latents -> pictures, about [-1, 1]."""
    return decode_latent(vae, latents.unpatchify(latents.denormalise(z_BChw, *latent_statistics(vae))))


def reconstruction_loss(out_BCHW: Tensor, image_BCHW: Tensor, gradient_weight: float) -> Tensor:
    """L1 of pixels, half of it again of 8- and 16-pixel means and of colour differences, of steps, and twice the MSE.

    The means act on the weave that the upsampling leaves, the steps on edges, the square on halos.
    """
    error = out_BCHW - image_BCHW
    steps = error.diff(dim=3).abs().mean() + error.diff(dim=2).abs().mean()
    means = F.avg_pool2d(error, 8).abs().mean() + F.avg_pool2d(error, 16).abs().mean()
    colour = (error - error.mean(dim=1, keepdim=True)).abs().mean()
    return error.abs().mean() + 0.5 * means + 0.5 * colour + gradient_weight * steps + 2 * error.square().mean()


# ---------------------------------------------------------------------------------------------------------------- pairs


def make_pairs(config: DecoderConfig, files: ModelFiles, vae: AutoencoderKLFlux2) -> Tensor:
    """(pairs, 128, 16, 16) bfloat16: what the transformer makes of drawn pictures, kept in the run's folder.

    A drawn picture's latent is noised to where the last two, three or four of 20 steps begin, and denoised with its
    caption and the model's guidance. Pair k belongs to the scene `pair_scene(k)`.
    """
    path = config.run_dir / "pairs.safetensors"
    done = list(load_file(path)["latents"]) if path.exists() else []
    if len(done) >= config.pairs:
        return torch.stack(done[: config.pairs])
    params = files.preset.params
    transformer = load_transformer(files, torch.float32, "cpu")
    encoder, tokenizer = load_text_encoder(files, torch.float32, "cpu"), load_tokenizer(files)
    h = w = PAIR_SIDE // GRID
    sigmas = sampling.schedule(h * w, files.preset.steps)
    for number in range(len(done), config.pairs):
        scene = pair_scene(number, config)
        x0 = encode(vae, as_pixels(np.array(render(scene, PAIR_SIDE, PAIR_SIDE))[None]))
        rng = random.Random(f"decoder pair {config.seed} {number}")
        told = encode_prompt(tokenizer, params.text.template, brief(scene, rng))
        states = encoder.hidden_states(torch.tensor([told.ids]), params.dit.selected_layer_index)
        text = torch.stack(states, 2)[:, told.prefix :]

        def velocity(x: Tensor, sigma: float, text: Tensor = text) -> Tensor:
            t = torch.full((1,), sigma)
            with torch.autocast("cpu", torch.bfloat16):
                conditional, plain = (transformer(x, t, part, (h, w)) for part in (text, text[:, :0]))
            return sampling.guide(conditional, plain, files.preset.guidance)

        start = len(sigmas) - 1 - rng.choice((2, 3, 4))
        noise = torch.randn(1, h * w, latents.PACKED, generator=torch.Generator().manual_seed(number))
        x = (1 - sigmas[start]) * latents.pack(x0) + sigmas[start] * noise
        x = sampling.denoise(velocity, x, sigmas[start:])
        done.append(latents.unpack(x, h, w)[0].bfloat16())
        if (number + 1) % 250 == 0 or number + 1 == config.pairs:
            config.run_dir.mkdir(parents=True, exist_ok=True)
            save_file({"latents": torch.stack(done)}, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)
            print(f"{number + 1:,} of {config.pairs:,} latents made by the transformer", flush=True)
    return torch.stack(done)


def pair_scene(number: int, config: DecoderConfig) -> Scene:
    rng = random.Random(f"decoder scene {config.seed} {number}")
    return sample_on_grid(rng, PAIR_SIDE // GRID, aspect=1.0, weights=None, flat_share=0.7)


# ---------------------------------------------------------------------------------------------------------------- run


@torch.enable_grad()
def run(config: DecoderConfig) -> AutoencoderKLFlux2:
    """Train to `config.steps`; the same call again resumes. Returns the autoencoder with its new decoder.

    Raises CancelledError where it was asked to stop, with its state saved; NumericsError before a step whose loss or
    gradient is not finite.
    """
    files = resolve_model(config.model)
    vae = load_vae(files, torch.float32, "cpu")
    with torch.no_grad():
        pairs = make_pairs(config, files, vae)
    cast(Any, vae).to(memory_format=torch.channels_last)
    trained = nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}).requires_grad_(True)
    ranks = Ranks(torch.device("cpu"))
    optimizers = muon_and_adamw(
        trained,
        muon=lambda name, p: int(p.dim() == 4 and not name.endswith("conv_out.weight")),
        betas=(0.9, 0.98),
        weight_decay=0.0,
    )
    learner = Learner(trained, optimizers, ranks)
    writer = checkpoints.Writer(config.run_dir, ranks, keep=2, background=False)
    found = checkpoints.latest(config.run_dir, ranks)
    if found is not None:
        learner.restore(found)
    start = 0 if found is None else found.step
    make = functools.partial(draw_batch, config=config)
    feed = Feed(make, start=start, stop=config.steps, workers=config.workers)
    loss = torch.tensor(math.nan)
    with Stopper() as stopper, contextlib.closing(Metrics(config.run_dir, start)) as metrics:

        def save(done: int) -> None:
            writer.save(done, learner.tensors(), {"config": as_json(config)})

        for step, images in stopper.steps(feed, start, config.steps, save=save, save_every=config.save_every):
            z, image = _batch(step, images, vae, pairs, config)
            with torch.autocast("cpu", torch.bfloat16):
                out = decode(vae, z)
            loss = reconstruction_loss(out.float(), image, config.gradient_weight)
            learner.optimizer.zero_grad()
            learner.backward(loss)
            norm = learner.clip(1.0)
            check_finite(step, loss.item(), norm, config.run_dir, RATE)
            scale = min(1.0, (step + 1) / config.warmup) * 0.5 * (1 + math.cos(math.pi * step / config.steps))
            learner.move(config.learning_rate * scale)
            if (step + 1) % 100 == 0:
                metrics.log(step + 1, loss=loss.item(), grad_norm=norm)
            if (step + 1) % config.measure_every == 0 or step + 1 == config.steps:
                metrics.log(step + 1, **measure(vae, scenes=24))
    return vae


def _batch(
    step: int, images: np.ndarray, vae: AutoencoderKLFlux2, pairs: Tensor, config: DecoderConfig
) -> tuple[Tensor, Tensor]:
    """Latents to decode and the pictures they should become."""
    rng = random.Random(f"decoder step {config.seed} {step}")
    if rng.random() < config.pair_share:
        numbers = [rng.randrange(len(pairs)) for _ in range(config.batch)]
        drawn = [np.array(render(pair_scene(n, config), PAIR_SIDE, PAIR_SIDE)) for n in numbers]
        return pairs[numbers].float(), as_pixels(np.stack(drawn))
    image = as_pixels(images)
    with torch.no_grad():
        z = encode(vae, image)
    if rng.random() < config.flat_share:
        z, image = _flattened(z, image, rng)
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    strength = config.noise * torch.rand(len(z), 1, 1, 1, generator=generator)
    return z + strength * torch.randn(z.shape, generator=generator), image


def _flattened(z_BChw: Tensor, image_BCHW: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
    """A flat place's latent repeated over the whole picture, which its one colour fills; without one, the picture."""
    z, image = z_BChw.clone(), image_BCHW.clone()
    for number in range(len(z)):
        if places := flat_places(image[number : number + 1]):
            row, column = rng.choice(places)
            z[number] = z_BChw[number, :, row : row + 1, column : column + 1]
            image[number] = image_BCHW[number, :, row * GRID : row * GRID + 1, column * GRID : column * GRID + 1]
    return z, image


def flat_places(image_1CHW: Tensor) -> list[tuple[int, int]]:
    """(row, column) of the cells of 16 pixels that have one colour, as all of their eight neighbours have it."""
    most, least = (F.max_pool2d(sign * image_1CHW, 3 * GRID, GRID, GRID) for sign in (1, -1))
    flat = (most + least).amax(1)[0] == 0
    return [(row + 1, column + 1) for row, column in flat[1:-1, 1:-1].nonzero().tolist()]


# ------------------------------------------------------------------------------------------------------------- measures


@torch.inference_mode()
def measure(vae: AutoencoderKLFlux2, scenes: int = 96, side: int = 256) -> dict[str, float]:
    """PSNR in dB of scenes that no training draws, the weave of flat colours, and how white white paper is.

    `psnr`: mean over pictures, from the encoder's latent. `weave`: root mean square, in 255ths, of the pattern that the
    cells of a flat place leave (`_weave`). `white`: mean of 255 over white paper. `edge`: root mean square error, in
    255ths, within a pixel of an edge of the drawing.
    """
    psnrs, whites, edges = [], [], []
    for number in range(scenes):
        rng = random.Random(f"decoder test {number}")
        image = as_pixels(np.array(render(sample_scene(rng, held_out=None), side, side))[None])
        out = decode(vae, encode(vae, image)).clamp(-1, 1)
        psnrs.append(psnr(out, image))
        edge = F.max_pool2d(_steps(image), 3, 1, 1) > 0.25
        edges.append(127.5 * float((out - image).square().mean(1, keepdim=True)[edge].mean().sqrt()))
        scene = replace(sample_scene(rng, held_out=None), background=Background(plain="white"))
        image = as_pixels(np.array(render(scene, side, side))[None])
        out = decode(vae, encode(vae, image)).clamp(-1, 1)
        paper = (image == 1).all(1, keepdim=True)
        paper = 1 - F.max_pool2d(1 - paper.float(), 17, 1, 8) > 0  # not beside a thing
        whites.append(127.5 * (1 + float(out.mean(1, keepdim=True)[paper].mean())))
    return {
        "psnr": float(np.mean(psnrs)),
        "edge": float(np.mean(edges)),
        "weave": _weave(vae, scenes // 2),
        "white": float(np.nanmean(whites)),
    }


def _steps(image_BCHW: Tensor) -> Tensor:
    """(B, 1, H, W): the largest step to the right or downwards."""
    right = F.pad(image_BCHW.diff(dim=3).abs().amax(1, keepdim=True), (0, 1, 0, 0))
    return torch.maximum(right, F.pad(image_BCHW.diff(dim=2).abs().amax(1, keepdim=True), (0, 0, 0, 1)))


def _weave(vae: AutoencoderKLFlux2, scenes: int, period: int = GRID) -> float:
    """Root mean square of what repeats from cell to cell where one cell's latent of a flat place is repeated."""
    found = []
    for number in range(scenes):
        rng = random.Random(f"decoder weave {number}")
        image = as_pixels(np.array(render(sample_scene(rng, held_out=None), 256, 256))[None])
        z = encode(vae, image)
        for row, column in flat_places(image)[::25]:
            cell = z[:, :, row : row + 1, column : column + 1].expand(-1, -1, 16, 16)
            inner = decode(vae, cell.contiguous())[0, :, 64:-64, 64:-64]
            folded = inner.reshape(3, 128 // period, period, 128 // period, period).mean((1, 3))
            found.append((folded - folded.mean((1, 2), keepdim=True)).square().mean())
    return 127.5 * float(torch.stack(found).mean().sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(prog="train.nano.decoder", description="Train the decoder of Lens-Nano further.")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=DecoderConfig.steps)
    parser.add_argument("--pairs", type=int, default=DecoderConfig.pairs)
    parser.add_argument("--learning-rate", type=float, default=DecoderConfig.learning_rate)
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args()
    config = DecoderConfig(
        run_dir=told.run_dir, steps=told.steps, pairs=told.pairs, learning_rate=told.learning_rate, seed=told.seed
    )
    try:
        vae = run(config)
    except CancelledError as error:
        raise SystemExit(f"{error}; {error.hint}") from None
    print({name: round(value, 3) for name, value in measure(vae).items()})
    path = config.run_dir / "vae.safetensors"
    write_vae(path, vae.state_dict(), resolve_model(config.model).preset.params.vae)
    print(path)


if __name__ == "__main__":
    main()
