"""How many bytes a picture needs, phase by phase: arithmetic on shapes, before anything is loaded.

The formulas name the tensors that are alive at the same time; the tests hold them against counted ones. What CUDA
itself takes is not counted but assumed, and said so beside the number.

Light ring: standard library only. Legend: N image tokens, L text tokens, S = N + L, D width of the transformer,
M width of its MLP, e bytes of a number.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from backend.model.tensor_tables import transformer_shapes
from backend.params import ModelParams, TextEncoderParams, VAEParams

MB, GB = 10**6, 10**9
CELL = 16  # pixels of one image token's side
CUDA_CONTEXT = 500 * MB  # driver, kernels, libraries, outside of torch's allocator; assumed, differs by card and driver
CUDA_LIBRARIES = 64 * MB  # workspaces of cuBLAS and cuDNN, inside the allocator; assumed
PROCESS = 450 * MB  # resident set once torch and the networks' modules are imported (405 measured, and tokenizers)
ALIGNMENT = 256  # of a tensor in a slot, as backend.model.block_stream lays them


@dataclass(frozen=True, kw_only=True)
class Job:
    """What decides the bytes of one run."""

    params: ModelParams
    width: int  # pixels
    height: int  # pixels
    steps: int
    guided: bool  # an unconditional branch runs as well; the two run one after the other
    text_tokens: int  # of the longest branch
    itemsize: int  # bytes of a number of the arithmetic: 2 bfloat16, 4 float32
    block_bits: float | None = None  # of a weight of a block's linears as it is held; None: unquantised

    @property
    def image_tokens(self) -> int:
        return math.ceil(self.width / CELL) * math.ceil(self.height / CELL)

    @property
    def bits(self) -> float:
        return 8.0 * self.itemsize if self.block_bits is None else self.block_bits


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Bytes of the networks as they are held."""

    outer: int  # of the transformer: what is in no block, without the time embedding and the final modulation
    block: int  # one block without its modulation
    blocks: int  # all of them
    folded: int  # the modulation of every block at every step: what replaces its weights
    vae: int

    @property
    def transformer(self) -> int:
        return self.outer + self.blocks + self.folded


@functools.lru_cache(maxsize=256)
def weights(job: Job) -> Weights:
    """Of a job's networks; modulation is folded, so its weights are on no device."""
    dit, e = job.params.dit, job.itemsize
    shapes = transformer_shapes(dit)
    outer = e * sum(math.prod(shape) for name, shape in shapes.items() if _is_outer(name))
    block = 0
    for name, shape in shapes.items():
        if not name.startswith("transformer_blocks.0.") or "_mod." in name:
            continue
        size = math.prod(shape) * (job.bits / 8 if len(shape) == 2 else e)
        block = _aligned(block) + math.ceil(size)
    modulation = 12 * dit.num_layers * dit.dim + 2 * dit.dim  # numbers a step: six of D for each stream, two at the end
    return Weights(
        outer=outer,
        block=block,
        blocks=dit.num_layers * block,
        folded=job.steps * modulation * e,
        vae=e * vae_parameters(job.params.vae),
    )


def _is_outer(name: str) -> bool:
    return not name.startswith(("transformer_blocks.", "time_text_embed.", "norm_out."))


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def vae_parameters(params: VAEParams) -> int:
    """Of the whole autoencoder: encoder, decoder and the two 1x1 convolutions between them."""
    widths, latent, n = params.block_out_channels, params.latent_channels, params.layers_per_block
    first, last = widths[0], widths[-1]

    def conv(inputs: int, outputs: int, side: int = 3) -> int:
        return side * side * inputs * outputs + outputs

    def residual(inputs: int, outputs: int) -> int:
        shortcut = conv(inputs, outputs, 1) if inputs != outputs else 0
        return 2 * inputs + conv(inputs, outputs) + 2 * outputs + conv(outputs, outputs) + shortcut

    middle = 2 * residual(last, last) + (2 * last + 4 * conv(last, last, 1) if params.mid_block_add_attention else 0)
    encoder = conv(3, first) + middle + 2 * last + conv(last, 2 * latent)
    decoder = conv(latent, last) + middle + 2 * first + conv(first, 3)
    for index, width in enumerate(widths):
        before = widths[max(index - 1, 0)]
        encoder += residual(before, width) + (n - 1) * residual(width, width)
        encoder += conv(width, width) if index + 1 < len(widths) else 0
        after = widths[min(index + 1, len(widths) - 1)]  # the decoder walks them backwards, with one layer more
        decoder += residual(after, width) + n * residual(width, width)
        decoder += conv(width, width) if index > 0 else 0
    return encoder + decoder + conv(2 * latent, 2 * latent, 1) + conv(latent, latent, 1)


def encoding(params: TextEncoderParams, tokens: int, itemsize: int) -> int:
    """The text encoder run layer by layer: one layer's attention, one expert, and what runs through them."""
    hidden, heads = params.hidden_size, params.num_attention_heads
    queries, keys = heads * params.head_dim, params.num_key_value_heads * params.head_dim
    attention = 2 * hidden * queries + 2 * hidden * keys
    expert = 3 * hidden * params.intermediate_size
    states = tokens * (5 * hidden + 3 * queries)  # the residual, four kept ones; queries, keys and values
    scores = 2 * heads * tokens * (tokens + 1)
    # An expert is decoded from four bits beside its packed bytes and a look-up's indices: twice its own size.
    return itemsize * (attention + 2 * expert + states + scores)


def denoising(job: Job) -> int:
    """Activations of the larger branch at its fullest, the text features and both branches' velocities."""
    return max(_attention(job), _mlp(job)) + _kept(job)


def _attention(job: Job) -> int:
    """In the attention half of a block: both streams, what they were normed to, queries, keys and values as projected
    and again as joined, and float32 copies of the queries while they are turned."""
    s, d, e = job.image_tokens + job.text_tokens, job.params.dit.dim, job.itemsize
    return s * d * (8 * e + 12)


def _mlp(job: Job) -> int:
    """In the image's MLP: both streams, the normed input, and three of its hidden width."""
    n, s = job.image_tokens, job.image_tokens + job.text_tokens
    return job.itemsize * (s * job.params.dit.dim + n * job.params.dit.dim + 3 * n * job.params.dit.mlp_dim)


def _kept(job: Job) -> int:
    """Through the whole loop: embedded text of both branches, rope tables, the latent in float32 and velocities."""
    dit, branches = job.params.dit, 2 if job.guided else 1
    s = job.image_tokens + job.text_tokens
    rope = 4 * s * dit.attention_head_dim
    return branches * (job.itemsize * job.text_tokens * dit.dim + rope) + 4 * job.image_tokens * dit.in_channels * 6


def decoding(job: Job, strips: int) -> int:
    """The VAE's decoder on the whole picture, or in strips: its widest tensor is of the second width at full size."""
    whole = job.itemsize * job.width * job.height * job.params.vae.block_out_channels[1] * 2.75
    return round(whole / strips)
