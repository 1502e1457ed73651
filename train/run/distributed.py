"""One process or many: who this one is, how parameters are spread, and the few sums that all must agree on.

FSDP2: every block's parameters lie in slices on the ranks that share a copy (float32), are gathered in the compute
precision just before the block runs, and their gradients are summed in float32. HSDP: several such copies, so that
gathering stays within a node. Or nothing is sharded, and every rank has the whole of what is trained, as adapters are:
then their gradients are averaged here. The same calls run on gloo (CPU) and NCCL (CUDA).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from backend.errors import CancelledError, LensError, UsageError
from backend.memory.device import choose_device
from backend.model.transformer import LensTransformer2DModel


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run."""

    device: torch.device
    rank: int = 0
    world: int = 1
    mesh: DeviceMesh | None = None  # over which weights are sharded; None: nothing is

    @property
    def first(self) -> bool:
        """The one that writes files and talks."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there are no others to talk to."""
        return self.world == 1 and self.mesh is None

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all ranks, in float64."""
        if self.alone:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def average(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace the gradients of what is not sharded by their mean over the ranks, in one all-reduce.

        A gradient that some ranks lack counts as 0 there; one that none has stays none.
        """
        own = [p for p in parameters if p.requires_grad and not isinstance(p, DTensor)]
        if self.alone or not own:
            return
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in own]
        there = torch.tensor([float(p.grad is not None) for p in own], device=self.device)
        flat = torch.cat([*(grad.reshape(-1).float() for grad in grads), there])
        dist.all_reduce(flat)
        *summed, there = flat.split([*(p.numel() for p in own), len(own)])
        for p, total, count in zip(own, summed, there.tolist(), strict=True):
            p.grad = (total / self.world).view_as(p).to(p.dtype) if count else None

    def gathered(self, value: Any) -> list[Any]:
        """`value` of every rank, on every rank."""
        if self.alone:
            return [value]
        out: list[Any] = [None] * self.world
        dist.all_gather_object(out, value)
        return out

    def barrier(self) -> None:
        """Wait for the others."""
        if not self.alone:
            dist.barrier()

    @contextlib.contextmanager
    def failing_together(self) -> Generator[None]:
        """What one rank meets inside, every rank raises at its end."""
        met: LensError | None = None
        try:
            yield
        except LensError as error:
            met = error
        self.together(met)

    def together(self, error: LensError | None) -> None:
        """Raise on every rank what any of them met: those that went on alone would wait for it for ever."""
        found = next((one for one in self.gathered(error) if one is not None), None)
        if found is not None:
            raise found


@contextlib.contextmanager
def joined(name: str, replicate: int | None) -> Generator[Ranks]:
    """Join the processes that torchrun started; one process on its own without it. Raises UsageError.

    `name`: the device, as `Machine.device` has it; a GPU is this process's current one from then on. `replicate`:
    copies of the sharded weights; None: nothing is sharded.
    """
    if "WORLD_SIZE" not in os.environ and not dist.is_initialized():
        yield Ranks(choose_device(name))
        return
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    if device.type == "cuda":
        device = _own_gpu(device)
        torch.cuda.set_device(device)
    mine = not dist.is_initialized()
    if mine:  # gloo beside NCCL: what asynchronous checkpoints and all_gather_object of CPU data talk over
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    mesh = None if replicate is None else _mesh(replicate, device)
    try:
        yield Ranks(device, dist.get_rank(), dist.get_world_size(), mesh)
    except BaseException:
        if mine:  # the others may wait in a collective for ever, and destroying would wait for them
            dist.distributed_c10d._abort_process_group()
        raise
    if mine:
        dist.destroy_process_group()


def _own_gpu(device: torch.device) -> torch.device:
    """This process's GPU of those of its machine. Raises UsageError where several processes would share one."""
    local, here = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.index is not None and here > 1:
        raise UsageError(f"device={device}: all {here} processes here would take it", hint="--set machine.device=cuda")
    if here > torch.cuda.device_count():
        raise UsageError(
            f"{here} processes on a machine with {torch.cuda.device_count()} GPUs",
            hint=f"torchrun --nproc-per-node {torch.cuda.device_count()}",
        )
    return device if device.index is not None else torch.device("cuda", local)


def _mesh(replicate: int, device: torch.device) -> DeviceMesh:
    world = dist.get_world_size()
    if replicate < 1 or world % replicate:
        raise UsageError(
            f"replicate={replicate} does not divide {world} processes",
            hint="--set machine.replicate=1, or the number of nodes",
        )
    if replicate == 1:
        return init_device_mesh(device.type, (world,), mesh_dim_names=("shard",))
    return init_device_mesh(device.type, (replicate, world // replicate), mesh_dim_names=("replicate", "shard"))


def shard(model: LensTransformer2DModel, ranks: Ranks, compute: str) -> None:
    """Spread every block's parameters, then the rest; does nothing where nothing is sharded."""
    if ranks.mesh is None:
        return
    # Every output of the network and its blocks is used out of place.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor")
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if compute == "bfloat16" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # t would lose its digits; the network casts what it may
    )
    for block in model.transformer_blocks:
        fully_shard(block, mesh=ranks.mesh, mp_policy=policy)
    fully_shard(model, mesh=ranks.mesh, mp_policy=policy, reshard_after_forward=True)
    assert isinstance(model, FSDPModule)


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded one (all ranks must call); a plain one as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(full: Tensor, target: Tensor) -> Tensor:
    """A full tensor that every rank has, laid out as `target` is; no communication."""
    if not isinstance(target, DTensor):
        return full.to(target.device, target.dtype)
    local = full.to(target.device_mesh.device_type, target.dtype)
    return distribute_tensor(local, target.device_mesh, target.placements, src_data_rank=None)


def stage_options(
    stage: str,
    does: str,
    recipes: Iterable[str],
    *,
    default: str | None = None,
    required: bool = False,
    data: bool = False,
) -> argparse.ArgumentParser:
    """The options that every stage has under torchrun. `data`: --data and --random too, where it reads packed pictures.

    `default`, `required`: of --recipe.
    """
    parser = argparse.ArgumentParser(prog=stage, description=f"{does} under torchrun.")
    parser.add_argument("--recipe", required=required, default=default, choices=sorted(recipes))
    parser.add_argument("--run-dir", type=Path, default=None, help="a folder that all machines see")
    if data:
        parser.add_argument("--data", type=Path, default=None, help="work folder of packed pictures")
        parser.add_argument("--random", action="store_true", help="noise instead of data, to time a step")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    return parser


def launch(run: Callable[[], object]) -> None:
    """Call `run`; exit with its error's code, having said what only this rank knows, or on the first what all do."""
    try:
        run()
    except LensError as error:
        rank = os.environ.get("RANK", "0")
        if rank == "0":
            print(f"error: {error}", file=sys.stderr)
            if error.hint:
                print(f"hint: {error.hint}", file=sys.stderr)
        elif not isinstance(error, (UsageError, CancelledError)):  # those are the same on every rank
            print(f"rank {rank}: error: {error}", file=sys.stderr)  # what this one met alone, nobody else would tell
        sys.exit(error.exit_code)
