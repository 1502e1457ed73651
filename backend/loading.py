"""Files -> networks, strictly: a missing, extra or misshapen tensor is an error that names it.

A network is built without memory (meta device), compared tensor by tensor with what the files hold, and filled in its
own order, one tensor at a time: the peak is the finished network plus the one tensor being decoded. Plain tensors
that need no conversion stay views of the memory-mapped file, so loading them costs no copy at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from backend.checkpoints import formats
from backend.checkpoints.compare import compare
from backend.checkpoints.formats import TensorEntry, TensorTable
from backend.checkpoints.packing_plan import BLOCK_LINEAR, QuantPlan
from backend.checkpoints.resolve import ModelFiles
from backend.checkpoints.tokenizer_files import load_tokenizer
from backend.errors import CheckpointError, NumericsError, UsageError, joined
from backend.kernels.pointwise import has_fp8_units
from backend.lora import apply
from backend.model.tensors import transformer_shapes
from backend.packing import schemes
from backend.packing.linears import PackedLinear
from backend.packing.schemes import Scheme
from backend.params import DiTParams, VAEParams
from backend.types import LoraUse, Quant

if TYPE_CHECKING:
    from backend.model.autoencoder import AutoencoderKLFlux2
    from backend.model.text_encoder import LensGptOssEncoder
    from backend.model.transformer import LensTransformer2DModel

DTYPES = (torch.float32, torch.bfloat16)  # float16 overflows: activations reach 3e7
Device = torch.device | str
Network = TypeVar("Network", bound=nn.Module)

__all__ = ["load_text_encoder", "load_tokenizer", "load_transformer", "load_vae", "open_text_table"]  # a re-export


def load_transformer(
    files: ModelFiles,
    dtype: torch.dtype,
    device: Device,
    loras: Sequence[LoraUse] = (),
    quant: QuantPlan | None = None,
) -> LensTransformer2DModel:
    """The whole transformer with its LoRAs, in evaluation mode, without gradients. Raises CheckpointError.

    `quant`: how the blocks' linears are held; None: decoded, in `dtype`.
    """
    table = open_transformer_table(files)
    network = _fill(_meta_transformer(files.preset.params.dit), apply.fuse(table, loras), dtype, device, (), quant)
    apply.attach(network, apply.live_updates(table, loras), dtype)
    return network


def load_for_schedules(
    table: TensorTable,
    params: DiTParams,
    dtype: torch.dtype,
    device: Device,
    loras: Sequence[LoraUse] = (),
    quant: QuantPlan | None = None,
) -> LensTransformer2DModel:
    """The transformer without its modulation layers, which `backend.denoising.modulation` folds for each schedule.

    The table must hold them all the same. Otherwise as `load_transformer`.
    """
    from backend.denoising.modulation import modulation_names

    compare(transformer_shapes(params), {n: e.shape for n, e in table.entries.items()}, table.origin)
    network = _meta_transformer(params)
    network.drop_modulation()
    unused = tuple(modulation_names(params))
    network = _fill(network, apply.fuse(table, loras), dtype, device, unused, quant)
    apply.attach(network, apply.live_updates(table, loras), dtype)
    return network


def _meta_transformer(params: DiTParams) -> LensTransformer2DModel:
    from backend.model.transformer import LensTransformer2DModel

    with torch.device("meta"), Uninitialised():
        return LensTransformer2DModel(**asdict(params))


def open_transformer_table(files: ModelFiles) -> TensorTable:
    """The tensors of the transformer, none of them read yet. Raises CheckpointError."""
    table = formats.open_transformer(files.transformer)
    if table.params is not None and table.params != files.preset.params.dit:
        raise CheckpointError(f"{table.origin}: its header states other parameters than {files.preset.name} has")
    return table


def load_text_encoder(
    files: ModelFiles, dtype: torch.dtype, device: Device, *, with_head: bool = False
) -> LensGptOssEncoder:
    """The GPT-OSS network; `with_head` keeps the output head that the reasoner needs. Raises CheckpointError.

    At the published size 42 GB in bfloat16 (39 GB of it experts, which are dequantised one layer at a time).
    """
    from backend.model.text_encoder import LensGptOssEncoder

    params = files.preset.params.text
    table = open_text_table(files)
    if with_head and "lm_head.weight" not in table.entries:
        raise CheckpointError(
            f"{table.origin}: has no output head (lm_head), so it can encode a prompt but not write one",
            hint="ComfyUI's NVFP4 file is one of these; for the reasoner use gpt-oss-20b as published, or a GGUF",
        )
    with torch.device("meta"), Uninitialised():
        network = LensGptOssEncoder(params, head=with_head)
    unused = () if with_head else ("lm_head.weight",)
    return _fill(network, table, dtype, device, unused)


def open_text_table(files: ModelFiles) -> TensorTable:
    """The tensors of the text encoder, none of them read yet. Raises CheckpointError."""
    table = formats.open_text_encoder(files.text_encoder)
    if table.params is not None and table.params != files.preset.params.text:
        raise CheckpointError(f"{table.origin}: its header states other parameters than {files.preset.name} has")
    return table


def load_vae(files: ModelFiles, dtype: torch.dtype, device: Device) -> AutoencoderKLFlux2:
    """The autoencoder, in evaluation mode, without gradients. Raises CheckpointError."""
    return fill_vae(open_vae_table(files), files.preset.params.vae, dtype, device)


def open_vae_table(files: ModelFiles) -> TensorTable:
    """The tensors of the autoencoder, none of them read yet. Raises CheckpointError."""
    return formats.open_vae(files.vae, len(files.preset.params.vae.block_out_channels))


def fill_vae(table: TensorTable, params: VAEParams, dtype: torch.dtype, device: Device) -> AutoencoderKLFlux2:
    """The autoencoder of a table, as `load_vae`."""
    from backend.model.autoencoder import build_vae

    with torch.device("meta"), Uninitialised():
        network = build_vae(params)
    network = _fill(network, table, dtype, device)
    if torch.device(device).type == "cuda":  # a processor gains nothing, and mapped weights would be copied
        cast(Any, network).to(memory_format=torch.channels_last)
    return network


class Uninitialised(TorchFunctionMode):
    """Turns torch.nn.init into nothing while a network is built that will be filled from files.

    On the meta device a random initialisation does no work but imports torch._dynamo: 1.2 s of every start.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _fill(
    network: Network,
    table: TensorTable,
    dtype: torch.dtype,
    device: Device,
    unused: tuple[str, ...] = (),
    quant: QuantPlan | None = None,
) -> Network:
    """Compare, then read every tensor and give it to `network`, which was built on the meta device."""
    if dtype not in DTYPES:
        raise ValueError(f"{dtype} is not one of {DTYPES}: float16 overflows in these networks")
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    compare(expected, {n: e.shape for n, e in table.entries.items() if n not in unused}, table.origin)
    packed = set[str]() if quant is None else pack_while_loading(network, table, quant, dtype, device)
    state = {name: table.tensor(name, dtype).to(device) for name in expected if name not in packed}
    network.load_state_dict(state, strict=not packed, assign=True)
    hollow = [n for n, tensor in chain(network.named_parameters(), network.named_buffers()) if tensor.is_meta]
    assert not hollow, f"tensors without memory: {hollow}"  # a table made in __init__ must not depend on the device
    return network.eval().requires_grad_(False)


# Packed linears -------------------------------------------------------------------------------------------------------


def block_linears(network: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """(name, linear) of everything in the blocks that may be packed and is not, in the network's order."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and BLOCK_LINEAR.fullmatch(f"{name}.weight"):
            yield name, module


def pack_weight(weight_OI: Tensor, quant: Quant) -> PackedLinear:
    """A weight packed as `quant` says, without a bias, on the weight's device.

    Raises NumericsError where it is not finite, UsageError for a shape that the packing does not allow, and for a
    `quant` that packs nothing.
    """
    scheme = schemes.by_quant(quant)
    if scheme is None:
        raise UsageError(f"--quant {quant} packs nothing")
    if not bool(torch.isfinite(weight_OI).all()):
        raise NumericsError("a weight that is not finite cannot be quantised", hint="check it: lens models verify")
    return scheme.load().pack(weight_OI)


def pack_while_loading(
    network: nn.Module, table: TensorTable, plan: QuantPlan, dtype: torch.dtype, device: torch.device | str
) -> set[str]:
    """Give a network on the meta device its packed linears; returns the tensors' names that need no loading any more.

    With `plan.keep`, tensors that their file (or a LoRA fused into them) has plain stay plain. Raises what reading
    raises, UsageError for a packing the device cannot hold.
    """
    done: set[str] = set()
    if not plan.packed:
        return done
    check_device(plan.quant, torch.device(device))
    scheme = schemes.by_quant(plan.quant)
    for name, linear in list(block_linears(network)):
        weight, bias = f"{name}.weight", f"{name}.bias"
        entry = table.entries[weight]
        taken = None if scheme is None else _taken(entry, scheme)
        if taken is not None:
            packed = taken.to(device)
        elif not plan.keep:
            # From float32, so that the codes are the same in every dtype; on the device, where it takes milliseconds.
            packed = pack_weight(entry.read(torch.float32).to(device), plan.quant)
        elif entry.packed is not None:
            packed = entry.packed().to(device)
        else:
            continue
        values = table.tensor(bias, dtype).to(device) if linear.bias is not None else None
        packed.bias = None if values is None else values.detach()
        network.set_submodule(name, packed.eval())
        done |= {weight} if values is None else {weight, bias}
    return done


def _taken(entry: TensorEntry, scheme: Scheme) -> PackedLinear | None:
    """A linear over the codes of a file, where `scheme` takes them as they are; None: it does not."""
    if entry.packed is None or scheme.takes is None:
        return None
    return scheme.load().take(entry.packed())


def check_device(quant: Quant, device: torch.device) -> None:
    """Raises UsageError for a packing that torch cannot hold there."""
    scheme = schemes.by_quant(quant)
    if scheme is not None and device.type in scheme.not_on:
        others = joined(map(str, schemes.quants_on(device.type)))
        raise UsageError(f"--quant {quant} is not available on {device.type}", hint=f"use {others} there")


def device_note(plan: QuantPlan, device: torch.device) -> str | None:
    """What a person should know about this packing on this device, in one line; None: nothing."""
    scheme = schemes.by_name(plan.scheme)
    if scheme is not None and scheme.rounds_activations and not has_fp8_units(device):
        return f"{device.type} has no fp8 units: fp8 is rounded the same way, computed in float32, and slower than none"
    if plan.packed and device.type == "cpu":
        return f"a CPU decodes {plan.scheme} weights at every step, which takes longer than --quant none"
    return None
