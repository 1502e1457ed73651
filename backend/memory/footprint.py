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

from backend.model.decode_plan import DecodePlan, plan_decode, plan_leanest
from backend.model.tensors import transformer_shapes, vae_shapes
from backend.params import ModelParams, TextEncoderParams, VAEParams
from backend.sizes import GRID

MB, GB = 10**6, 10**9
CUDA_CONTEXT = 500 * MB  # driver, kernels, libraries, outside of torch's allocator; assumed, differs by card and driver
CUDA_LIBRARIES = 64 * MB  # workspaces of cuBLAS and cuDNN, inside the allocator; assumed
# Resident set before any weights: 264 MB with torch, the networks' modules and a CPU's kernels, and what encoding and
# reading leave behind. Lens-Nano's measured peaks lie within 6 % of what this makes (421, 454 and 377 MB).
PROCESS = 340 * MB
BITSANDBYTES = 124 * MB  # of its import, on top
ALIGNMENT = 256  # of a tensor in a slot, as backend.denoising.stream lays them


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
    bitsandbytes: bool = False  # its operations decode those linears, so it is imported

    @property
    def process(self) -> int:
        """Bytes of host memory before any weights."""
        return PROCESS + (BITSANDBYTES if self.bitsandbytes else 0)

    @property
    def rows(self) -> int:
        """How many rows of image tokens there are."""
        return math.ceil(self.height / GRID)

    @property
    def columns(self) -> int:
        return math.ceil(self.width / GRID)

    @property
    def image_tokens(self) -> int:
        return self.rows * self.columns

    @property
    def tokens(self) -> int:
        return self.image_tokens + self.text_tokens

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
    """Count the bytes of a job's networks; modulation is folded, so its weights are on no device."""
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
    """Parameters of the whole autoencoder; its latent statistics are none."""
    return sum(math.prod(shape) for name, shape in vae_shapes(params).items() if not name.startswith("bn."))


def encoding(params: TextEncoderParams, tokens: int, itemsize: int) -> int:
    """The text encoder run layer by layer: a layer's attention, an expert and the one before it, and eight streams:
    the residual, the kept ones, what the experts add up to, and what goes through one of them."""
    hidden = params.hidden_size
    queries, keys = params.num_attention_heads * params.head_dim, params.num_key_value_heads * params.head_dim
    attention = 2 * hidden * queries + 2 * hidden * keys
    expert = 3 * hidden * params.intermediate_size
    return itemsize * (attention + 2 * expert + 8 * tokens * hidden)


def denoising(job: Job, device: str) -> int:
    """Activations of one step at their fullest, within a block; `device`: torch's type of it."""
    # The fused kernels of a GPU hold nothing in float32.
    turning = 0 if device == "cuda" else _turning(job)
    return max(turning, _attending(job), _mlp(job)) + _kept(job)


def _turning(job: Job) -> int:
    """Attention, where the longer stream's queries and keys are turned: both streams' projections (3 D a token), the
    joint queries, keys and values that they go to (3), and queries and keys as float32, normed and turned."""
    longer = max(job.image_tokens, job.text_tokens)
    return job.params.dit.dim * (6 * job.itemsize * job.tokens + 2 * 8 * longer)


def _attending(job: Job) -> int:
    """Attention, after its products: both streams' projections (3 D a token), the joint queries, keys and values (3),
    the result, the result token by token, and projected (1 each)."""
    return 9 * job.params.dit.dim * job.itemsize * job.tokens


def _mlp(job: Job) -> int:
    """The longer stream's MLP: two of its hidden width; the first takes the activation and the product in place."""
    return 2 * job.itemsize * max(job.image_tokens, job.text_tokens) * job.params.dit.mlp_dim


def _kept(job: Job) -> int:
    """Around a block: its streams as they came and as they were normed, the other branch's streams meanwhile, the
    picture as the first block got it, every branch's embedded text and positions; the latent in float32."""
    dit, e, branches = job.params.dit, job.itemsize, 2 if job.guided else 1
    streams = 2 * job.tokens + branches * job.image_tokens + branches * job.text_tokens
    positions = branches * 4 * job.tokens * dit.attention_head_dim
    return e * dit.dim * streams + positions + 4 * job.image_tokens * dit.in_channels


@functools.lru_cache(maxsize=256)
def decodings(job: Job, device: str) -> tuple[DecodePlan, ...]:
    """Ways to decode on a device of torch's type, from the least work to the least memory."""
    params, height, width = job.params.vae, GRID * job.rows, GRID * job.columns
    plain = plan_decode(params, height, width, job.itemsize, device=device)
    leanest = plan_leanest(params, height, width, job.itemsize, device=device)
    found = [plain]
    for share in (0.75, 0.5):
        if plain.peak_bytes * share > leanest.peak_bytes:
            memory = round(plain.peak_bytes * share)
            found.append(plan_decode(params, height, width, job.itemsize, memory, device))
    found.append(leanest)
    # A little less memory for more work is no step: each has to be leaner than the one before.
    return tuple(plan for i, plan in enumerate(found) if not i or plan.peak_bytes < found[i - 1].peak_bytes)


def strips(job: Job, plan: DecodePlan) -> int:
    """In how many strips the decoder's last and largest stage runs."""
    return math.ceil(GRID * job.rows / plan.stages[-1].rows)
