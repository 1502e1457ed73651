"""The frozen networks of pre-training: pictures to latents, captions to features.

Lens's own pair is the FLUX.2 autoencoder and gpt-oss through the harmony template. Both are fields of the config, for
the paper's ablations: another autoencoder in diffusers' layout, another causal language model of transformers.

Legend: B pictures, N tokens, C packed channels; L text tokens, T layers that are read, F features.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from backend.cache import tensors
from backend.checkpoints.identity import files_sha256
from backend.checkpoints.resolve import ModelFiles, resolve_model
from backend.denoising import latents
from backend.errors import UsageError
from backend.loading import load_text_encoder, load_tokenizer, load_vae
from backend.model.autoencoder import AutoencoderKLFlux2, encode_mean, latent_statistics
from backend.model.text_encoder import LensGptOssEncoder
from backend.params import DiTParams, TemplateParams
from backend.text.harmony import encode_prompt
from train.batches.ablations import (
    ImagesToLatents,
    TextsToFeatures,
    diffusers_vae,
    language_model,
    network_sha256,
)
from train.config import FrozenNames

VERSION = 1  # raised when the same networks give other numbers


@dataclass(frozen=True)
class Frozen:
    """The networks that are not trained here."""

    vae: AutoencoderKLFlux2
    encoder: LensGptOssEncoder
    tokenizer: Tokenizer


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


def load(names: FrozenNames, params: DiTParams, template: TemplateParams, device: torch.device) -> Encoders:
    """The named networks, for a transformer of `params`. Raises ModelMissingError, CheckpointError or UsageError."""
    if names.encoders is None:
        raise UsageError("no frozen networks are named", hint="--set frozen.encoders=lens, or a folder")
    files = resolve_model(names.encoders)
    vae = load_vae(files, torch.float32, device) if names.vae is None else None
    pair = _harmony(names.encoders, params, files, device) if names.text_encoder is None else None
    if vae is None:
        images, about_images = diffusers_vae(str(names.vae), params, device)
    else:
        images, about_images = _own_images(vae, device), lambda: {"vae": files_sha256(files.vae)}
    if pair is None:
        texts, about_texts = language_model(str(names.text_encoder), params, template, device)
    else:
        texts = _conversations(params, template, *pair, device)
        about_texts = lambda: _about_conversations(template, files)  # noqa: E731

    def identify() -> tuple[str, str]:
        common = {"code": VERSION, "torch": version("torch"), "processor": tensors.processor(device)}
        read = {"blocks": list(params.selected_layer_index), "most tokens": template.max_tokens}
        return tensors.cache_key(common | about_images()), tensors.cache_key(common | read | about_texts())

    frozen = None if vae is None or pair is None else Frozen(vae, *pair)
    return Encoders(images, texts, frozen, identify, lambda: tensors.cache_key(about_images() | about_texts()))


def of_frozen(params: DiTParams, template: TemplateParams, frozen: Frozen, device: torch.device) -> Encoders:
    """Networks that are in memory already."""
    texts = _conversations(params, template, frozen.encoder, frozen.tokenizer, device)

    def networks() -> str:
        words = {"tokenizer": json.loads(frozen.tokenizer.to_str()), "template": asdict(template)}
        return tensors.cache_key({"vae": network_sha256(frozen.vae), "weights": network_sha256(frozen.encoder)} | words)

    return Encoders(_own_images(frozen.vae, device), texts, frozen, networks=networks)


def feature_dtype(device: torch.device) -> torch.dtype:
    """Text features are in what the encoders are loaded in."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


# Lens's own networks -------------------------------------------------------------------------------------------------


@torch.no_grad()
def encode_images(vae: AutoencoderKLFlux2, images: np.ndarray, device: torch.device) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, N, C) normalised, packed latent means."""
    pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.autocast(device.type, torch.bfloat16):
        mean = encode_mean(vae, pixels.contiguous(memory_format=torch.channels_last))
    return latents.pack(latents.normalise(latents.patchify(mean.float()), *latent_statistics(vae)))


@torch.no_grad()
def encode_texts(
    encoder: LensGptOssEncoder, ids: list[tuple[int, ...]], prefix: int, take: tuple[int, ...], device: torch.device
) -> list[Tensor]:
    """Features (L, T, F) of each conversation, without its first `prefix` tokens."""
    width = max(len(row) for row in ids)
    batch = torch.zeros(len(ids), width, dtype=torch.long)
    for i, row in enumerate(ids):
        batch[i, : len(row)] = torch.tensor(row)
    with torch.autocast(device.type, torch.bfloat16):
        states = encoder.hidden_states(batch.to(device), take)  # right padding is harmless: attention is causal
    stacked = torch.stack(states, 2)
    return [stacked[i, prefix : len(row)] for i, row in enumerate(ids)]


def _own_images(vae: AutoencoderKLFlux2, device: torch.device) -> ImagesToLatents:
    return lambda pictures: encode_images(vae, pictures, device)


def _about_conversations(template: TemplateParams, files: ModelFiles) -> dict[str, Any]:
    return {
        "weights": files_sha256(files.text_encoder),
        "tokenizer": files_sha256(files.tokenizer) if files.tokenizer else None,
        "network": asdict(files.preset.params.text),
        "template": asdict(template),
    }


def _harmony(
    name: str, params: DiTParams, files: ModelFiles, device: torch.device
) -> tuple[LensGptOssEncoder, Tokenizer]:
    width = files.preset.params.text.hidden_size
    if width != params.enc_hidden_dim:
        raise UsageError(
            f"{name}: its text encoder is {width} wide, the network reads {params.enc_hidden_dim}",
            hint=f"--set params.enc_hidden_dim={width}",
        )
    return load_text_encoder(files, feature_dtype(device), device), load_tokenizer(files)


def _conversations(
    params: DiTParams,
    template: TemplateParams,
    encoder: LensGptOssEncoder,
    tokenizer: Tokenizer,
    device: torch.device,
) -> TextsToFeatures:
    """Captions in the harmony template, without the tokens before them."""

    def texts(captions: Sequence[str]) -> list[Tensor]:
        encoded = [encode_prompt(tokenizer, template, caption) for caption in captions]
        ids = [row.ids for row in encoded]
        return encode_texts(encoder, ids, encoded[0].prefix, params.selected_layer_index, device)

    return texts
