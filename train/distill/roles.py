"""Student, fake and teacher: three networks, or three views of one backbone.

Full: each has weights of its own, sharded where there are ranks. Adapters: one frozen backbone, whose linears have the
low-rank factors of whichever role is asked. Nothing is copied; the view has to stand during the backward pass too, for
blocks that run again read the factors of that moment.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from backend.checkpoints.resolve import ModelFiles
from backend.errors import UsageError
from backend.loading import load_transformer
from backend.lora.names import parse_lora
from backend.lora.write import Factors
from backend.types import LoraMode
from train.distill.config import DistillConfig
from train.lora.adapters import adapters, begin_with, read_start, with_adapters
from train.run import network
from train.run.distributed import Ranks

Role = Literal["student", "fake", "teacher"]


class Roles(Protocol):
    """Where a network is asked for in a role."""

    @property
    def student(self) -> nn.Module:
        """What is trained of it, under the names of a checkpoint."""
        ...

    @property
    def fake(self) -> nn.Module: ...

    def as_(self, role: Role) -> contextlib.AbstractContextManager[nn.Module]:
        """The network in a role, meanwhile."""
        ...


class FullRoles:
    """Three networks."""

    def __init__(self, student: nn.Module, fake: nn.Module, teacher: nn.Module) -> None:
        self.student, self.fake, self.teacher = student, fake, teacher

    @contextlib.contextmanager
    def as_(self, role: Role) -> Generator[nn.Module]:
        """The one of that name."""
        yield {"student": self.student, "fake": self.fake, "teacher": self.teacher}[role]


class AdapterSet(nn.Module):
    """One role's low-rank factors, as what a learner trains: `<linear>/down_RI` and `<linear>/up_OR`."""

    def __init__(self, network: nn.Module) -> None:
        """Begins with the factors that the network has now."""
        super().__init__()
        self.alphas: dict[str, float] = {}
        for name, adapter in adapters(network):
            self.alphas[name] = adapter.alpha
            for part in ("down_RI", "up_OR"):
                factor = nn.Parameter(adapter.get_parameter(part).detach().clone())
                self.register_parameter(f"{name}/{part}".replace(".", "/"), factor)

    def pair(self, name: str) -> tuple[nn.Parameter, nn.Parameter]:
        """Down and up of a linear."""
        front = name.replace(".", "/")
        return self.get_parameter(f"{front}/down_RI"), self.get_parameter(f"{front}/up_OR")

    def factors(self) -> dict[str, Factors]:
        """What the set says, as `backend.lora.write` takes it."""
        return self.factors_of({name: parameter.detach() for name, parameter in self.named_parameters()})

    def factors_of(self, tensors: Mapping[str, Tensor]) -> dict[str, Factors]:
        """The same of the tensors of a checkpoint."""
        fronts = {name: name.replace(".", "/") for name in self.alphas}
        return {
            name: Factors(tensors[f"{front}/down_RI"], tensors[f"{front}/up_OR"], self.alphas[name])
            for name, front in fronts.items()
        }


class AdapterRoles:
    """Three views of one backbone."""

    def __init__(self, backbone: nn.Module, *, begun: bool) -> None:
        """`begun`: the adapters hold what the model learned already, which is the teacher's too; else it has none."""
        self.backbone = backbone
        self._adapters = dict(adapters(backbone))
        self.student, self.fake = AdapterSet(backbone), AdapterSet(backbone)
        self.teacher = AdapterSet(backbone).requires_grad_(False) if begun else None

    @contextlib.contextmanager
    def as_(self, role: Role) -> Generator[nn.Module]:
        """The backbone with that role's factors."""
        chosen = {"student": self.student, "fake": self.fake, "teacher": self.teacher}[role]
        for name, adapter in self._adapters.items():
            adapter.active = chosen is not None
            if chosen is not None:
                adapter.down_RI, adapter.up_OR = chosen.pair(name)
        yield self.backbone


def make_roles(config: DistillConfig, files: ModelFiles, teacher: ModelFiles, ranks: Ranks) -> Roles:
    """All three as they begin: equal. Raises CheckpointError, UsageError."""
    params = files.preset.params.dit
    if config.form == "adapters":
        backbone = with_adapters(config, files, ranks.device)
        if config.start_from is not None:
            begin_with(backbone, read_start(config.start_from, config, params))
        roles = AdapterRoles(backbone.train(), begun=config.start_from is not None)
        for name, adapter in adapters(backbone):  # the frozen factors of the start belong to nobody now
            adapter.down_RI, adapter.up_OR = roles.student.pair(name)
        network.finish(backbone, config.machine)
        return roles
    begin = _weights(config, files)
    student, fake = (network.placed(params, ranks, config.machine).train() for _ in range(2))
    # Frozen weights need no more digits than the products have.
    dtype = torch.bfloat16 if config.machine.compute == "bfloat16" and ranks.device.type != "cpu" else torch.float32
    frozen = network.placed(params, ranks, config.machine, dtype=dtype).train().requires_grad_(False)
    for one in (student, fake):
        network.adopt(one, begin)
    network.adopt(frozen, begin if teacher is files else _weights(config, teacher))
    for one in (student, fake, frozen):
        network.finish(one, config.machine)
    return FullRoles(student, fake, frozen)


def check_start(config: DistillConfig, files: ModelFiles) -> None:
    """Whether the LoRA to start from can be read and fits. Raises what reading it does: pictures take hours to make."""
    if config.start_from is None:
        return
    if config.form == "adapters":
        read_start(config.start_from, config, files.preset.params.dit)
    else:
        parse_lora(config.start_from, LoraMode.fused)


def _weights(config: DistillConfig, files: ModelFiles) -> Mapping[str, Tensor]:
    """The whole transformer in float32 on the processor, with what it learned as a LoRA added to it."""
    uses = [] if config.start_from is None else [parse_lora(config.start_from, LoraMode.fused)]
    return load_transformer(files, torch.float32, "cpu", uses).state_dict()


def same_shape(student: ModelFiles, teacher: ModelFiles) -> None:
    """Raises UsageError where a teacher cannot teach that student."""
    ours, theirs = vars(student.preset.params.dit), vars(teacher.preset.params.dit)
    other = [f"{name} {theirs[name]} instead of {value}" for name, value in ours.items() if theirs[name] != value]
    if other:
        raise UsageError(
            f"the teacher {teacher.name} has another shape than {student.name}: {', '.join(other)}",
            hint="the three networks start from the same weights; a smaller student is trained by lens train pretrain",
        )
    if (
        student.preset.params.vae != teacher.preset.params.vae
        or student.preset.params.text != teacher.preset.params.text
    ):
        raise UsageError(
            f"the teacher {teacher.name} reads other latents or text features than {student.name}",
            hint="a teacher with the same autoencoder and text encoder",
        )


def trained(model: nn.Module) -> list[Tensor]:
    """What is trained of a network, as this rank's shards: two networks that are laid out alike give partners."""
    shards: list[Tensor] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            data = parameter.detach()
            shards.append(data.to_local() if isinstance(data, DTensor) else data)
    return shards


def numbers(models: Sequence[nn.Module]) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for model in models for p in model.parameters() if p.requires_grad)
