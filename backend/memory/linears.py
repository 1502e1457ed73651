"""Linears that lie packed in memory: made while a network is read, of the codes of its file or of its weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from backend.checkpoints.formats import TensorEntry, TensorTable
from backend.checkpoints.packing_plan import BLOCK_LINEAR, QuantPlan
from backend.errors import NumericsError, UsageError, joined
from backend.kernels.pointwise import has_fp8_units
from backend.packing import schemes
from backend.packing.linears import PackedLinear
from backend.packing.schemes import Scheme
from backend.types import Quant


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
