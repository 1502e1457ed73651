"""The pointwise operations of inference: Triton's kernels on a CUDA device, torch's elsewhere. Same results.

Triton's keep float32 between reading and writing, torch's nearly so, and neither is further from exact arithmetic than
the plain statements of `backend.model.transformer`, which training goes through. While gradients are recorded, or a
compiler looks on (which fuses these by itself), torch's are taken everywhere.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from backend import paths
from backend.errors import first_line
from backend.kernels import pointwise_torch as plain
from backend.kernels import switches
from backend.kernels.pointwise_torch import Stream

__all__ = [
    "Stream",
    "add_gated",
    "has_fp8_units",
    "joint_qkv",
    "norm_modulate",
    "quantise_fp8_rows",
    "silu_mul",
    "uses_triton",
]


def norm_modulate(x: Tensor, weight: Tensor, eps: float, shift: Tensor, scale: Tensor) -> Tensor:
    """RMSNorm of x (B, S, D), then x (1 + scale) + shift; shift and scale (B, 1, D)."""
    if not uses_triton(x):
        return plain.norm_modulate(x, weight, eps, shift, scale)
    from backend.kernels import pointwise_triton

    with torch.cuda.device_of(x):
        return pointwise_triton.norm_modulate(x, weight, eps, shift, scale)


def add_gated(x: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    """x + gate * update, (B, S, D); gate (B, 1, D)."""
    if not uses_triton(x):
        return plain.add_gated(x, gate, update)
    from backend.kernels import pointwise_triton

    with torch.cuda.device_of(x):
        return pointwise_triton.add_gated(x, gate, update)


def silu_mul(a: Tensor, b: Tensor) -> Tensor:
    """silu(a) * b, written over a."""
    if not uses_triton(a):
        return plain.silu_mul(a, b)
    from backend.kernels import pointwise_triton

    with torch.cuda.device_of(a):
        return pointwise_triton.silu_mul(a, b)


def joint_qkv(
    streams: Sequence[Stream], rope: Tensor, heads: int, eps: float, *, query_streams: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of the joint sequence, normalised and turned, (B, H, S, K) each.

    `rope`: (S, K/2, 2) float32. Only the first `query_streams` streams have queries. The memory behind the answer is
    laid out as the device's attention likes it.
    """
    if not uses_triton(rope):
        return plain.joint_qkv(streams, rope, heads, eps, query_streams=query_streams)
    from backend.kernels import pointwise_triton

    with torch.cuda.device_of(rope):
        return pointwise_triton.joint_qkv(streams, rope, heads, eps, query_streams=query_streams)


def quantise_fp8_rows(x_RI: Tensor) -> tuple[Tensor, Tensor]:
    """(R, I) -> F8-E4M3 (R, I) and float32 scales (R, 1): the largest magnitude of a row becomes 448.

    Fused because it runs before every product: torch's six passes move 33 bytes an element, at the published size more
    time than fp8 products save (calculated: 21 against 6 ms a step and branch on an H100); in one pass they are 3.
    """
    if not (uses_triton(x_RI) and has_fp8_units(x_RI.device)):
        return plain.quantise_fp8_rows(x_RI)
    from backend.kernels import pointwise_triton

    with torch.cuda.device_of(x_RI):
        return pointwise_triton.quantise_fp8_rows(x_RI)


def has_fp8_units(device: torch.device) -> bool:
    """Whether the device multiplies and rounds to fp8 itself: NVIDIA's Ada, Hopper and later."""
    nvidia = device.type == "cuda" and torch.version.hip is None  # AMD's capabilities are other numbers
    return nvidia and torch.cuda.get_device_capability(device) >= (8, 9)


def uses_triton(x: Tensor) -> bool:
    """Whether Triton's kernels serve this tensor."""
    return x.is_cuda and not torch.is_grad_enabled() and not torch.compiler.is_compiling() and _works(x.device)


@cache
def _works(device: torch.device) -> bool:
    """Whether Triton is wanted and runs on this device, tried once; where it does not run, that is said."""
    if switches.KERNELS.is_plain:
        return False
    why = _obstacle(device)
    if why is not None:
        logging.getLogger(__name__).warning(
            "%s: the pointwise operations run unfused, which is slower and just as exact", why
        )
    return why is None


def _obstacle(device: torch.device) -> str | None:
    """What keeps Triton from running; None: it runs.

    torch brings triton along (not on Windows), but not what triton makes its launchers with when a kernel first runs:
    a C compiler and Python's headers, which many containers are without.
    """
    if find_spec("triton") is None:
        return "triton is not installed"
    os.environ.setdefault("TRITON_CACHE_DIR", str(paths.triton_dir()))  # read when triton is imported
    try:
        from backend.kernels import pointwise_triton

        one = torch.ones(1, device=device)
        pointwise_triton.silu_mul(one, one)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001  of a compiler, an assembler, a driver: they share no class
        return f"triton does not work here ({first_line(error)})"
    return None
