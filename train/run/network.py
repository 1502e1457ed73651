"""The network that is trained, before it has an optimiser: built, placed on a device or over ranks, given weights.

Order: `placed` (float8 first, then the sharding), `init_weights` or `adopt`, whatever watches its blocks, and last
`finish` (blocks that run again, then the compiler).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.utils import checkpoint as torch_checkpoint

from backend.denoising.compile import allow_variants
from backend.errors import CheckpointError, optional_package
from backend.model.transformer import JointAttention, LensTransformer2DModel
from backend.params import DiTParams
from train.config import Machine
from train.run.distributed import Ranks, like, shard


def build(params: DiTParams) -> LensTransformer2DModel:
    """The transformer of `params`, weights as torch initialises them."""
    return LensTransformer2DModel(**asdict(params))


def placed(
    params: DiTParams, ranks: Ranks, machine: Machine, *, float8: bool = False, dtype: torch.dtype = torch.float32
) -> LensTransformer2DModel:
    """The network on the device or spread over the ranks, its weights not yet set. Raises LensError (no torchao).

    `dtype`: of the weights; what is trained is float32.
    """
    with torch.device("meta"):
        model = build(params).to(dtype)
    if float8:
        _to_float8(model)
    choose_attention(model, ranks.device)
    shard(model, ranks, machine.compute)
    return model.to_empty(device=ranks.device)


def choose_attention(model: torch.nn.Module, device: torch.device) -> None:
    """Two plain products on a processor: there their backward pass is faster than the fused kernel's."""
    for module in model.modules():
        if isinstance(module, JointAttention):
            module.explicit = device.type == "cpu"


def finish(model: LensTransformer2DModel, machine: Machine) -> None:
    """Have blocks run again in the backward pass, and compile them, where that is asked for."""
    if machine.checkpointing != "none":
        _save_memory(model, machine.checkpointing)
    if machine.compile:
        allow_variants()
        for block in model.transformer_blocks:
            block.compile(dynamic=True)


@torch.no_grad()
def adopt(model: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
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


def muon_matrices(name: str, _parameter: torch.nn.Parameter) -> int:
    """Muon's share of the transformer: attention and MLP of every block; fused q, k, v are three matrices.

    Not the modulation: its input is one vector a picture, so its gradient has no more rank than the batch has pictures.
    """
    if name.endswith("_qkv.weight"):
        return 3
    return int(any(part in name for part in (".to_out.0.weight", ".to_add_out.weight", "_mlp.w")))


def _to_float8(model: LensTransformer2DModel) -> None:
    """The blocks' attention and MLP products in float8. Raises LensError without torchao."""
    with optional_package(otherwise="--set machine.float8=false"):
        from torchao.float8 import convert_to_float8_training  # pyright: ignore[reportMissingImports]

    def taken(_module: torch.nn.Module, name: str) -> bool:  # not modulation: its rows are pictures, too few to scale
        return name.startswith("transformer_blocks.") and "_mod." not in name

    convert_to_float8_training(model, module_filter_fn=taken)


# Saving memory ------------------------------------------------------------------------------------------------------


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
