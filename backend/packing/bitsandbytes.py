"""bitsandbytes, imported so that it neither talks nor asks the network; and how its quantised weights are stored.

Only its functions are used, never its modules. `Linear4bit` turns to bfloat16 arithmetic on processors that have
AVX512-BF16, whatever the dtype of the network; `Linear8bitLt` casts activations to float16, which ends at 65504,
while those of Lens reach 3e7.
"""

from __future__ import annotations

import functools
import json
import logging
import sys
from typing import Any

import torch
from torch import Tensor

from backend.errors import CheckpointError, LensError

NF4_BLOCK = 64  # values per scale
NF4_STATE = "quant_state.bitsandbytes__nf4"  # suffix of the tensor that describes the others, as JSON bytes


@functools.cache
def library() -> Any:
    """`bitsandbytes.functional`. Raises LensError where it cannot be loaded."""
    name = "kernels"  # Hugging Face's loader: with it, bitsandbytes would fetch compiled code while it is imported
    before = sys.modules.get(name)
    log = logging.getLogger("bitsandbytes.backends.cpu.ops")  # which is what it would then complain about
    level = log.level
    sys.modules[name] = None  # pyright: ignore[reportArgumentType]
    log.setLevel(logging.ERROR)
    try:
        from bitsandbytes import functional
    except (ImportError, OSError, RuntimeError) as error:
        raise LensError(
            f"bitsandbytes cannot be loaded: {error}", hint="install it again, or use --quant fp8 or --quant gguf"
        ) from error
    finally:
        log.setLevel(level)
        sys.modules.pop(name)
        if before is not None:
            sys.modules[name] = before
    return functional


def quantise_nf4(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """(O, I) -> codes U8 (O * I / 2, 1) and float32 scales (O * I / 64), by bitsandbytes, on the weight's device."""
    packed, state = library().quantize_4bit(
        weight_OI.contiguous(), blocksize=NF4_BLOCK, compress_statistics=False, quant_type="nf4"
    )
    return packed, state.absmax


def dequantise_nf4(packed: Tensor, absmax: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """(O, I) in `dtype`; bitsandbytes' own kernel of the device.

    As one row: blocks run on from row to row, but the CPU kernel of bitsandbytes 0.50 starts a new one with each, so
    that a width of 96 comes out 23 % wrong.
    """
    if not torch.compiler.is_compiling():  # which cannot follow an import; `Nf4Linear` has seen to it by then
        library()
    flat = (shape[0] * shape[1],)
    return torch.ops.bitsandbytes.dequantize_4bit(packed, absmax, NF4_BLOCK, "nf4", flat, dtype).view(shape)


def nf4_state(shape: tuple[int, int], dtype: str = "bfloat16") -> bytes:
    """What bitsandbytes packs beside a weight. `dtype`: of the weight that was quantised."""
    about = {"quant_type": "nf4", "blocksize": NF4_BLOCK, "dtype": dtype, "shape": list(shape)}
    return json.dumps(about).encode()


def read_nf4_state(raw: bytes, name: str) -> tuple[tuple[int, int], dict[str, Any]]:
    """(shape, everything stated). Raises CheckpointError for what is no NF4 in blocks of 64."""
    try:
        stated = json.loads(raw)
        outputs, inputs = (int(side) for side in stated["shape"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{name}: unreadable bitsandbytes state ({error})") from error
    if stated.get("quant_type") != "nf4" or stated.get("blocksize") != NF4_BLOCK:
        raise CheckpointError(
            f"{name}: {stated.get('quant_type')} in blocks of {stated.get('blocksize')}; lens reads nf4 in blocks of "
            f"{NF4_BLOCK}"
        )
    return (outputs, inputs), stated


def plain_scales(absmax: Tensor, nested_absmax: Tensor, nested_map: Tensor, stated: dict[str, Any]) -> Tensor:
    """Scales that are themselves quantised ("double quantisation") -> float32, as bitsandbytes decodes them."""
    functional = library()
    state = functional.QuantState(
        absmax=nested_absmax, code=nested_map, blocksize=int(stated["nested_blocksize"]), dtype=torch.float32
    )
    return functional.dequantize_blockwise(absmax, state) + float(stated["nested_offset"])
