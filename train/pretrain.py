"""Pre-train the transformer with flow matching on drawn scenes: one function, one loop.

The order in the loop is fixed: validate, preview, save, stop, step, log. Running the same command again resumes, and
a resumed run equals an uninterrupted one: scenes, order, dropout, times and noise derive from (seed, step).

Data come in *rounds*: the scenes of a round are drawn and encoded once (autoencoder and language model, both frozen),
then seen `passes` times with fresh noise, times and dropout. Sources: the Lens paper, section 2.3; what it leaves
open is a field of the config with a comment.
"""

from __future__ import annotations

import functools
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from backend import latents
from backend.model.autoencoder import AutoencoderKLFlux2, encode_mean, latent_statistics
from backend.model.text_encoder import LensGptOssEncoder
from backend.model.transformer import JointAttention, LensTransformer2DModel
from backend.params import DiTParams, TemplateParams
from backend.sizes import buckets
from backend.text.harmony import encode_prompt
from train import checkpoint, flow
from train.data.dialogues import caption_of
from train.data.drawing import render
from train.data.scenes import LAYOUT_WEIGHTS, LAYOUTS, sample_scene
from train.ema import EMA
from train.feed import Feed
from train.metrics import Metrics
from train.optim import Optimizers
from train.recipes import Stage


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    params: DiTParams
    template: TemplateParams
    run_dir: Path
    stages: tuple[Stage, ...]
    scenes_per_round: int = 6144
    passes: int = 6  # times a round is seen
    dropout: float = 0.1  # probability of *no text tokens* (the paper does not say; the field's usual value)
    ema_decay: float = 0.999  # of the weights that are saved and shown (the paper does not say)
    muon: bool = True  # for the blocks' matrices (the paper: AdamW for all); False: AdamW for all
    betas: tuple[float, float] = (0.9, 0.99)  # of AdamW
    weight_decay: float = 0.01
    warmup: int = 200  # steps, at the start of the run
    clip: float = 1.0  # gradient norm
    seed: int = 0
    workers: int = 1  # processes that draw
    encode_batch: int = 64
    validate_every: int = 1000
    preview_every: int = 1000
    save_every: int = 250
    log_every: int = 50
    device: str = "cpu"
    compile: bool = True  # every block


@dataclass(frozen=True)
class Frozen:
    """The networks that are not trained here."""

    vae: AutoencoderKLFlux2
    encoder: LensGptOssEncoder
    tokenizer: Tokenizer


@dataclass
class Sample:
    latent_NC: Tensor  # bfloat16, normalised and packed
    text_LTF: Tensor  # bfloat16


@dataclass
class Drawn:
    """What a drawing process hands over: pictures of one size and the token ids of their captions."""

    images: np.ndarray  # (B, H, W, 3) uint8
    ids: list[tuple[int, ...]]
    prefix: int


# ------------------------------------------------------------------------------------------------------------ rounds


def draw(
    chunk: int, *, seed: int, name: str, base: int, square_share: float, single_share: float | None,
    count: int, tokenizer_json: str, template: TemplateParams, captions: tuple[float, float, float],
) -> Drawn:  # fmt: skip
    """One chunk of a round, all in one aspect-ratio bucket; a function of its arguments."""
    rng = random.Random(f"scenes {seed} {base} {name} {chunk}")
    width, height = buckets(base)[4] if rng.random() < square_share else rng.choice(buckets(base))
    tokenizer = _tokenizer(tokenizer_json)
    images, ids, prefix = [], [], 0
    for _ in range(count):
        layouts = LAYOUTS
        if single_share is not None:
            layouts = ("single",) if rng.random() < single_share else LAYOUTS[1:]
        weights = tuple(LAYOUT_WEIGHTS[layout] for layout in layouts)
        scene = sample_scene(rng, aspect=width / height, layouts=layouts, weights=weights)
        images.append(np.asarray(render(scene, width, height)))
        encoded = encode_prompt(tokenizer, template, caption_of(scene, rng, captions))
        ids.append(encoded.ids)
        prefix = encoded.prefix
    return Drawn(np.stack(images), ids, prefix)


@functools.cache
def _tokenizer(text: str) -> Tokenizer:
    return Tokenizer.from_str(text)


@torch.no_grad()
def encode_images(vae: AutoencoderKLFlux2, images: np.ndarray, device: torch.device) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, N, C) normalised, packed latent means."""
    pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.autocast(device.type, torch.bfloat16):
        mean = encode_mean(vae, pixels.contiguous(memory_format=torch.channels_last))
    return latents.pack(latents.normalise(latents.patchify(mean.float()), *latent_statistics(vae)))


@torch.no_grad()
def encode_texts(
    encoder: LensGptOssEncoder, ids: list[tuple[int, ...]], prefix: int, take: tuple[int, ...], device: torch.device
) -> list[Tensor]:
    """Features (L, T, F) of each conversation, without its first `prefix` tokens."""
    width = max(len(row) for row in ids)
    batch = torch.zeros(len(ids), width, dtype=torch.long)
    for i, row in enumerate(ids):
        batch[i, : len(row)] = torch.tensor(row)
    with torch.autocast(device.type, torch.bfloat16):
        states = encoder.hidden_states(batch.to(device), take)  # right padding is harmless: attention is causal
    stacked = torch.stack(states, 2)
    return [stacked[i, prefix : len(row)] for i, row in enumerate(ids)]


def encode_round(
    config: PretrainConfig, stage: Stage, name: str, frozen: Frozen
) -> dict[tuple[int, int], list[Sample]]:
    """Draw and encode one round, told from others by `name`: latent grid (h, w) -> samples."""
    device = torch.device(config.device)
    make = functools.partial(
        draw,
        seed=config.seed,
        name=name,
        base=stage.base,
        square_share=stage.square_share,
        single_share=stage.single_share,
        count=config.encode_batch,
        tokenizer_json=frozen.tokenizer.to_str(),
        template=config.template,
        captions=stage.captions,
    )
    chunks = config.scenes_per_round // config.encode_batch
    out: dict[tuple[int, int], list[Sample]] = {}
    for drawn in Feed(make, start=0, stop=chunks, workers=config.workers):
        z = encode_images(frozen.vae, drawn.images, device).bfloat16().cpu()
        texts = encode_texts(frozen.encoder, drawn.ids, drawn.prefix, config.params.selected_layer_index, device)
        grid = (drawn.images.shape[1] // latents.CELL, drawn.images.shape[2] // latents.CELL)
        out.setdefault(grid, []).extend(
            Sample(latent, text.bfloat16().cpu().clone()) for latent, text in zip(z, texts, strict=True)
        )
    return out


def batches(
    samples: dict[tuple[int, int], list[Sample]], batch: int, rng: random.Random
) -> list[tuple[tuple[int, int], list[int]]]:
    """One pass over a round: (grid, indices) of full batches whose captions are of similar length, in random order."""
    out: list[tuple[tuple[int, int], list[int]]] = []
    for grid in sorted(samples):
        rows = samples[grid]
        # Jitter keeps the same captions from meeting every pass; similar lengths keep padding small.
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].text_LTF) + rng.uniform(0, 12))
        out += [(grid, order[i : i + batch]) for i in range(0, len(order) - batch + 1, batch)]
    rng.shuffle(out)
    return out


def collate(rows: list[Sample], device: torch.device, multiple: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (B, N, C), features (B, L, T, F) padded to a multiple of `multiple` tokens, mask (B, L)."""
    longest = max(len(row.text_LTF) for row in rows)
    length = -(-longest // multiple) * multiple
    text = rows[0].text_LTF.new_zeros(len(rows), length, *rows[0].text_LTF.shape[1:])
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        text[i, : len(row.text_LTF)] = row.text_LTF
        mask[i, : len(row.text_LTF)] = True
    return torch.stack([r.latent_NC for r in rows]).float().to(device), text.to(device), mask.to(device)


# -------------------------------------------------------------------------------------------------------------- loss


def loss_of(
    model: LensTransformer2DModel,
    x0: Tensor,
    eps: Tensor,
    t_B: Tensor,
    text: Tensor,
    mask: Tensor,
    grid: tuple[int, int],
) -> Tensor:
    """Mean squared error of the velocity."""
    with torch.autocast(x0.device.type, torch.bfloat16):
        v = model(flow.interpolate(x0, eps, t_B), t_B, text, grid, mask)
    return F.mse_loss(v.float(), flow.velocity_target(x0, eps))


@torch.no_grad()
def validate(model: LensTransformer2DModel, held: dict[tuple[int, int], list[Sample]], device: torch.device) -> float:
    """Loss on held-out scenes at eight fixed times with fixed noise: comparable across steps and runs."""
    total, count = 0.0, 0
    for grid, rows in sorted(held.items()):
        x0, text, mask = collate(rows, device)
        generator = torch.Generator().manual_seed(len(rows))
        eps = torch.randn(x0.shape, generator=generator).to(device)
        t = ((torch.arange(len(rows)) % 8 + 0.5) / 8).to(device)
        total += float(loss_of(model, x0, eps, t, text, mask, grid)) * len(rows)
        count += len(rows)
    return total / count


# --------------------------------------------------------------------------------------------------------------- run


class _Stopper:
    """SIGTERM or Ctrl-C asks for a checkpoint and a clean end; the second Ctrl-C is immediate."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> _Stopper:
        self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _ask(self, number: int, _frame: object) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _positions(config: PretrainConfig, start: int) -> Iterator[tuple[int, Stage, int, int]]:
    """(global step, stage, round within the stage, steps before this stage), from `start` on."""
    before = 0
    for stage in config.stages:
        per_round = max(1, config.scenes_per_round // stage.batch * config.passes * 9 // 10)  # 10 %: part batches
        for step in range(max(before, start), before + stage.steps):
            yield step, stage, (step - before) // per_round, before
        before += stage.steps


def learning_rate(config: PretrainConfig, stage: Stage, step: int, before: int) -> float:
    """Linear warm-up at the start of the run, constant, linear decay in the last `decay_steps` of the stage."""
    left = before + stage.steps - step
    decay = min(1.0, left / stage.decay_steps) if stage.decay_steps else 1.0
    return stage.learning_rate * min(1.0, (step + 1) / config.warmup) * decay


def run(
    config: PretrainConfig,
    frozen: Frozen,
    *,
    initial: dict[str, Tensor] | None = None,
    preview: Callable[[LensTransformer2DModel, Path], None] | None = None,
) -> LensTransformer2DModel:
    """Train all stages; returns the model with the averaged weights. `initial`: weights to start from.

    `preview(model, path)` draws a sheet of fixed prompts and seeds.
    """
    device = torch.device(config.device)
    model = build(config.params)
    flow.init_weights(model, config.params, torch.Generator().manual_seed(config.seed))
    if initial is not None:
        model.load_state_dict(initial)
    torch.nn.Module.to(model, device).train()  # diffusers types its own `to` as a wrapper
    for module in model.modules():
        if isinstance(module, JointAttention):
            module.explicit = device.type == "cpu"
    if config.compile:
        for block in model.transformer_blocks:
            block.compile(dynamic=True)
    # The averaged weights are shown and validated in a copy of its own: not compiled, since every new shape and every
    # change of gradient mode would compile anew.
    shown = build(config.params).eval().requires_grad_(False)
    torch.nn.Module.to(shown, device)
    optimizer = Optimizers(
        model,
        muon=muon_matrices if config.muon else lambda _name, _parameter: 0,
        learning_rate=0.0,
        betas=config.betas,
        weight_decay=config.weight_decay,
    )
    ema = EMA(model, config.ema_decay)
    start = 0
    found = checkpoint.latest(config.run_dir)
    if found is not None:
        parts, state = checkpoint.load(found)
        model.load_state_dict(parts["model"])
        optimizer.restore(parts["optimizer"])
        ema.shadow = {name: tensor.to(device) for name, tensor in parts["ema"].items()}
        ema.updates = int(state["ema_updates"])
        start = int(state["step"])
    metrics = Metrics(config.run_dir, start)
    current: tuple[Stage, int] | None = None
    samples: dict[tuple[int, int], list[Sample]] = {}
    held: dict[tuple[int, int], list[Sample]] = {}
    order: list[tuple[tuple[int, int], list[int]]] = []
    clock, seen, last = time.monotonic(), 0, float("nan")
    with _Stopper() as stopper:
        for step, stage, number, before in _positions(config, start):
            if current != (stage, number):
                if current is None or current[0] != stage:
                    usual = replace(stage, single_share=None, captions=Stage.captions)  # one set for every stage
                    held = encode_round(replace(config, scenes_per_round=128), usual, "held out", frozen)
                first = _first_step(config, stage, number, before)
                samples = encode_round(config, stage, f"from {first}", frozen)
                order = _order(samples, stage, config, number)
                current = (stage, number)
                clock, seen = time.monotonic(), 0
            if step % config.validate_every == 0 and step != start:
                ema.copy_to(shown)
                metrics.log(step, loss=last, validation=validate(shown, held, device))
            if preview is not None and step % config.preview_every == 0 and step != start:
                ema.copy_to(shown)
                preview(shown, config.run_dir / "previews" / f"{step:07d}.png")
                clock, seen = time.monotonic(), 0
            if (step % config.save_every == 0 and step != start) or stopper.asked:
                _save(config, step, model, ema, optimizer)
            if stopper.asked:
                break

            first = _first_step(config, stage, number, before)
            grid, index = order[(step - first) % len(order)]
            x0, text, mask = collate([samples[grid][i] for i in index], device)
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            mu = flow.training_mu(x0.shape[1])
            t = flow.sample_times(len(x0), mu, generator)
            eps = torch.randn(x0.shape, generator=generator)
            dropped = torch.rand(len(x0), generator=generator) < config.dropout
            mask &= ~dropped.to(device)[:, None]
            loss = loss_of(model, x0, eps.to(device), t.to(device), text, mask, grid)
            optimizer.zero_grad()
            loss.backward()
            last = loss.item()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            if not np.isfinite(last) or not torch.isfinite(norm):
                raise FloatingPointError(
                    f"loss {last}, gradient norm {float(norm)} at step {step}: stopped before it spreads"
                )
            optimizer.step(learning_rate(config, stage, step, before))
            ema.update(model)
            seen += len(x0)
            if (step + 1) % config.log_every == 0:
                rate = seen / (time.monotonic() - clock)
                metrics.log(step + 1, loss=last, grad_norm=float(norm), pictures_per_s=rate, base=stage.base)
        else:
            _save(config, sum(s.steps for s in config.stages), model, ema, optimizer)
    ema.copy_to(shown)
    return shown


def build(params: DiTParams) -> LensTransformer2DModel:
    """The transformer of `params`, weights as torch initialises them."""
    return LensTransformer2DModel(
        patch_size=params.patch_size,
        in_channels=params.in_channels,
        out_channels=params.out_channels,
        num_layers=params.num_layers,
        attention_head_dim=params.attention_head_dim,
        num_attention_heads=params.num_attention_heads,
        enc_hidden_dim=params.enc_hidden_dim,
        axes_dims_rope=params.axes_dims_rope,
        selected_layer_index=params.selected_layer_index,
        mlp_hidden_dim=params.mlp_hidden_dim,
    )


def muon_matrices(name: str, _parameter: torch.nn.Parameter) -> int:
    """Muon's share of the transformer: attention and MLP of every block; fused q, k, v are three matrices.

    Not the modulation: its input is one vector a picture, so its gradient has no more rank than the batch has pictures.
    """
    if name.endswith("_qkv.weight"):
        return 3
    return int(any(part in name for part in (".to_out.0.weight", ".to_add_out.weight", "_mlp.w")))


def _first_step(config: PretrainConfig, stage: Stage, number: int, before: int) -> int:
    return before + number * max(1, config.scenes_per_round // stage.batch * config.passes * 9 // 10)


def _order(
    samples: dict[tuple[int, int], list[Sample]], stage: Stage, config: PretrainConfig, number: int
) -> list[tuple[tuple[int, int], list[int]]]:
    rng = random.Random(f"order {config.seed} {stage.base} {number}")
    return [row for _ in range(config.passes + 1) for row in batches(samples, stage.batch, rng)]


def _save(config: PretrainConfig, step: int, model: LensTransformer2DModel, ema: EMA, optimizer: Optimizers) -> None:
    parts = {"model": model.state_dict(), "ema": ema.shadow, "optimizer": optimizer.tensors()}
    checkpoint.save(config.run_dir, step, parts, {"ema_updates": ema.updates})
