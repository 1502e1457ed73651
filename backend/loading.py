"""Files -> networks, strictly: a missing, extra or misshapen tensor is an error that names it.

A network is built without memory (meta device), compared tensor by tensor with what the files hold, and filled in its
own order, one tensor at a time: the peak is the finished network plus the one tensor being decoded. Plain tensors
that need no conversion stay views of the memory-mapped file, so loading them costs no copy at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from backend.checkpoints import formats
from backend.checkpoints.compare import compare
from backend.checkpoints.formats import TensorTable
from backend.checkpoints.packing_plan import QuantPlan
from backend.checkpoints.resolve import ModelFiles
from backend.checkpoints.tokenizer_files import load_tokenizer
from backend.errors import CheckpointError
from backend.lora import apply
from backend.lora.own import own_loras
from backend.memory.linears import pack_while_loading
from backend.model.tensors import transformer_shapes
from backend.params import DiTParams, VAEParams
from backend.types import LoraUse

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
    """The tensors of the transformer with its own adapters, none of them read yet. Raises CheckpointError."""
    table = formats.open_transformer(files.transformer)
    if table.params is not None and table.params != files.preset.params.dit:
        raise CheckpointError(f"{table.origin}: its header states other parameters than {files.preset.name} has")
    return apply.fuse(table, own_loras(files)) if files.adapters else table


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
