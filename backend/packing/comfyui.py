"""What ComfyUI keeps beside a packed weight: a scale under one of two names, and a marker that names the packing."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from backend.errors import CheckpointError
from backend.packing.storage import StoredTensors, TensorSpec

MARKERS = {"fp8": "float8_e4m3fn", "mxfp8": "mxfp8"}  # our packings that a marker may name, as ComfyUI calls them


def fp8_scale(files: StoredTensors, stored: str) -> str | None:
    """The scale of a weight in 8-bit floats; None: the tensor is no such weight.

    Raises CheckpointError for a weight without a scale, or one whose marker names a packing that lens does not know.
    """
    kind, stem = files.kind(stored), stored.removesuffix(".weight")
    if not kind.startswith("F8"):
        return None
    scale = next((stem + end for end in (".weight_scale", ".scale_weight") if stem + end in files), None)
    if scale is None:
        raise CheckpointError(f"{files.origin}: tensor {stored!r} is stored as {kind} without a scale")
    check_marker(files, stem, (MARKERS["mxfp8"], MARKERS["fp8"]))
    return scale


def check_marker(files: StoredTensors, stem: str, accepted: tuple[str, ...]) -> None:
    """Raises CheckpointError where `.comfy_quant` names another packing, which must not be decoded as ours."""
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


def marker(stem: str, packing: str) -> tuple[TensorSpec, Tensor]:
    """`.comfy_quant` to be written: a JSON object as bytes."""
    raw = json.dumps({"format": MARKERS[packing]}).encode()
    return TensorSpec(f"{stem}.comfy_quant", torch.uint8, (len(raw),)), torch.tensor(list(raw), dtype=torch.uint8)
