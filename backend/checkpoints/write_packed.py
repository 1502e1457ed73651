"""A transformer as a quantised safetensors file, as ComfyUI or as bitsandbytes and diffusers read it.

Packed weights carry what stands beside them in files of those programs; everything else is bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from backend.model.tensors import Shapes
from backend.packing.schemes import Container, Scheme
from backend.packing.storage import Read, TensorGroup, TensorSpec, finite
from backend.params import DiTParams

# Named in diffusers' config as what stays unpacked; parts of module names.
NOT_PACKED = ("img_in", "txt_in", "time_text_embed", "norm_out", "proj_out")
MODULATION = ("img_mod", "txt_mod")


def items(shapes: Shapes, read: Read, scheme: Scheme, packs: Callable[[str], bool]) -> list[TensorGroup]:
    """One item for each public tensor; those for which `packs` is true packed by `scheme`, the rest in bfloat16.

    Nothing is read yet. Raises UsageError for a weight whose shape the packing does not allow.
    """
    code = scheme.load()
    return [
        code.item(name, (shape[0], shape[1]), read) if packs(name) else _plain(name, shape, read)
        for name, shape in shapes.items()
    ]


def diffusers_config(params: DiTParams, scheme: Scheme | None = None, *, modulation: bool = False) -> dict[str, Any]:
    """transformer/config.json, with the part that tells diffusers how the weights are packed where it unpacks them.

    `scheme`: None: the weights are plain. `modulation`: it is packed as well.
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
    if scheme is not None and scheme.container is Container.diffusers:
        config["quantization_config"] = {
            "quant_method": "bitsandbytes",
            "llm_int8_skip_modules": [*NOT_PACKED, *(() if modulation else MODULATION)],
            **scheme.load().DIFFUSERS,
        }
    return config


def _plain(name: str, shape: tuple[int, ...], read: Read) -> TensorGroup:
    return TensorGroup((TensorSpec(name, torch.bfloat16, shape),), lambda: [finite(read, name).to(torch.bfloat16)])
