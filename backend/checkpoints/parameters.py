"""What a model's files state of themselves: its variant and its parameters. Standard library only.

From configs, weight headers and the shapes in them; tensor data is never read.
"""

from __future__ import annotations

from pathlib import Path

from backend.checkpoints import config_files, detect, gguf_keys, vae_keys
from backend.checkpoints.headers import FileFormat, read_summary
from backend.checkpoints.layouts import NETWORKS, PartFiles, Parts, Paths
from backend.errors import CheckpointError
from backend.params import DiTParams, ModelParams, TextEncoderParams, VAEParams
from backend.presets import PRESETS

VARIANT_KEY = "lens.variant"  # ours, in a safetensors or GGUF header: the registry row whose defaults apply
SIDECAR = "lens.json"  # ours, beside the files: {"variant": "lens-turbo"}


def variant(path: Path, transformer: PartFiles | None) -> str | None:
    """The registry row that the files themselves name; None where they do not. Raises CheckpointError if unknown."""
    sidecar = (path if path.is_dir() else path.parent) / SIDECAR
    stated: object = None
    origin = sidecar
    if sidecar.is_file():
        stated = config_files.read_json(sidecar).get("variant")
    elif transformer is not None:
        origin = transformer.files[0]
        stated = read_summary(origin).metadata.get(VARIANT_KEY)
    if stated is None:
        return None
    if not isinstance(stated, str) or stated not in PRESETS:
        raise CheckpointError(f"{origin}: names the unknown variant {stated!r}", hint=f"one of {', '.join(PRESETS)}")
    return stated


def read_params(parts: Parts) -> ModelParams:
    """The parameters of all three networks, and the check that they fit each other. Raises CheckpointError."""
    transformer, encoder, autoencoder = (parts.held[part] for part in NETWORKS)
    dit, text, vae = read_transformer_params(transformer), read_text_params(encoder), read_vae_params(autoencoder)
    origin, encoder_name, vae_name = transformer.files[0], encoder.files[0].name, autoencoder.files[0].name
    if dit.enc_hidden_dim != text.hidden_size:
        raise CheckpointError(
            f"{origin}: reads features of width {dit.enc_hidden_dim}, {encoder_name} gives {text.hidden_size}: they do "
            "not belong together"
        )
    if max(dit.selected_layer_index) >= text.num_hidden_layers:
        raise CheckpointError(
            f"{origin}: reads encoder block {max(dit.selected_layer_index)}, {encoder_name} has "
            f"{text.num_hidden_layers} blocks"
        )
    if dit.out_channels != vae.latent_channels:
        raise CheckpointError(
            f"{origin}: makes {dit.out_channels} latent channels, {vae_name} decodes {vae.latent_channels}"
        )
    return ModelParams(dit=dit, vae=vae, text=text)


def read_transformer_params(part: PartFiles) -> DiTParams:
    """From config.json, what the weights' header states, or the tensors' shapes, in this order."""
    origin = str(part.files[0])
    stated: DiTParams | None = None
    for header in map(read_summary, part.files):
        if header.format is FileFormat.gguf:
            stated = stated or gguf_keys.transformer_params(header.metadata, origin)
        elif text := header.metadata.get(config_files.TRANSFORMER_METADATA_KEY):
            stated = stated or config_files.transformer_params(config_files.parse_json(text, origin), origin)
    if part.config is not None:
        params = config_files.transformer_params(config_files.read_json(part.config), str(part.config))
        if stated is not None and stated != params:
            raise CheckpointError(f"{part.config}: differs from what the header of {origin} states")
        return params
    if stated is not None:
        return stated
    shapes = _shapes(part.files)
    prefix = detect.transformer_prefix(shapes)
    if not detect.is_transformer(shapes):
        raise CheckpointError(f"{origin}: {detect.identify(shapes)}, expected a Lens transformer")
    return detect.transformer_params_from_shapes({n.removeprefix(prefix): s for n, s in shapes.items()}, origin)


def read_text_params(part: PartFiles) -> TextEncoderParams:
    """From the GGUF header, config.json, or the tensors' shapes, in this order."""
    header, origin = read_summary(part.files[0]), str(part.files[0])
    if header.format is FileFormat.gguf:
        rows = header.tensors.get("token_embd.weight")
        if rows is None:
            raise CheckpointError(f"{origin}: {detect.identify(header.tensors.keys())}, expected a GPT-OSS encoder")
        return gguf_keys.text_params(header.metadata, rows.shape[0], origin)
    if part.config is not None:
        return config_files.text_encoder_params(config_files.read_json(part.config), str(part.config))
    return detect.text_params_from_shapes(_shapes(part.files), origin)


def read_vae_params(part: PartFiles) -> VAEParams:
    """From config.json, our key in the safetensors header, or the tensors' shapes, in this order."""
    if part.config is not None:
        return config_files.vae_params(config_files.read_json(part.config), str(part.config))
    header, origin = read_summary(part.files[0]), str(part.files[0])
    stated = header.metadata.get(config_files.VAE_METADATA_KEY)
    if stated is not None:
        return config_files.vae_params(config_files.parse_json(stated, origin), origin)
    shapes = _shapes(part.files)
    prefix = vae_keys.prefix_of(shapes)
    return detect.vae_params_from_shapes({n.removeprefix(prefix): s for n, s in shapes.items()}, origin)


def _shapes(paths: Paths) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tensor.shape for path in paths for tensor in read_summary(path).tensors.values()}
