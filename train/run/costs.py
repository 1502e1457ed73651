"""What a run will take: parameters, operations, memory, disk, hours. Arithmetic over a config, before anything starts.

Light ring: standard library only. What is estimated rather than counted says so where it is printed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from backend.params import DiTParams, TextEncoderParams
from backend.sizes import GRID, buckets
from train.config import Machine, PretrainConfig, Stage

# Dense bfloat16 operations a second and bytes, as the makers' data sheets state them.
PEAKS: dict[str, tuple[float, float]] = {
    "a100": (312e12, 80e9),
    "a100-40gb": (312e12, 40e9),
    "h100": (989e12, 80e9),
    "h200": (989e12, 141e9),
    "b200": (2250e12, 192e9),
    "l40s": (362e12, 48e9),
    "rtx-4090": (165e12, 24e9),
    "rtx-3090": (71e12, 24e9),
}

# Operations a second of one core of the machine that Lens-Nano is measured on (AVX-512 with bfloat16): a forward pass
# of 5.4 GFLOP takes 0.042 s; a training step of 16 pictures of 256x256, 267 GFLOP, 2.9 s, not compiled.
CORE_FORWARD, CORE_TRAINING = 5.4e9 / 0.042, 267e9 / 2.9

# Parameters and operations -------------------------------------------------------------------------------------------


def parameters(params: DiTParams) -> int:
    """Count the transformer's numbers; 4,104,225,152 for the published one."""
    d, m, head = params.dim, params.mlp_dim, params.attention_head_dim
    features = params.enc_hidden_dim * len(params.selected_layer_index)
    block = 2 * (6 * d * d + 6 * d) + 2 * (3 * d * d + 3 * d) + 2 * (d * d + d) + 6 * d * m + 4 * d + 4 * head
    packed = params.patch_size**2 * params.out_channels
    outer = (params.in_channels * d + d) + features + (features * d + d) + (256 * d + d) + (d * d + d)
    return block * params.num_layers + outer + (2 * d * d + 2 * d) + (d * packed + packed)


def moment_bytes(config: PretrainConfig) -> int:
    """Count the optimiser's state: two numbers a parameter, one of the blocks' attention and MLP under Muon."""
    params = config.params
    blocks = params.num_layers * (8 * params.dim**2 + 6 * params.dim * params.mlp_dim)
    return 8 * parameters(params) - (4 * blocks if config.optim.muon else 0)


def checkpoint_bytes(config: PretrainConfig) -> int:
    """Weights, moments and average; without the few bytes of step counters and headers."""
    copies = 1 if config.optim.ema_decay is None else 2
    return 4 * copies * parameters(config.params) + moment_bytes(config)


def cache_bytes(config: PretrainConfig, shapes: Iterable[tuple[int, int, int]]) -> tuple[float, float]:
    """Count the latents, and estimate the text features by `caption_tokens`, of (width, height, pictures), as
    `train.batches.keeper` holds them; brief captions come on top."""
    params, pictures, tokens = config.params, 0, 0
    for width, height, count in shapes:
        pictures, tokens = pictures + count, tokens + count * (width // GRID) * (height // GRID)
    itemsize = 2 if config.machine.device.startswith("cuda") else 4
    features = len(params.selected_layer_index) * params.enc_hidden_dim * itemsize
    return 4.0 * params.in_channels * tokens, float(pictures * config.caption_tokens * features)


def encoder_parameters(params: TextEncoderParams) -> int:
    """Count the GPT-OSS network's numbers, about: without norms, biases and router."""
    attention = params.hidden_size * params.head_dim * (2 * params.num_attention_heads + 2 * params.num_key_value_heads)
    experts = params.num_local_experts * 3 * params.hidden_size * params.intermediate_size
    return params.vocab_size * params.hidden_size + params.num_hidden_layers * (attention + experts)


def forward_flops(params: DiTParams, image_tokens: int, text_tokens: int) -> float:
    """Count one picture's operations: a multiplication and an addition are two. Training takes three times as many."""
    d, s = params.dim, image_tokens + text_tokens
    block = 2 * s * (4 * d * d + 3 * d * params.mlp_dim) + 4 * s * s * d + 2 * 2 * 6 * d * d
    features = params.enc_hidden_dim * len(params.selected_layer_index)
    ends = 2 * d * (image_tokens * (params.in_channels + params.patch_size**2 * params.out_channels))
    return block * params.num_layers + ends + 2 * text_tokens * features * d


def stage_tokens(stage: Stage) -> float:
    """Image tokens of a step, in the expectation over bases and ratios."""
    total = sum(base.weight for base in stage.bases)
    out = 0.0
    for base in stage.bases:
        sizes = buckets(base.base)
        square = sizes[4][0] * sizes[4][1]
        mean = sum(w * h for w, h in sizes) / len(sizes)
        pixels = stage.square_share * square + (1 - stage.square_share) * mean
        out += stage.groups * base.batch * base.weight / total * pixels / GRID**2
    return out


def step_flops(config: PretrainConfig, stage: Stage) -> float:
    """Count a whole step's operations on all machines, without recomputation and frozen networks."""
    total = sum(base.weight for base in stage.bases)
    out = 0.0
    for base in stage.bases:
        tokens = base.base**2 // GRID**2
        share = stage.groups * base.batch * base.weight / total
        out += 3 * share * forward_flops(config.params, tokens, config.caption_tokens)
    return out


# Memory --------------------------------------------------------------------------------------------------------------


KEPT_WIDTHS, KEPT_HIDDEN = 35.5, 4.0  # numbers of two bytes, see activations()


@dataclass(frozen=True)
class MemoryCosts:
    """Bytes on one GPU."""

    weights: float  # float32 masters
    gradients: float
    moments: float
    average: float
    gathered: float  # weights of two blocks in the compute precision: the one that runs, the one that is fetched
    activations: float  # estimated: what the backward pass needs of one pass
    encoders: float  # frozen networks; 0 where nothing is encoded

    @property
    def total(self) -> float:
        return sum(vars(self).values())


def memory(config: PretrainConfig, stage: Stage, encoders: float) -> MemoryCosts:
    """Add up one GPU of `config.hardware`. `encoders`: bytes of the frozen networks, which are not spread."""
    count = parameters(config.params)
    ranks = max(1, config.hardware.gpus // config.machine.replicate)
    share, itemsize = count / ranks, 2 if config.machine.compute == "bfloat16" else 4
    alone = config.hardware.gpus == 1  # autocast keeps a converted copy of every matrix until the pass is over
    return MemoryCosts(
        weights=4 * share,
        gradients=4 * share,
        moments=moment_bytes(config) / ranks,
        average=4 * share if config.optim.ema_decay is not None else 0.0,
        gathered=itemsize * (count if alone else 2 * count / config.params.num_layers),
        activations=activations(
            config.params, stage, config.machine, caption_tokens=config.caption_tokens, gpus=config.hardware.gpus
        ),
        encoders=encoders,
    )


def activations(
    params: DiTParams, stage: Stage, machine: Machine, *, caption_tokens: int, gpus: int = 1
) -> float:  # fmt: skip
    """Bytes that one pass keeps for its backward pass: the costliest base decides."""
    d, m, layers = params.dim, params.mlp_dim, params.num_layers
    worst = 0.0
    for base in stage.bases:
        rank_batch = -(-base.batch * stage.groups // gpus) if stage.groups < gpus else base.batch
        pictures = min(machine.micro_batch or rank_batch, rank_batch)
        tokens = pictures * (base.base**2 / GRID**2 + caption_tokens)
        # What a block keeps of a token, counted with saved_tensors_hooks and without compilation, which keeps less
        # (tests/train/run/test_costs.py); of the costly results alone, by adding up what `selective` names.
        whole, entry = tokens * (KEPT_WIDTHS * d + KEPT_HIDDEN * m) * 2, tokens * d * 2
        costly = tokens * (3.5 * d + m) * 2
        kept = {
            "none": layers * whole,
            "full": layers * entry + whole,
            "selective": layers * (entry + costly) + whole,
        }
        worst = max(worst, kept[machine.checkpointing])
    return worst


def peak_of(name: str) -> float | None:
    """bfloat16 operations a second of a GPU by the name its driver gives; None: not in the table."""
    plain = name.lower().replace(" ", "-")
    for key, (flops, _) in sorted(PEAKS.items(), key=lambda row: -len(row[0])):
        if key in plain:
            return flops
    return None
