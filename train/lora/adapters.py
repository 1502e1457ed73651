"""Low-rank adapters on a frozen transformer, whose linears may be packed (QLoRA, arXiv 2305.14314).

y = linear(x) + alpha / rank * up (down x): `up` starts at zero, so that training starts from the model as it is
(arXiv 2106.09685). Down and up are float32 whatever the base is; under autocast their products are bfloat16.

Legend: O outputs, I inputs, R rank.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.checkpoints.headers import read_header
from backend.checkpoints.resolve import ModelFiles
from backend.checkpoints.tensor_files import TensorFiles
from backend.errors import CheckpointError, UsageError
from backend.loading import load_transformer
from backend.lora.keys import LoraFile, UpdateKind, read_lora
from backend.lora.names import find_lora
from backend.lora.write import Factors
from backend.model.tensors import transformer_shapes
from backend.model.transformer import LensTransformer2DModel
from backend.packing.linears import PackedLinear
from backend.params import DiTParams
from train.config import Machine, Optim
from train.lora.config import GROUPS, AdapterFields, target_shapes
from train.lora.plan import base_itemsize, base_plan
from train.run import network
from train.run.distributed import Ranks
from train.run.learner import Learner
from train.run.network import choose_attention
from train.run.optim import muon_and_adamw


class FrozenProduct(torch.autograd.Function):
    """A packed linear whose weight is decoded anew in the backward pass: torch would keep every decoded weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: PackedLinear) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.linear, ctx.dtype = linear, x.dtype
        return linear(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (grad @ ctx.linear.decoded(grad.dtype)).to(ctx.dtype), None


class FrozenLinear(nn.Module):
    """A packed linear in a network that is trained around it."""

    def __init__(self, linear: PackedLinear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):  # as autocast does for a plain linear
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return FrozenProduct.apply(x, self.linear)  # pyright: ignore[reportReturnType]


class Adapter(nn.Module):
    """A frozen linear and its low-rank update."""

    def __init__(self, linear: nn.Module, down_RI: Tensor, up_OR: Tensor, alpha: float) -> None:
        super().__init__()
        self.linear = linear
        self.down_RI, self.up_OR = nn.Parameter(down_RI), nn.Parameter(up_OR)
        self.alpha, self.scale = alpha, alpha / down_RI.shape[0]
        self.active = True  # False: the network is as it was without it

    @property
    def weight(self) -> Tensor:
        """The frozen one: the network asks `img_in` for its dtype."""
        return self.linear.get_parameter("weight")

    def forward(self, x: Tensor) -> Tensor:
        if not self.active:
            return self.linear(x)
        return self.linear(x) + self.scale * F.linear(F.linear(x, self.down_RI), self.up_OR)


def with_adapters(config: AdapterFields, files: ModelFiles, device: torch.device) -> LensTransformer2DModel:
    """The model's transformer, frozen, with fresh adapters. Raises CheckpointError, UsageError."""
    quant = base_plan(config, files, device.type)
    dtype = torch.bfloat16 if base_itemsize(config, device.type) == 2 else torch.float32
    shapes = target_shapes(config, files.preset.params.dit)
    network = load_transformer(files, dtype, device, quant=quant)
    for name, module in list(network.named_modules()):
        if isinstance(module, PackedLinear):
            network.set_submodule(name, FrozenLinear(module))
    for name, (outputs, inputs) in shapes.items():
        # Kaiming-uniform with a = sqrt 5, PEFT's: within 1 / sqrt I. From the name, so that targets do not matter.
        digest = hashlib.blake2b(f"adapter {config.seed} {name}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
        down_RI = torch.empty(config.rank, inputs).uniform_(-1, 1, generator=generator) / math.sqrt(inputs)
        up_OR = torch.zeros(outputs, config.rank)
        adapter = Adapter(network.get_submodule(name), down_RI.to(device), up_OR.to(device), config.alpha)
        network.set_submodule(name, adapter)
    choose_attention(network, device)
    return network


def unfrozen(files: ModelFiles, device: torch.device) -> LensTransformer2DModel:
    """The model's transformer in float32, all of it trained. Raises CheckpointError."""
    network = load_transformer(files, torch.float32, device)
    for parameter in network.parameters():
        parameter.data = parameter.data.clone()  # what was read may be the file's own pages
    network.requires_grad_(True)
    choose_attention(network, device)
    return network


def adapters(network: nn.Module) -> Iterator[tuple[str, Adapter]]:
    """Module name -> adapter, in the network's order."""
    for name, module in network.named_modules():
        if isinstance(module, Adapter):
            yield name, module


def factors(network: nn.Module) -> dict[str, Factors]:
    """What the adapters have learned, as `backend.lora.write` takes it."""
    return {name: Factors(a.down_RI.detach(), a.up_OR.detach(), a.alpha) for name, a in adapters(network)}


# Going on from a LoRA -------------------------------------------------------------------------------------------------


def read_start(named: str, config: AdapterFields, params: DiTParams) -> LoraFile:
    """The LoRA that training is to begin with, of any key family; reads its header only.

    Raises UsageError where the adapters of `config` cannot hold it, CheckpointError for what is no LoRA of this model.
    """
    path = find_lora(named)
    found = read_lora(path, transformer_shapes(params))
    targets, seen = target_shapes(config, params), set[str]()
    for update in found.updates:
        module = update.target.removesuffix(".weight")
        if update.kind is not UpdateKind.low_rank or update.magnitude is not None or module in seen:
            kind = "DoRA" if update.magnitude is not None else "second" if module in seen else str(update.kind)
            raise UsageError(
                f"{path}: the {kind} update of {update.target} cannot be trained on",
                hint="only a plain low-rank update of each linear can",
            )
        if module not in targets:
            raise UsageError(
                f"{path}: changes {module}, which targets={','.join(config.targets)} leaves out",
                hint=f"--set targets={','.join(GROUPS)}, or the targets it was trained with",
            )
        seen.add(module)
    tensors = read_header(path).tensors
    rank = max(tensors[update.stored["down"]].shape[0] for update in found.updates)
    if rank > config.rank:
        raise UsageError(f"{path}: its rank is {rank}, rank={config.rank} cannot hold it", hint=f"--set rank={rank}")
    return found


@torch.no_grad()
def begin_with(network: nn.Module, found: LoraFile) -> None:
    """Give fresh adapters the updates of a file: at strength 1 the network then is what `lens gen --lora` draws with.

    A rank that is left over stays as it was: `down` at random, `up` zero. Raises CheckpointError.
    """
    files = TensorFiles([found.path])
    fresh = dict(adapters(network))
    for update in found.updates:
        adapter = fresh[update.target.removesuffix(".weight")]
        down_RI, up_OR = (files.floats(update.stored[role], torch.float32) for role in ("down", "up"))
        if not bool(torch.isfinite(down_RI).all() and torch.isfinite(up_OR).all()):
            raise CheckpointError(f"{found.path}: {update.stored['up']!r} or its pair is not finite")
        rank = len(down_RI)
        adapter.down_RI[:rank] = down_RI
        adapter.up_OR[:, :rank] = up_OR * (update.factor / adapter.scale)


# ------------------------------------------------------------------------------------------------------------- learning


class Learning(Protocol):
    """As much of a stage's config as its learner needs."""

    @property
    def optim(self) -> Optim: ...

    @property
    def machine(self) -> Machine: ...


def make_learner(config: Learning, model: LensTransformer2DModel, ranks: Ranks) -> Learner[LensTransformer2DModel]:
    """The network, whose frozen part has its weights, with its optimiser and average."""
    optim = config.optim
    optimizer = muon_and_adamw(model, betas=optim.betas, weight_decay=optim.weight_decay)
    network.finish(model.train(), config.machine)
    return Learner(model, optimizer, ranks, ema_decay=optim.ema_decay)
