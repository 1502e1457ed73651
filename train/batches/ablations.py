"""The frozen networks of the paper's ablations: another autoencoder, another language model; and what a frozen network
is to the training: a function of pictures or of captions.

Legend: B pictures, N tokens, C packed channels; L text tokens, T layers that are read, F features.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from backend.denoising import latents
from backend.errors import CheckpointError, ModelMissingError, UsageError
from backend.params import DiTParams, TemplateParams

ImagesToLatents = Callable[[np.ndarray], Tensor]  # (B, H, W, 3) uint8 -> (B, N, C) float32
TextsToFeatures = Callable[[Sequence[str]], list[Tensor]]  # captions -> (L, T, F) each
About = Callable[[], dict[str, Any]]  # what tells a frozen network from every other


def network_sha256(network: Any) -> str:
    """Hash the weights of a network as they lie in memory, whatever files or hub they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def language_model(
    name: str, params: DiTParams, template: TemplateParams, device: torch.device
) -> tuple[TextsToFeatures, About]:
    """A causal language model read at `selected_layer_index` (0-based blocks); the caption alone, without a template.

    The paper does not say how Lens-Toy's Qwen3 is prompted.
    """
    from transformers import AutoModel, AutoTokenizer  # 2 s, only for such an encoder

    try:
        tokenizer = cast(Any, AutoTokenizer.from_pretrained(name))
        model = cast(Any, AutoModel.from_pretrained(name, dtype=torch.bfloat16 if device.type != "cpu" else None))
    except (OSError, ValueError) as error:
        raise ModelMissingError(
            f"the text encoder {name} is not on this disk: {str(error).splitlines()[0]}",
            hint="fetch it (huggingface-cli download), or give a folder: --set frozen.text_encoder=FOLDER",
        ) from error
    model = model.to(device).eval().requires_grad_(False)
    take, width, depth = params.selected_layer_index, model.config.hidden_size, model.config.num_hidden_layers
    if width != params.enc_hidden_dim or max(take) >= depth:
        raise UsageError(
            f"{name} is {width} wide and has {depth} blocks; the transformer reads width "
            f"{params.enc_hidden_dim} after blocks {', '.join(map(str, take))}",
            hint=f"--set params.enc_hidden_dim={width} and params.selected_layer_index",
        )
    last = template.max_tokens
    states: dict[int, Tensor] = {}
    alone = threading.Lock()  # validation encodes while a thread encodes ahead; `states` and tokenizer are one

    def keep(index: int) -> Callable[..., None]:
        def hook(_block: object, _arguments: object, output: Any) -> None:  # before any final norm, as Lens reads
            states[index] = output[0] if isinstance(output, tuple) else output

        return hook

    for index in take:
        model.layers[index].register_forward_hook(keep(index))

    @torch.no_grad()
    def texts(captions: Sequence[str]) -> list[Tensor]:
        with alone:
            ids = [tokenizer(caption, truncation=True, max_length=last)["input_ids"] for caption in captions]
        longest = max(1, *(len(row) for row in ids))
        batch = torch.zeros(len(ids), longest, dtype=torch.long)
        for i, row in enumerate(ids):
            batch[i, : len(row)] = torch.tensor(row)
        # Right padding is harmless: attention is causal. Without a cache: nothing is written on from here.
        with alone:
            model(input_ids=batch.to(device), attention_mask=torch.ones_like(batch).to(device), use_cache=False)
            stacked = torch.stack([states.pop(index) for index in take], 2)
        return [stacked[i, : len(row)] for i, row in enumerate(ids)]

    def about() -> dict[str, Any]:
        backend = getattr(tokenizer, "backend_tokenizer", None)  # all but the old ones written in Python
        words = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
        for used in ("truncation", "padding"):  # as the last call left them
            words.pop(used, None)
        return {"weights": network_sha256(model), "tokenizer": words}

    return texts, about


def diffusers_vae(name: str, params: DiTParams, device: torch.device) -> tuple[ImagesToLatents, About]:
    """`AutoencoderKL` as FLUX.1 and SD3 have it: one scale and shift for all channels, then Lens's 2x2 patches."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    if not (Path(name) / "config.json").is_file():
        raise ModelMissingError(
            f"no autoencoder in {name}", hint="--set frozen.vae=FOLDER, with config.json and weights of AutoencoderKL"
        )
    vae = cast(Any, AutoencoderKL.from_pretrained(name)).to(device).eval().requires_grad_(False)
    packed = 4 * vae.config.latent_channels
    if packed != params.in_channels:
        raise CheckpointError(
            f"{name}: {vae.config.latent_channels} latent channels make {packed} a token, the transformer has "
            f"{params.in_channels}",
            hint=f"--set params.in_channels={packed} --set params.out_channels={packed // 4}",
        )
    shift = vae.config.shift_factor or 0.0

    @torch.no_grad()
    def images(pictures: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.autocast(device.type, torch.bfloat16):
            mean = vae.encode(pixels).latent_dist.mean
        return latents.pack(latents.patchify((mean.float() - shift) * vae.config.scaling_factor))

    return images, lambda: {"vae": network_sha256(vae), "config": json.dumps(dict(vae.config), default=str)}
