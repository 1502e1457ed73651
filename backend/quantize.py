"""The transformer's block linears, packed: while they are loaded, or in a network that is already there.

`backend.quant_plan` decides, `backend.model.packed` computes; here the two meet a network. Each linear is read,
quantised and moved to its device before the next one is read, so the peak is the finished network and one linear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from backend.errors import NumericsError, UsageError
from backend.model import ggml_types
from backend.model.formats import Entry, TensorTable
from backend.model.kernels.pointwise import has_fp8_units
from backend.model.packed import (
    Fp8Linear,
    GgufLinear,
    Int8Linear,
    Nf4Linear,
    PackedLinear,
    ScaledFp8Linear,
)
from backend.model.pointwise import FP8
from backend.quant_plan import BLOCK_LINEAR, QuantPlan
from backend.types import Quant

Q8_0 = 8  # ggml's number of the type


def block_linears(network: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """(name, linear) of everything in the blocks that may be packed and is not, in the network's order."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and BLOCK_LINEAR.fullmatch(f"{name}.weight"):
            yield name, module


def quantised(weight_OI: Tensor, quant: Quant) -> PackedLinear:
    """A weight, packed, without a bias, on the weight's device. Raises NumericsError where it is not finite."""
    if not bool(torch.isfinite(weight_OI).all()):
        raise NumericsError("a weight that is not finite cannot be quantised", hint="check it: lens models verify")
    return _PACKERS[quant](weight_OI)


def quantise_network(network: nn.Module, quant: Quant) -> None:
    """Pack every block linear of a network with weights, in place: for measuring, and for weights that are no file's.

    none leaves it as it is.
    """
    if quant is Quant.none:
        return
    for name, linear in list(block_linears(network)):
        packed = quantised(linear.weight.detach(), quant)
        _replace(network, name, packed, linear.bias)


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
    for name, linear in list(block_linears(network)):
        weight, bias = f"{name}.weight", f"{name}.bias"
        entry = table.entries[weight]
        codes = _fp8_codes(entry) if plan.quant is Quant.fp8 else None
        if codes is not None:
            packed = codes.to(device)
        elif not plan.keep:
            # From float32, so that the codes are the same in every dtype; on the device, where it takes milliseconds.
            packed = quantised(entry.read(torch.float32).to(device), plan.quant)
        elif entry.packed is not None:
            packed = entry.packed().to(device)
        else:
            continue
        values = table.tensor(bias, dtype).to(device) if linear.bias is not None else None
        _replace(network, name, packed, values)
        done |= {weight} if values is None else {weight, bias}
    return done


def _fp8_codes(entry: Entry) -> Fp8Linear | None:
    """What `Fp8Linear` needs, taken from a file as it is; None: the file holds something else."""
    source = None if entry.packed is None else entry.packed()
    if not isinstance(source, ScaledFp8Linear) or source.packed.dtype is not FP8:
        return None
    return Fp8Linear(source.packed, source.scales.expand(source.out_features, 1)[:, 0].contiguous())


def check_device(quant: Quant, device: torch.device) -> None:
    """Raises UsageError for a packing that torch cannot hold there."""
    if quant is Quant.fp8 and device.type == "mps":
        raise UsageError("--quant fp8 is not available on mps", hint="use int8, nf4 or a GGUF there")


def device_note(plan: QuantPlan, device: torch.device) -> str | None:
    """What a person should know about this packing on this device, in one line; None: nothing."""
    if plan.quant is Quant.fp8 and not plan.keep and not has_fp8_units(device):
        return f"{device.type} has no fp8 units: fp8 is rounded the same way, computed in float32, and slower than none"
    if plan.packed and device.type == "cpu":
        return f"a CPU decodes {plan.scheme} weights at every step, which takes longer than --quant none"
    return None


def _replace(network: nn.Module, name: str, packed: PackedLinear, bias: Tensor | None) -> None:
    packed.bias = None if bias is None else bias.detach()
    network.set_submodule(name, packed.eval())


def _pack_q8_0(weight_OI: Tensor) -> PackedLinear:
    """ggml's Q8_0 in torch: the same bytes as the gguf package's, on any device."""
    if weight_OI.shape[1] % 32:
        raise UsageError(
            f"a linear of {weight_OI.shape[1]} inputs has no Q8_0 form (32 values a block)", hint="use --quant int8"
        )
    return GgufLinear(ggml_types.quantise_q8_0(weight_OI), Q8_0, weight_OI.shape[1])


_PACKERS: dict[Quant, Callable[[Tensor], PackedLinear]] = {
    Quant.fp8: Fp8Linear.of,
    Quant.int8: Int8Linear.of,
    Quant.nf4: Nf4Linear.of,
    Quant.gguf: _pack_q8_0,
}
