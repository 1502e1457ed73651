"""Pre-train the transformer with flow matching on drawn scenes: one function, one loop.

The order in the loop is fixed: validate, preview, save, stop, step, log. Running the same command again resumes, and
a resumed run equals an uninterrupted one: scenes, order, dropout, times and noise derive from (seed, step).

Data come in *rounds*: the scenes of a round are drawn and encoded once (autoencoder and language model, both frozen),
then seen `passes` times with fresh noise, times and dropout. Sources: the Lens paper, section 2.3; what it leaves
open is a field of the config with a comment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from backend.model.transformer import JointAttention, LensTransformer2DModel
from backend.params import DiTParams, TemplateParams
from train import checkpoint, flow
from train.align import Aligner
from train.ema import EMA
from train.metrics import Metrics
from train.optim import Optimizers
from train.recipes import Stage
from train.rounds import Batches, Frozen, Grid, Sample, Samples, collate, encode_round, order_of
from train.stopping import Stopper


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
    align: float = 0.0  # weight of the loss of train.align; 0: none, as in the paper
    align_block: int = 4  # 0-based: the block whose image tokens it watches
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


@dataclass(frozen=True)
class Position:
    """Where a step stands in the plan."""

    step: int  # of the whole run
    stage: Stage
    number: int  # of the round within its stage
    first: int  # step at which the round began
    before: int  # step at which the stage began


def positions(config: PretrainConfig, start: int) -> Iterator[Position]:
    """Every step of the run from `start` on."""
    before = 0
    for stage in config.stages:
        # 9 of 10: part batches are left out, so a pass has a few batches less than its scenes would fill.
        per_round = max(1, config.scenes_per_round // stage.batch * config.passes * 9 // 10)
        for step in range(max(before, start), before + stage.steps):
            number = (step - before) // per_round
            yield Position(step, stage, number, before + number * per_round, before)
        before += stage.steps


def learning_rate(config: PretrainConfig, at: Position) -> float:
    """Linear warm-up at the start of the run, constant, linear decay in the last `decay_steps` of the stage."""
    left = at.before + at.stage.steps - at.step
    decay = min(1.0, left / at.stage.decay_steps) if at.stage.decay_steps else 1.0
    return at.stage.learning_rate * min(1.0, (at.step + 1) / config.warmup) * decay


class _Trained:
    """All that changes while training, as a checkpoint holds it."""

    def __init__(self, config: PretrainConfig, initial: dict[str, Tensor] | None) -> None:
        self.config, device = config, torch.device(config.device)
        self.model = build(config.params)
        flow.init_weights(self.model, config.params, torch.Generator().manual_seed(config.seed))
        if initial is not None:
            self.model.load_state_dict(initial)
        torch.nn.Module.to(self.model, device).train()  # diffusers types its own `to` as a wrapper
        for module in self.model.modules():
            if isinstance(module, JointAttention):
                module.explicit = device.type == "cpu"
        self.optimizer = Optimizers(
            self.model,
            muon=muon_matrices if config.muon else lambda _name, _parameter: 0,
            learning_rate=0.0,
            betas=config.betas,
            weight_decay=config.weight_decay,
        )
        self.ema = EMA(self.model, config.ema_decay)
        self.aligner: Aligner | None = None
        if config.align:
            self.aligner = Aligner(self.model.transformer_blocks[config.align_block], config.params.dim).to(device)
            self.align_optimizer = Optimizers(
                self.aligner, muon=lambda _name, _parameter: 0, learning_rate=0.0, betas=config.betas, weight_decay=0.0
            )
        if config.compile:  # after the aligner has put its hook there
            for block in self.model.transformer_blocks:
                block.compile(dynamic=True)

    def resume(self) -> int:
        """Take over the newest checkpoint, if there is one; returns the step to go on with."""
        found = checkpoint.latest(self.config.run_dir)
        if found is None:
            return 0
        parts, state = checkpoint.load(found)
        self.model.load_state_dict(parts["model"])
        self.optimizer.restore(parts["optimizer"])
        self.ema.shadow = {name: tensor.to(self.config.device) for name, tensor in parts["ema"].items()}
        self.ema.updates = int(state["ema_updates"])
        if self.aligner is not None and "align" in parts:  # a run may begin to align later
            self.aligner.load_state_dict(parts["align"])
            self.align_optimizer.restore(parts["align_optimizer"])
        return int(state["step"])

    def save(self, step: int) -> None:
        parts = {"model": self.model.state_dict(), "ema": self.ema.shadow, "optimizer": self.optimizer.tensors()}
        if self.aligner is not None:
            parts |= {"align": self.aligner.state_dict(), "align_optimizer": self.align_optimizer.tensors()}
        checkpoint.save(self.config.run_dir, step, parts, {"ema_updates": self.ema.updates})

    def step(self, rows: list[Sample], grid: Grid, at: Position) -> dict[str, float]:
        """One optimiser step on one batch; returns what the log wants to know. Raises FloatingPointError."""
        config, device = self.config, torch.device(self.config.device)
        x0, text, mask = collate(rows, device)
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + at.step)
        t = flow.sample_times(len(x0), flow.training_mu(x0.shape[1]), generator)
        eps = torch.randn(x0.shape, generator=generator)
        dropped = torch.rand(len(x0), generator=generator) < config.dropout
        mask &= ~dropped.to(device)[:, None]
        loss = loss_of(self.model, x0, eps.to(device), t.to(device), text, mask, grid)
        values = {"loss": loss.item()}
        self.optimizer.zero_grad()
        if self.aligner is not None:
            self.align_optimizer.zero_grad()
            named = self.aligner(torch.stack([row.labels_N2 for row in rows]).to(device))
            values["align"] = named.item()
            loss = loss + config.align * named
        loss.backward()
        values["grad_norm"] = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip))
        if not np.isfinite([*values.values()]).all():
            raise FloatingPointError(f"{values} at step {at.step}: stopped before it spreads")
        rate = learning_rate(config, at)
        self.optimizer.step(rate)
        if self.aligner is not None:
            self.align_optimizer.step(rate)
        self.ema.update(self.model)
        return values


def run(
    config: PretrainConfig,
    frozen: Frozen,
    *,
    initial: dict[str, Tensor] | None = None,
    preview: Callable[[LensTransformer2DModel, Path, int], None] | None = None,
) -> LensTransformer2DModel:
    """Train all stages; returns the model with the averaged weights. `initial`: weights to start from.

    `preview(model, path, base)` draws a sheet of fixed prompts and seeds.
    """
    trained = _Trained(config, initial)
    start = trained.resume()
    # The averaged weights are shown and validated in a copy of its own: not compiled, since every new shape and every
    # change of gradient mode would compile anew.
    shown = build(config.params).eval().requires_grad_(False)
    torch.nn.Module.to(shown, config.device)
    metrics = Metrics(config.run_dir, start)
    before: Position | None = None
    samples: Samples = {}
    held: Samples = {}
    order: Batches = []
    clock, seen, values = time.monotonic(), 0, {"loss": float("nan")}
    with Stopper() as stopper:
        for at in positions(config, start):
            if before is None or before.stage != at.stage:
                usual = replace(at.stage, single_share=None, captions=Stage.captions)  # one set for every stage
                held = encode_round(replace(config, scenes_per_round=128), usual, "held out", frozen)
            if before is None or before.first != at.first:
                samples = encode_round(config, at.stage, f"from {at.first}", frozen)
                order = order_of(samples, at.stage, config, at.number)
                clock, seen = time.monotonic(), 0
            before, step = at, at.step
            if step % config.validate_every == 0 and step != start:
                trained.ema.copy_to(shown)
                validation = validate(shown, held, torch.device(config.device))
                metrics.log(step, loss=values["loss"], validation=validation)
            if preview is not None and step % config.preview_every == 0 and step != start:
                trained.ema.copy_to(shown)
                preview(shown, config.run_dir / "previews" / f"{step:07d}.png", at.stage.base)
                clock, seen = time.monotonic(), 0
            if (step % config.save_every == 0 and step != start) or stopper.asked:
                trained.save(step)
            if stopper.asked:
                break

            grid, index = order[(step - at.first) % len(order)]
            values = trained.step([samples[grid][i] for i in index], grid, at)
            seen += len(index)
            if (step + 1) % config.log_every == 0:
                speed = seen / (time.monotonic() - clock)
                metrics.log(step + 1, **values, pictures_per_s=speed, base=at.stage.base)
        else:
            trained.save(sum(stage.steps for stage in config.stages))
    trained.ema.copy_to(shown)
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
