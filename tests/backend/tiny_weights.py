"""Random networks of a few thousand parameters and a small harmony tokenizer, for the tests of every file format."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from backend.checkpoints.tokenizer_files import O200K_SPLIT
from backend.checkpoints.write_gguf import write_text_encoder_gguf, write_transformer_gguf
from backend.checkpoints.write_safetensors import write_vae
from backend.errors import CheckpointError
from backend.model.tensors import text_encoder_shapes, transformer_shapes
from backend.params import DiTParams, TemplateParams, TextEncoderParams, VAEParams
from backend.text.harmony import encode_prompt

HARMONY = (
    "<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>", "<|start|>", "<|end|>",
    "<|message|>", "<|call|>",
)  # fmt: skip
CORPUS = [
    "Three red balloons over a green hill, with a small house to the left of them.",
    "A LARGE blue circle above two yellow squares; the sign says OPEN 24/7 and it's bright.",
    "A photo of 12 cats and 345 dogs under a dark sky.\nThe background is a field of flowers.",
    "Describe the image by detailing the color, shape, size, texture, quantity and text of the objects.",
]

DIT = DiTParams(
    num_layers=2,
    attention_head_dim=64,
    num_attention_heads=1,
    enc_hidden_dim=64,
    selected_layer_index=(0, 1),
    mlp_hidden_dim=96,
)
VAE = VAEParams(
    block_out_channels=(8, 8, 16, 16),
    layers_per_block=1,
    norm_num_groups=4,
    mid_block_add_attention=False,
    sample_size=64,
)
TEXT = TextEncoderParams(
    vocab_size=512,
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    intermediate_size=96,
    num_local_experts=4,
    num_experts_per_tok=2,
    sliding_window=16,
    rope_truncate=True,
    template=TemplateParams(identity="", prefix_tokens=11, max_tokens=128),
)


def random_transformer(params: DiTParams = DIT, seed: int = 0) -> dict[str, torch.Tensor]:
    """A float32 state dict of the transformer: standard deviation 0.05, norms near 1."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * 0.05 + (1.0 if "norm" in name and len(shape) == 1 else 0.0)
        for name, shape in transformer_shapes(params).items()
    }


def random_text_encoder(params: TextEncoderParams = TEXT, seed: int = 1) -> dict[str, torch.Tensor]:
    """A float32 state dict of GptOssForCausalLM, large enough in scale that experts and sinks matter."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in text_encoder_shapes(params).items():
        scale = 1.0 if "embed_tokens" in name or "sinks" in name else 0.2
        state[name] = torch.randn(shape, generator=generator) * scale + (1.0 if "norm.weight" in name else 0.0)
    return state


def small_tokenizer() -> Tokenizer:
    """A byte-level BPE with the o200k split and the harmony control tokens at the end, as gpt-oss has them."""
    return Tokenizer.from_str(_tokenizer_json(500))


@functools.cache
def _tokenizer_json(vocab_size: int) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(O200K_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(HARMONY),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 8, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in HARMONY])
    return tokenizer.to_str()


def random_vae(params: VAEParams = VAE, seed: int = 2) -> dict[str, torch.Tensor]:
    """A float32 state dict of the autoencoder with diffusers' names and plausible latent statistics."""
    from backend.model.autoencoder import build_vae

    torch.manual_seed(seed)
    vae = build_vae(params)
    state = {name: tensor.detach().clone() for name, tensor in vae.state_dict().items()}
    state["bn.running_mean"].uniform_(-1, 1)
    state["bn.running_var"].uniform_(0.5, 2)
    return state


def transformer_config(params: DiTParams = DIT) -> dict[str, Any]:
    """transformer/config.json as published, with the keys that our parameters do not hold."""
    config = {
        "_class_name": "LensTransformer2DModel",
        "_diffusers_version": "0.37.1",
        "gate_mlp": True,
        "inner_dim": params.dim,
        "multi_layer_encoder_feature": True,
        "rms_norm": True,
    }
    for key, value in asdict(params).items():
        if value is not None:
            config[key] = list(value) if isinstance(value, tuple) else value
    return config


def text_config(params: TextEncoderParams = TEXT) -> dict[str, Any]:
    """text_encoder/config.json in transformers 5's form."""
    names = (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
        "intermediate_size", "num_local_experts", "num_experts_per_tok", "sliding_window", "rms_norm_eps",
        "swiglu_limit",
    )  # fmt: skip
    config: dict[str, Any] = {name: getattr(params, name) for name in names}
    return config | {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "layer_types": [("sliding_attention", "full_attention")[i % 2] for i in range(params.num_hidden_layers)],
        "lens_template": asdict(params.template),
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": params.rope_theta,
            "factor": params.rope_factor,
            "original_max_position_embeddings": params.rope_original_context,
            "beta_fast": params.rope_beta_fast,
            "beta_slow": params.rope_beta_slow,
            "truncate": params.rope_truncate,
        },
    }


def vae_config(params: VAEParams = VAE) -> dict[str, Any]:
    """vae/config.json with a key that the current diffusers class no longer has."""
    config: dict[str, Any] = {"_class_name": "AutoencoderKLFlux2", "force_upcast": True}
    for key, value in asdict(params).items():
        config[key] = list(value) if isinstance(value, tuple) else value
    return config


def write_shards(folder: Path, stem: str, state: dict[str, torch.Tensor], shards: int = 2) -> None:
    """`state` over several safetensors files with an index, as the hub has it."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(state)
    weight_map = {}
    for number in range(shards):
        file = f"{stem}-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: state[name] for name in names[number::shards]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_diffusers(folder: Path) -> Path:
    """A complete tiny model in the published layout."""
    write_shards(folder / "transformer", "diffusion_pytorch_model", random_transformer())
    write_shards(folder / "text_encoder", "model", random_text_encoder(), shards=3)
    (folder / "vae").mkdir()
    save_file(random_vae(), folder / "vae" / "diffusion_pytorch_model.safetensors")
    (folder / "tokenizer").mkdir()
    small_tokenizer().save(str(folder / "tokenizer" / "tokenizer.json"))
    for part, config in (("transformer", transformer_config()), ("text_encoder", text_config()), ("vae", vae_config())):
        (folder / part / "config.json").write_text(json.dumps(config))
    index = {
        "_class_name": "LensPipeline",
        "_diffusers_version": "0.37.1",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "LensGptOssEncoder"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "LensTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLFlux2"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def write_embedded(folder: Path, dtype: str = "F32", quant: str = "F32") -> Path:
    """A complete tiny model as Lens-Nano is stored."""
    folder.mkdir(parents=True, exist_ok=True)
    write_transformer_gguf(folder / "transformer.gguf", random_transformer(), DIT, quant=quant)
    tokenizer = small_tokenizer().to_str()
    write_text_encoder_gguf(folder / "text_encoder.gguf", random_text_encoder(), TEXT, tokenizer, dtype=dtype)
    write_vae(folder / "vae.safetensors", random_vae(), VAE, dtype=torch.float32)
    return folder


def write_runnable(folder: Path) -> Path:
    """`write_embedded` with a short template that fits its tokenizer, so that prompts can be encoded."""
    template = TemplateParams(identity="", instruction="Describe.", thinking="Need.", prefix_tokens=-1, max_tokens=1000)
    try:
        encode_prompt(small_tokenizer(), template, "")
    except CheckpointError as error:  # says how many tokens the template has
        prefix = int(str(error).split(" tokens long")[0].rsplit(maxsplit=1)[-1])
    else:
        raise AssertionError("no template has -1 tokens")
    write_embedded(folder)
    text = replace(TEXT, template=replace(template, prefix_tokens=prefix))
    tokenizer = small_tokenizer().to_str()
    write_text_encoder_gguf(folder / "text_encoder.gguf", random_text_encoder(), text, tokenizer, dtype="F32")
    return folder
