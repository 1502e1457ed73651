"""All that changes while training: weights, moments, average. One step of it, and its way to disk and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.utils import checkpoint as torch_checkpoint

from backend.denoising.compile import allow_variants
from backend.errors import CheckpointError, NumericsError, UsageError
from backend.model.transformer import JointAttention, LensTransformer2DModel
from backend.params import DiTParams
from train.config import PretrainConfig
from train.losses import flow
from train.run import checkpoints
from train.run.batch import Batch
from train.run.distributed import Ranks, like, shard, whole
from train.run.ema import EMA
from train.run.optim import Optimizers
from train.world.align import Aligner

NAMED = 8  # pictures that an error lists


class Diverged(NumericsError):
    """A loss or a gradient that is not finite, seen before the step."""


@dataclass(frozen=True)
class Taken:
    """What one step knows about itself, the same on every rank."""

    loss: float
    grad_norm: float
    align: float | None  # None: not asked for
    asked_to_stop: bool  # by any rank's signal


# ------------------------------------------------------------------------------------------------------- the network


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


def placed(config: PretrainConfig, ranks: Ranks) -> LensTransformer2DModel:
    """The network on the device or spread over the ranks, its weights not yet set."""
    with torch.device("meta"):
        model = build(config.params)
    if config.float8:
        _to_float8(model)
    for module in model.modules():
        if isinstance(module, JointAttention):
            module.explicit = ranks.device.type == "cpu"
    shard(model, ranks, config.compute)
    return model.to_empty(device=ranks.device)


def muon_matrices(name: str, _parameter: torch.nn.Parameter) -> int:
    """Muon's share of the transformer: attention and MLP of every block; fused q, k, v are three matrices.

    Not the modulation: its input is one vector a picture, so its gradient has no more rank than the batch has pictures.
    """
    if name.endswith("_qkv.weight"):
        return 3
    return int(any(part in name for part in (".to_out.0.weight", ".to_add_out.weight", "_mlp.w")))


def _to_float8(model: LensTransformer2DModel) -> None:
    """The blocks' attention and MLP products in float8. Raises UsageError without torchao."""
    try:
        from torchao.float8 import convert_to_float8_training  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UsageError("float8 needs torchao, which is not installed", hint="pip install torchao") from error

    def taken(_module: torch.nn.Module, name: str) -> bool:  # not modulation: its rows are pictures, too few to scale
        return name.startswith("transformer_blocks.") and "_mod." not in name

    convert_to_float8_training(model, module_filter_fn=taken)


def _save_memory(model: LensTransformer2DModel, mode: str) -> None:
    """Run blocks again in the backward pass instead of keeping what they computed."""
    context: dict[str, Any] = {}
    if mode == "selective":
        # A policy of its own for every block and step: it counts products, and must count alike when they run again.
        context["context_fn"] = lambda: torch_checkpoint.create_selective_checkpoint_contexts(_keep_costly_results())
    for block in model.transformer_blocks:
        block.forward = _run_again(block.forward, context)


def _run_again(original: Callable[..., Any], context: Mapping[str, Any]) -> Callable[..., Any]:
    """A plain function: a partial of `checkpoint` would be the frame that torch.compile sees first, and skips."""

    def forward(*inputs: Any, **named: Any) -> Any:
        return torch_checkpoint.checkpoint(
            original, *inputs, use_reentrant=False, preserve_rng_state=False, **context, **named
        )

    return forward


def _keep_costly_results() -> Any:
    """Attention, and every second matrix product: about half the products run twice (torchtitan's rule)."""
    ops, seen = torch.ops.aten, [0, 0]
    attention = {
        ops._scaled_dot_product_flash_attention.default,
        ops._scaled_dot_product_efficient_attention.default,
        ops._scaled_dot_product_cudnn_attention.default,
        ops._scaled_dot_product_flash_attention_for_cpu.default,
        ops.bmm.default,  # explicit_attention's products
    }
    save, again = torch_checkpoint.CheckpointPolicy.MUST_SAVE, torch_checkpoint.CheckpointPolicy.PREFER_RECOMPUTE

    def policy(context: Any, op: Any, *_args: Any, **_options: Any) -> torch_checkpoint.CheckpointPolicy:
        if op in attention:
            return save
        if op in (ops.mm.default, ops.addmm.default):
            seen[int(context.is_recompute)] += 1
            return save if seen[int(context.is_recompute)] % 2 else again
        return again

    return policy


# ------------------------------------------------------------------------------------------------------------- state


class Trained:
    """The network, its average and its optimiser, on one process or many."""

    def __init__(
        self,
        config: PretrainConfig,
        ranks: Ranks,
        initial: Mapping[str, Tensor] | None = None,
        *,
        model: LensTransformer2DModel | None = None,
    ) -> None:
        """`model`: a network that has its weights, some of them frozen, for one process and without an average; None:
        it is made here, from `initial` or from nothing."""
        self.config, self.ranks = config, ranks
        self.channel_weights: Tensor | None = None  # (C,) of the loss, mean 1; None: every channel the same
        assert model is None or (ranks.mesh is None and config.ema_decay is None)
        self.model = self._begin(initial) if model is None else model.train()
        self.optimizer = Optimizers(
            self.model,
            muon=muon_matrices if config.muon else lambda _name, _parameter: 0,
            learning_rate=0.0,
            betas=config.betas,
            weight_decay=config.weight_decay,
            muon_every=config.muon_every,
        )
        # The averaged weights live in a network of their own, which is shown and validated: never compiled, since
        # every new shape and every change of gradient mode would compile anew.
        self.shown, self.ema = self.model, None
        if config.ema_decay is not None:
            self.shown = placed(config, ranks).eval().requires_grad_(False)
            _adopt(self.shown, dict(self.model.named_parameters()))
            self.ema = EMA(self.shown, config.ema_decay, own=False)
        self.aligner: Aligner | None = None
        if config.align:
            self._align()
        if config.checkpointing != "none":
            _save_memory(self.model, config.checkpointing)
        if config.compile:  # after the aligner has put its hook there
            allow_variants()
            for block in self.model.transformer_blocks:
                block.compile(dynamic=True)

    def _begin(self, initial: Mapping[str, Tensor] | None) -> LensTransformer2DModel:
        model = placed(self.config, self.ranks).train()
        if initial is None:
            init_weights(model, self.config.params, torch.Generator().manual_seed(self.config.seed))
        else:
            _adopt(model, initial)
        return model

    def _align(self) -> None:
        config = self.config
        watched = self.model.transformer_blocks[config.align_block]
        self.aligner = Aligner(watched, config.params.dim).to(self.ranks.device)
        self.align_optimizer = Optimizers(
            self.aligner, muon=lambda _name, _parameter: 0, learning_rate=0.0, betas=config.betas, weight_decay=0.0
        )

    # ------------------------------------------------------------------------------------------------------- one step

    def step(self, batches: Sequence[Batch], learning_rate: float, *, stop: bool) -> Taken:
        """One optimiser step on this rank's passes. Raises Diverged, on every rank, before anything changed."""
        world, aligned = self.ranks.world, 0.0
        self.optimizer.zero_grad()
        if self.aligner is not None:
            self.align_optimizer.zero_grad()
        losses: list[Tensor] = []
        for batch in batches:
            losses.append(self.losses(self.model, batch))
            loss = (losses[-1] * batch.weights_B).sum()
            if self.aligner is not None and batch.labels_BN2 is not None:
                named = self.aligner(batch.labels_BN2) * batch.weights_B.sum()
                aligned += float(named.detach())
                loss = loss + self.config.align * named
            (loss * world).backward()  # FSDP averages gradients over the ranks; the weights already are shares of 1
        mine = sum(float((loss.detach() * b.weights_B).sum()) for loss, b in zip(losses, batches, strict=True))
        loss, aligned, stops = self.ranks.sums([mine, aligned, float(stop)])
        norm = self._clipped_norm()
        if not all(math.isfinite(value) for value in (loss, aligned, norm)):
            self._diverged(loss, norm, losses, batches)
        self.optimizer.step(learning_rate)
        if self.aligner is not None:
            self.align_optimizer.step(learning_rate)
        if self.ema is not None:
            self.ema.update(self.model)
        return Taken(loss, norm, None if self.aligner is None else aligned, stops > 0)

    def losses(self, model: LensTransformer2DModel, batch: Batch) -> Tensor:
        """(B,) mean squared error of each picture's velocity, in float32; channels weighted where that is asked for."""
        x_t = flow.interpolate(batch.x0_BNC, batch.eps_BNC, batch.t_B)
        # Sharded parameters come in the compute precision already; autocast would only slow them down.
        autocast = self.config.compute == "bfloat16" and self.ranks.mesh is None
        with torch.autocast(x_t.device.type, torch.bfloat16, enabled=autocast):
            v = model(x_t, batch.t_B, batch.text_BLTF, batch.grid, batch.mask_BL)
        target = flow.velocity_target(batch.x0_BNC, batch.eps_BNC)
        errors = F.mse_loss(v.float(), target, reduction="none")
        return (errors if self.channel_weights is None else errors * self.channel_weights).mean((1, 2))

    def _clipped_norm(self) -> float:
        """Norm of the whole gradient before it is clipped."""
        if self.aligner is not None and self.ranks.mesh is not None:
            for parameter in self.aligner.parameters():  # not sharded: every rank has the whole of it
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= self.ranks.world
        return float(whole(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)))

    def _diverged(self, loss: float, norm: float, losses: Sequence[Tensor], batches: Sequence[Batch]) -> None:
        pairs = zip(losses, batches, strict=True)
        rows = [(n, float(one)) for each, batch in pairs for n, one in zip(batch.names, each.detach(), strict=True)]
        bad = [name for name, one in rows if not math.isfinite(one)]
        suspects = [name for one in self.ranks.gathered(bad) for name in one]
        every = [name for one in self.ranks.gathered([name for name, _ in rows]) for name in one]
        shown = list(dict.fromkeys(suspects or every))
        more = f" and {len(shown) - NAMED} more" if len(shown) > NAMED else ""
        whose = "pictures whose loss is not finite" if suspects else "no single loss is at fault; the step's pictures"
        self.optimizer.zero_grad()
        raise Diverged(f"loss {loss:g}, gradient norm {norm:g}; {whose}: {', '.join(shown[:NAMED])}{more}")

    # ----------------------------------------------------------------------------------------------------------- disk

    def tensors(self) -> dict[str, Tensor]:
        """The whole state, as a checkpoint names it."""
        out = self._learned()
        if self.ema is not None:
            out |= {f"ema.{name}": tensor for name, tensor in self.ema.shadow.items()}
        out |= {f"optimizer.{name}": tensor for name, tensor in self.optimizer.tensors().items()}
        if self.aligner is not None:
            out |= {f"align.{name}": parameter for name, parameter in self.aligner.named_parameters()}
            moments = self.align_optimizer.tensors()
            out |= {f"align_optimizer.{name}": tensor for name, tensor in moments.items()}
        return out

    def restore(self, found: checkpoints.Found) -> None:
        """Take over a checkpoint. Raises CheckpointError."""
        networks = self._learned()
        extra = [n for n in found.names if n.startswith("model.") and n not in networks]
        if extra:
            raise CheckpointError(f"{found.folder}: this run's network has no {extra[0].partition('.')[2]!r}")
        if self.ema is not None:
            if any(name.startswith("ema.") for name in found.names):
                networks |= {f"ema.{name}": tensor for name, tensor in self.ema.shadow.items()}
                self.ema.updates = int(found.state.get("ema_updates", 0))
        if self.aligner is not None and any(name.startswith("align.") for name in found.names):
            networks |= {f"align.{name}": parameter for name, parameter in self.aligner.named_parameters()}
            self._restore_moments(found, "align_optimizer", self.align_optimizer)
        checkpoints.read(found, networks, self.ranks)
        if self.ema is not None and f"ema.{next(iter(self.ema.shadow))}" not in networks:
            _adopt(self.shown, dict(self.model.named_parameters()))  # a run may begin to average later
        self._restore_moments(found, "optimizer", self.optimizer)

    def _learned(self) -> dict[str, Tensor]:
        """All that is trained of the network: the whole of it but where it came with frozen parts."""
        return {f"model.{name}": p for name, p in self.model.named_parameters() if p.requires_grad}

    def _restore_moments(self, found: checkpoints.Found, part: str, optimizer: Optimizers) -> None:
        empty = {f"{part}.{name}": tensor for name, tensor in optimizer.empty_tensors().items()}
        other = [name for name in found.names if name.startswith(f"{part}.") and name not in empty]
        if other:
            raise CheckpointError(
                f"{found.folder}: the run began with another optimiser ({other[0]})",
                hint="muon as it began, or a new run from its weights: --set start_from=… --run-dir …",
            )
        there = {name: tensor for name, tensor in empty.items() if name in found.names}
        checkpoints.read(found, there, self.ranks)
        optimizer.restore({name.partition(".")[2]: tensor for name, tensor in there.items()})


@torch.no_grad()
def _adopt(model: LensTransformer2DModel, weights: Mapping[str, Tensor]) -> None:
    """Give a network the weights of another or of a file, whole or laid out alike."""
    for name, parameter in model.named_parameters():
        if name not in weights or weights[name].shape != parameter.shape:
            raise CheckpointError(f"the weights to start from have no {name!r} of shape {list(parameter.shape)}")
        source = weights[name]
        parameter.copy_(source if type(source.data) is type(parameter.data) else like(source, parameter))


def init_weights(model: torch.nn.Module, params: DiTParams, generator: torch.Generator) -> None:
    """Xavier-uniform matrices, zero biases; zero modulation and output, so that every block starts as the identity.

    The paper does not state its initialisation; this is DiT's (arXiv 2212.09748, adaLN-Zero). A sharded matrix is drawn
    whole, so that the weights do not depend on the number of ranks.
    """
    for name, p in model.named_parameters():
        if "norm" in name and p.dim() == 1 and not name.startswith("norm_out"):
            p.data.fill_(1.0)
        elif p.dim() < 2 or "_mod." in name or name.startswith(("norm_out", "proj_out")):
            p.data.zero_()
        else:
            bound = (6.0 / (p.shape[0] + p.shape[1])) ** 0.5
            whole = torch.empty(p.shape, device="cpu").uniform_(-bound, bound, generator=generator)
            p.data.copy_(like(whole, p.data))
