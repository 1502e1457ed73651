"""A transformer as a quantised safetensors file: ComfyUI's MXFP8 and scaled FP8, bitsandbytes' NF4 and int8.

Packed weights carry what stands beside them in files of those programs; everything else is bfloat16.
Legend: O outputs, I inputs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from backend.checkpoints.write_safetensors import Item, Spec
from backend.errors import CheckpointError, UsageError
from backend.kernels.pointwise_torch import FP8, FP8_MAX
from backend.model.tensors import Shapes
from backend.packing import block_scaled
from backend.packing.bitsandbytes import NF4_BLOCK, NF4_STATE, library, nf4_state, quantise_nf4
from backend.packing.linears import quantise_int8
from backend.params import DiTParams
from backend.types import QuantTarget

Read = Callable[[str], Tensor]  # a public tensor in float32
# Named in diffusers' config as what stays unpacked; parts of module names.
NOT_PACKED = ("img_in", "txt_in", "time_text_embed", "norm_out", "proj_out")
MODULATION = ("img_mod", "txt_mod")
_COMFY = {QuantTarget.fp8: "float8_e4m3fn", QuantTarget.mxfp8: "mxfp8"}


def items(shapes: Shapes, read: Read, target: QuantTarget, packs: Callable[[str], bool]) -> list[Item]:
    """One item for each public tensor; those for which `packs` is true as `target`, the rest in bfloat16.

    Nothing is read yet. Raises UsageError for a weight whose shape the packing does not allow.
    """
    make = _ITEMS[target]
    return [make(name, shape, read) if packs(name) else _plain(name, shape, read) for name, shape in shapes.items()]


def diffusers_config(params: DiTParams, target: QuantTarget, *, modulation: bool) -> dict[str, Any]:
    """transformer/config.json with the part that tells diffusers how NF4 or int8 weights are packed.

    `modulation`: it is packed as well.
    """
    config: dict[str, Any] = {
        "_class_name": "LensTransformer2DModel",
        "gate_mlp": True,
        "inner_dim": params.dim,
        "multi_layer_encoder_feature": True,
        "rms_norm": True,
    }
    for key, value in asdict(params).items():
        if value is not None:
            config[key] = list(value) if isinstance(value, tuple) else value
    if target in (QuantTarget.nf4, QuantTarget.int8):
        kept = [*NOT_PACKED, *(() if modulation else MODULATION)]
        four = target is QuantTarget.nf4
        config["quantization_config"] = {
            "quant_method": "bitsandbytes",
            "load_in_4bit": four,
            "load_in_8bit": not four,
            "llm_int8_skip_modules": kept,
            **(
                {
                    "bnb_4bit_quant_type": "nf4",
                    "bnb_4bit_use_double_quant": False,
                    "bnb_4bit_compute_dtype": "bfloat16",
                    "bnb_4bit_quant_storage": "uint8",
                }
                if four
                else {"llm_int8_threshold": 6.0}
            ),
        }
    return config


def _finite(read: Read, name: str) -> Tensor:
    tensor = read(name)
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"not written: {name!r} has values that are not finite")
    return tensor


def _plain(name: str, shape: tuple[int, ...], read: Read) -> Item:
    return Item((Spec(name, torch.bfloat16, shape),), lambda: [_finite(read, name).to(torch.bfloat16)])


def _marker(stem: str, target: QuantTarget) -> tuple[Spec, Tensor]:
    """Comfy's `.comfy_quant`: a JSON object as bytes."""
    raw = json.dumps({"format": _COMFY[target]}).encode()
    return Spec(f"{stem}.comfy_quant", torch.uint8, (len(raw),)), torch.tensor(list(raw), dtype=torch.uint8)


def _fp8(name: str, shape: tuple[int, ...], read: Read) -> Item:
    """One scale for the whole weight, the only kind that ComfyUI reads beside E4M3."""
    stem = name.removesuffix(".weight")
    marker, about = _marker(stem, QuantTarget.fp8)

    def make() -> list[Tensor]:
        weight = _finite(read, name)
        scale = (weight.abs().amax() / FP8_MAX).clamp(min=torch.finfo(torch.float32).tiny)
        return [(weight / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8), scale, about]

    return Item((Spec(name, FP8, shape), Spec(f"{stem}.weight_scale", torch.float32, ()), marker), make)


def _mxfp8(name: str, shape: tuple[int, ...], read: Read) -> Item:
    outputs, inputs = shape
    if inputs % block_scaled.MXFP8_BLOCK:
        raise UsageError(f"{name} has {inputs} inputs, no multiple of {block_scaled.MXFP8_BLOCK}: no MXFP8")
    stem = name.removesuffix(".weight")
    marker, about = _marker(stem, QuantTarget.mxfp8)
    rows, columns = -(-outputs // 128) * 128, -(-inputs // block_scaled.MXFP8_BLOCK // 4) * 4

    def make() -> list[Tensor]:
        codes, scales = block_scaled.quantise_mxfp8(_finite(read, name))
        return [codes, block_scaled.swizzle(scales), about]

    return Item((Spec(name, FP8, shape), Spec(f"{stem}.weight_scale", torch.uint8, (rows, columns)), marker), make)


def _int8(name: str, shape: tuple[int, ...], read: Read) -> Item:
    stem = name.removesuffix(".weight")
    specs = (
        Spec(name, torch.int8, shape),
        Spec(f"{stem}.SCB", torch.float32, shape[:1]),
        Spec(f"{stem}.weight_format", torch.uint8, ()),
    )
    row_major = torch.tensor(0, dtype=torch.uint8)
    return Item(specs, lambda: [*quantise_int8(_finite(read, name)), row_major])


def _nf4(name: str, shape: tuple[int, ...], read: Read) -> Item:
    outputs, inputs = shape
    values = outputs * inputs
    if values % 2:
        raise UsageError(f"{name} has an odd number of weights: no NF4")
    state = nf4_state((outputs, inputs))
    specs = (
        Spec(name, torch.uint8, (values // 2, 1)),
        Spec(f"{name}.absmax", torch.float32, (-(-values // NF4_BLOCK),)),
        Spec(f"{name}.quant_map", torch.float32, (16,)),
        Spec(f"{name}.{NF4_STATE}", torch.uint8, (len(state),)),
    )

    def make() -> list[Tensor]:
        codes, absmax = quantise_nf4(_finite(read, name))
        table = library().get_4bit_type("nf4", device="cpu")
        return [codes, absmax, table, torch.tensor(list(state), dtype=torch.uint8)]

    return Item(specs, make)


_ITEMS: dict[QuantTarget, Callable[[str, tuple[int, ...], Read], Item]] = {
    QuantTarget.fp8: _fp8,
    QuantTarget.mxfp8: _mxfp8,
    QuantTarget.int8: _int8,
    QuantTarget.nf4: _nf4,
}
