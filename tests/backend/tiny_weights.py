"""Random networks of a few thousand parameters and a small harmony tokenizer, for the tests of every file format."""

from __future__ import annotations

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from backend.model.tensor_tables import text_encoder_shapes, transformer_shapes
from backend.params import DiTParams, TemplateParams, TextEncoderParams, VAEParams

# The split expression of o200k (gpt-4o, gpt-oss), as its tokenizer.json states it.
O200K_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
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


def small_tokenizer(vocab_size: int = 500) -> Tokenizer:
    """A byte-level BPE with the o200k split and the harmony control tokens at the end, as gpt-oss has them."""
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
    return tokenizer
