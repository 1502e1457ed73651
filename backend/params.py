"""Frozen parameters, one dataclass per network. The defaults are the published Lens 4.1B.

Light ring: standard library only. Sources: the published config files (transformer, text encoder, VAE, scheduler).
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class DiTParams:
    """The Lens transformer. Names follow the published transformer/config.json."""

    patch_size: int = 2  # only sets the output width: patch_size**2 * out_channels packed channels
    in_channels: int = 128  # packed latent channels C
    out_channels: int = 32  # VAE latent channels
    num_layers: int = 48
    attention_head_dim: int = 64
    num_attention_heads: int = 24
    enc_hidden_dim: int = 2880  # F, width of one text-encoder layer
    axes_dims_rope: tuple[int, int, int] = (8, 28, 28)  # frame, height, width; sums to attention_head_dim
    selected_layer_index: tuple[int, ...] = (5, 11, 17, 23)  # 0-based encoder blocks whose output is read
    mlp_hidden_dim: int | None = None  # None: int(dim / 3 * 8), as published

    @property
    def dim(self) -> int:
        """D, width of both streams."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def mlp_dim(self) -> int:
        return self.mlp_hidden_dim if self.mlp_hidden_dim is not None else int(self.dim / 3 * 8)


@dataclass(frozen=True, kw_only=True)
class VAEParams:
    """FLUX.2 autoencoder (`diffusers.AutoencoderKLFlux2`); names follow vae/config.json."""

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    latent_channels: int = 32
    layers_per_block: int = 2
    norm_num_groups: int = 32
    mid_block_add_attention: bool = True
    batch_norm_eps: float = 1e-4
    sample_size: int = 1024


@dataclass(frozen=True, kw_only=True)
class TextEncoderParams:
    """GPT-OSS as a text encoder; names follow text_encoder/config.json of gpt-oss-20b."""

    vocab_size: int = 201088
    hidden_size: int = 2880
    num_hidden_layers: int = 24
    num_attention_heads: int = 64
    num_key_value_heads: int = 8
    head_dim: int = 64
    intermediate_size: int = 2880  # of one expert
    num_local_experts: int = 32
    num_experts_per_tok: int = 4
    sliding_window: int = 128  # even layers (0-based); odd layers see everything
    rms_norm_eps: float = 1e-5
    swiglu_limit: float = 7.0
    rope_theta: float = 150000.0
    rope_factor: float = 32.0  # YaRN
    rope_original_context: int = 4096  # tokens
    rope_beta_fast: float = 32.0
    rope_beta_slow: float = 1.0
    rope_truncate: bool = False  # True: round the correction range, as llama.cpp always does
    template: TemplateParams = field(default_factory=lambda: TemplateParams())


@dataclass(frozen=True, kw_only=True)
class TemplateParams:
    """The conversation that carries a prompt through the encoder (DESIGN: rendered by us, date frozen)."""

    date: str = "2026-05-26"  # ISO; part of the features through attention, so it is fixed and recorded
    knowledge_cutoff: str = "2024-06"
    identity: str = "You are ChatGPT, a large language model trained by OpenAI."
    instruction: str = (
        "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of "
        "the objects and background."
    )
    thinking: str = "Need to generate one image according to the description."
    prefix_tokens: int = 97  # tokens before the user's text; cut from the features. Checked against the tokenizer
    max_tokens: int = 512  # of the whole conversation, including the prefix

    @property
    def room(self) -> int:
        """Tokens that are left for a prompt and what follows it."""
        return self.max_tokens - self.prefix_tokens


@dataclass(frozen=True, kw_only=True)
class ModelParams:
    """One complete Lens: three networks that fit each other."""

    dit: DiTParams = DiTParams()
    vae: VAEParams = VAEParams()
    text: TextEncoderParams = TextEncoderParams()
