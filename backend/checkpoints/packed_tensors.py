"""The packed weights of transformer files: which tensors make one linear, and the checks that they fit together.

GGUF's ggml types, ComfyUI's MXFP8 and scaled FP8, bitsandbytes' NF4 and int8. Shapes are those of the decoded weight,
(outputs, inputs). Nothing is read before a linear is made.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch

from backend.checkpoints.headers import FileFormat
from backend.checkpoints.tensor_files import TensorFiles
from backend.errors import CheckpointError
from backend.packing import block_scaled, ggml
from backend.packing.bitsandbytes import NF4_BLOCK, NF4_STATE, plain_scales, read_nf4_state
from backend.packing.linears import GgufLinear, Int8Linear, Mxfp8Linear, Nf4Linear, PackedLinear, ScaledFp8Linear

Make = Callable[[], PackedLinear]


@dataclass(frozen=True)
class Packing:
    """A packed weight: its decoded shape, and how to make a linear over its bytes, which stay where they are."""

    shape: tuple[int, int]
    make: Make


# What stands beside a packed weight: Comfy's scales and marker, bitsandbytes' scales and description.
_BESIDE = re.compile(
    r"\.(?:weight_scale|scale_weight|input_scale|scale_input|comfy_quant|SCB|weight_format|"
    r"weight\.(?:absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__nf4))$"
)


def owner(files: TensorFiles, stored: str) -> str | None:
    """The weight that a tensor only describes; None: it describes none, and stands for itself."""
    match = _BESIDE.search(stored)
    weight = None if match is None else stored[: match.start()] + ".weight"
    return weight if weight is not None and weight in files else None


def linear(files: TensorFiles, stored: str) -> Packing | None:
    """The packing of a tensor; None: it is plain, or of a ggml type that is only ever decoded whole.

    Raises CheckpointError for a packing whose parts do not fit, or that lens does not know.
    """
    kind, stem = files.kind(stored), stored.removesuffix(".weight")
    if files.format is FileFormat.gguf:
        return _gguf(files, stored)
    if kind.startswith("F8"):
        return _fp8(files, stored, stem)
    if kind == "I8" and f"{stem}.SCB" in files:
        return _int8(files, stored, f"{stem}.SCB")
    if kind == "U8" and f"{stored}.{NF4_STATE}" in files:
        return _nf4(files, stored)
    return None


def _gguf(files: TensorFiles, stored: str) -> Packing | None:
    kind, shape = int(files.header(stored).dtype), files.shape(stored)
    if not ggml.can_dequantise(kind) or len(shape) != 2:
        return None
    return Packing((shape[0], shape[1]), lambda: GgufLinear(files.packed_rows(stored), kind, shape[1]))


def _fp8(files: TensorFiles, stored: str, stem: str) -> Packing:
    """F8-E4M3 with block scales (MXFP8), or one scale for the weight or for each output, told from the scale itself."""
    scale = next((stem + suffix for suffix in (".weight_scale", ".scale_weight") if stem + suffix in files), None)
    if scale is None:
        raise CheckpointError(f"{files.origin}: tensor {stored!r} is stored as {files.kind(stored)} without a scale")
    check_marker(files, stem, ("mxfp8", "float8_e4m3fn"))
    shape = files.shape(stored)
    if files.kind(scale) == "F32" and len(shape) == 2 and math.prod(files.shape(scale)) in (1, shape[0]):
        return Packing((shape[0], shape[1]), lambda: ScaledFp8Linear(files.raw(stored), files.raw(scale)))
    if (
        files.kind(stored) != "F8_E4M3"
        or files.kind(scale) not in ("U8", "F8_E8M0")
        or len(shape) != 2
        or shape[1] % block_scaled.MXFP8_BLOCK
        or math.prod(files.shape(scale)) != block_scaled.padded(shape[0], shape[1] // block_scaled.MXFP8_BLOCK)
    ):
        raise CheckpointError(
            f"{files.origin}: {stored!r} {list(shape)} ({files.kind(stored)}) with scales "
            f"{list(files.shape(scale))} ({files.kind(scale)}) is no MXFP8 linear"
        )
    return Packing(
        (shape[0], shape[1]), lambda: Mxfp8Linear(files.raw(stored), files.raw(scale).reshape(-1).view(torch.uint8))
    )


def _int8(files: TensorFiles, stored: str, scale: str) -> Packing:
    """bitsandbytes' LLM.int8 weights: row-major codes, the largest magnitude of each row in SCB."""
    shape = files.shape(stored)
    if len(shape) != 2 or files.kind(scale) != "F32" or math.prod(files.shape(scale)) != shape[0]:
        raise CheckpointError(
            f"{files.origin}: {stored!r} {list(shape)} with scales {list(files.shape(scale))} "
            f"({files.kind(scale)}) is no int8 linear"
        )
    return Packing((shape[0], shape[1]), lambda: Int8Linear(files.raw(stored), files.raw(scale).reshape(-1)))


def _nf4(files: TensorFiles, stored: str) -> Packing:
    """bitsandbytes' NF4; scales that are quantised themselves are decoded when the linear is made."""
    raw = bytes(files.raw(f"{stored}.{NF4_STATE}").numpy().tobytes())
    shape, stated = read_nf4_state(raw, f"{files.origin}: {stored!r}")
    nested = "nested_blocksize" in stated
    beside = ("absmax", "nested_absmax", "nested_quant_map") if nested else ("absmax",)
    for name in (f"{stored}.{part}" for part in beside):
        if name not in files:
            raise CheckpointError(f"{files.origin}: tensor {name!r} is missing")
    values, scales = math.prod(shape), files.shape(f"{stored}.absmax")
    if 2 * math.prod(files.shape(stored)) != values or math.prod(scales) != -(-values // NF4_BLOCK):
        raise CheckpointError(f"{files.origin}: {stored!r} and its scales do not fit a weight of {list(shape)}")

    def make() -> PackedLinear:
        absmax = files.raw(f"{stored}.absmax")
        if nested:
            inner, table = files.raw(f"{stored}.nested_absmax"), files.raw(f"{stored}.nested_quant_map")
            absmax = plain_scales(absmax, inner, table, stated)
        return Nf4Linear(files.raw(stored).reshape(-1, 1), absmax.float().reshape(-1), shape)

    return Packing(shape, make)


def check_marker(files: TensorFiles, stem: str, accepted: tuple[str, ...]) -> None:
    """Comfy's `.comfy_quant` names the packing as JSON bytes; another one than ours must not be decoded as ours."""
    marker = stem + ".comfy_quant"
    if marker not in files:
        return
    try:
        stated = json.loads(bytes(files.raw(marker).numpy().tobytes()))
    except ValueError as error:
        raise CheckpointError(f"{files.origin}: tensor {marker!r} is no JSON") from error
    packing = stated.get("format") if isinstance(stated, dict) else None
    if packing not in accepted:
        raise CheckpointError(f"{files.origin}: {stem!r} is packed as {packing!r}, expected {' or '.join(accepted)}")
