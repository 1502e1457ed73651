"""The frozen networks of pre-training: pictures to latents, captions to features.

Lens's own pair is the FLUX.2 autoencoder and gpt-oss through the harmony template. Both are fields of the config, for
the paper's ablations: another autoencoder in diffusers' layout, another causal language model of transformers.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from backend import latents
from backend.cache import tensors
from backend.checkpoints.identity import files_sha256
from backend.checkpoints.resolve import ModelFiles, resolve_model
from backend.errors import CheckpointError, ModelMissingError, UsageError
from backend.loading import load_text_encoder, load_tokenizer, load_vae
from backend.model.autoencoder import AutoencoderKLFlux2
from backend.model.text_encoder import LensGptOssEncoder
from backend.params import DiTParams
from backend.text.harmony import encode_prompt
from train.batches.scenes import Frozen, encode_images, encode_texts
from train.config import PretrainConfig

ImagesToLatents = Callable[[np.ndarray], Tensor]  # (B, H, W, 3) uint8 -> (B, N, C) float32
TextsToFeatures = Callable[[Sequence[str]], list[Tensor]]  # captions -> (L, T, F) each
About = Callable[[], dict[str, Any]]  # what tells a frozen network from every other

VERSION = 1  # raised when the same networks give other numbers


@dataclass(frozen=True)
class Encoders:
    """Two functions of what a picture and its caption are."""

    images: ImagesToLatents
    texts: TextsToFeatures
    frozen: Frozen | None = None  # the networks themselves, where both are Lens's own; None: no previews
    # SHA-256 of all that decides a latent and of all that decides features, but picture and caption; takes seconds, so
    # only for who keeps them. None: of networks in memory.
    identify: Callable[[], tuple[str, str]] | None = None
    # SHA-256 of their weights and of how they are read: what a run must go on with, on whatever machine.
    networks: Callable[[], str] | None = None


def load(config: PretrainConfig, device: torch.device) -> Encoders:
    """The networks that the config names. Raises ModelMissingError, CheckpointError or UsageError."""
    if config.encoders is None:
        raise UsageError("no frozen networks are named", hint="--set encoders=lens, or a folder")
    files = resolve_model(config.encoders)
    vae = load_vae(files, torch.float32, device) if config.vae is None else None
    pair = _harmony(config, files, device) if config.text_encoder is None else None
    if vae is None:
        images, about_images = _diffusers_vae(str(config.vae), config.params, device)
    else:
        images, about_images = _own_images(vae, device), lambda: {"vae": files_sha256(files.vae)}
    if pair is None:
        texts, about_texts = _transformers(str(config.text_encoder), config, device)
    else:
        texts, about_texts = _conversations(config, *pair, device), lambda: _about_conversations(config, files)

    def identify() -> tuple[str, str]:
        common = {"code": VERSION, "torch": version("torch"), "processor": tensors.processor(device)}
        read = {"blocks": list(config.params.selected_layer_index), "most tokens": config.template.max_tokens}
        return tensors.cache_key(common | about_images()), tensors.cache_key(common | read | about_texts())

    frozen = None if vae is None or pair is None else Frozen(vae, *pair)
    return Encoders(images, texts, frozen, identify, lambda: tensors.cache_key(about_images() | about_texts()))


def of_frozen(config: PretrainConfig, frozen: Frozen, device: torch.device) -> Encoders:
    """Networks that are in memory already."""
    texts = _conversations(config, frozen.encoder, frozen.tokenizer, device)

    def networks() -> str:
        words = {"tokenizer": json.loads(frozen.tokenizer.to_str()), "template": asdict(config.template)}
        return tensors.cache_key(
            {"vae": _network_sha256(frozen.vae), "weights": _network_sha256(frozen.encoder)} | words
        )

    return Encoders(_own_images(frozen.vae, device), texts, frozen, networks=networks)


def _own_images(vae: AutoencoderKLFlux2, device: torch.device) -> ImagesToLatents:
    return lambda pictures: encode_images(vae, pictures, device)


def _about_conversations(config: PretrainConfig, files: ModelFiles) -> dict[str, Any]:
    return {
        "weights": files_sha256(files.text_encoder),
        "tokenizer": files_sha256(files.tokenizer) if files.tokenizer else None,
        "network": asdict(files.preset.params.text),
        "template": asdict(config.template),
    }


def _harmony(config: PretrainConfig, files: ModelFiles, device: torch.device) -> tuple[LensGptOssEncoder, Tokenizer]:
    width = files.preset.params.text.hidden_size
    if width != config.params.enc_hidden_dim:
        raise UsageError(
            f"{config.encoders}: its text encoder is {width} wide, the network reads {config.params.enc_hidden_dim}",
            hint=f"--set params.enc_hidden_dim={width}",
        )
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    return load_text_encoder(files, dtype, device), load_tokenizer(files)


def _conversations(
    config: PretrainConfig, encoder: LensGptOssEncoder, tokenizer: Tokenizer, device: torch.device
) -> TextsToFeatures:
    """Captions in the harmony template, without the tokens before them."""

    def texts(captions: Sequence[str]) -> list[Tensor]:
        encoded = [encode_prompt(tokenizer, config.template, caption) for caption in captions]
        ids = [row.ids for row in encoded]
        return encode_texts(encoder, ids, encoded[0].prefix, config.params.selected_layer_index, device)

    return texts


def _network_sha256(network: Any) -> str:
    """Of a network's weights as they lie in memory, whatever files or hub they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _transformers(name: str, config: PretrainConfig, device: torch.device) -> tuple[TextsToFeatures, About]:
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
            hint="fetch it (huggingface-cli download), or give a folder: --set text_encoder=FOLDER",
        ) from error
    model = model.to(device).eval().requires_grad_(False)
    take, width, depth = config.params.selected_layer_index, model.config.hidden_size, model.config.num_hidden_layers
    if width != config.params.enc_hidden_dim or max(take) >= depth:
        raise UsageError(
            f"{name} is {width} wide and has {depth} blocks; the transformer reads width "
            f"{config.params.enc_hidden_dim} after blocks {', '.join(map(str, take))}",
            hint=f"--set params.enc_hidden_dim={width} and params.selected_layer_index",
        )
    last = config.template.max_tokens
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
        return {"weights": _network_sha256(model), "tokenizer": words}

    return texts, about


def _diffusers_vae(name: str, params: DiTParams, device: torch.device) -> tuple[ImagesToLatents, About]:
    """`AutoencoderKL` as FLUX.1 and SD3 have it: one scale and shift for all channels, then Lens's 2x2 patches."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    if not (Path(name) / "config.json").is_file():
        raise ModelMissingError(
            f"no autoencoder in {name}", hint="--set vae=FOLDER, with config.json and weights of AutoencoderKL"
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

    return images, lambda: {"vae": _network_sha256(vae), "config": json.dumps(dict(vae.config), default=str)}
