"""What a run will take: parameters, operations, memory, disk, hours. Arithmetic over a config, before anything starts.

Light ring: standard library only. What is estimated rather than counted says so where it is printed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from backend.params import DiTParams, TextEncoderParams, VAEParams
from backend.sizes import GRID, buckets
from train.config import PretrainConfig, Stage

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

# Parameters and operations -------------------------------------------------------------------------------------------


def parameters(params: DiTParams) -> int:
    """Of the transformer; 4,104,225,152 for the published one."""
    d, m, head = params.dim, params.mlp_dim, params.attention_head_dim
    features = params.enc_hidden_dim * len(params.selected_layer_index)
    block = 2 * (6 * d * d + 6 * d) + 2 * (3 * d * d + 3 * d) + 2 * (d * d + d) + 6 * d * m + 4 * d + 4 * head
    packed = params.patch_size**2 * params.out_channels
    outer = (params.in_channels * d + d) + features + (features * d + d) + (256 * d + d) + (d * d + d)
    return block * params.num_layers + outer + (2 * d * d + 2 * d) + (d * packed + packed)


def moment_bytes(config: PretrainConfig) -> int:
    """Of the optimiser's state: two numbers a parameter, one where Muon takes it (attention and MLP of the blocks)."""
    params = config.params
    blocks = params.num_layers * (8 * params.dim**2 + 6 * params.dim * params.mlp_dim)
    return 8 * parameters(params) - (4 * blocks if config.muon else 0)


def checkpoint_bytes(config: PretrainConfig) -> int:
    """Weights, moments and average; without the few bytes of step counters and headers."""
    copies = 1 if config.ema_decay is None else 2
    return 4 * copies * parameters(config.params) + moment_bytes(config)


def cache_bytes(config: PretrainConfig, shapes: Iterable[tuple[int, int, int]]) -> tuple[float, float]:
    """Of the latents and of the text features of (width, height, pictures): `train.batches.kept`. The first is counted,
    the second estimated by `caption_tokens`; brief captions come on top."""
    params, pictures, tokens = config.params, 0, 0
    for width, height, count in shapes:
        pictures, tokens = pictures + count, tokens + count * (width // GRID) * (height // GRID)
    itemsize = 2 if config.device.startswith("cuda") else 4
    features = len(params.selected_layer_index) * params.enc_hidden_dim * itemsize
    return 4.0 * params.in_channels * tokens, float(pictures * config.caption_tokens * features)


def encoder_parameters(params: TextEncoderParams) -> int:
    """Of the GPT-OSS network, about: without norms, biases and router."""
    attention = params.hidden_size * params.head_dim * (2 * params.num_attention_heads + 2 * params.num_key_value_heads)
    experts = params.num_local_experts * 3 * params.hidden_size * params.intermediate_size
    return params.vocab_size * params.hidden_size + params.num_hidden_layers * (attention + experts)


def forward_flops(params: DiTParams, image_tokens: int, text_tokens: int) -> float:
    """Of one picture: a multiplication and an addition are two. Training takes three times as many."""
    d, s = params.dim, image_tokens + text_tokens
    block = 2 * s * (4 * d * d + 3 * d * params.mlp_dim) + 4 * s * s * d + 2 * 2 * 6 * d * d
    features = params.enc_hidden_dim * len(params.selected_layer_index)
    ends = 2 * d * (image_tokens * (params.in_channels + params.patch_size**2 * params.out_channels))
    return block * params.num_layers + ends + 2 * text_tokens * features * d


def vae_flops(params: VAEParams, pixels: int) -> float:
    """Of encoding one picture, about: the residual blocks' convolutions, which are nearly all of it."""
    total, below = 0.0, params.block_out_channels[0]
    for level, width in enumerate(params.block_out_channels):
        area = pixels / 4**level
        total += 2 * 9 * area * (below * width + width * width * (2 * params.layers_per_block - 1))
        below = width
    return total


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
    """Of a whole step on all machines, without recomputation and frozen networks."""
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
class Memory:
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


def memory(config: PretrainConfig, stage: Stage, encoders: float) -> Memory:
    """Of one GPU of `config.machine`. `encoders`: bytes of the frozen networks, which are not spread."""
    count = parameters(config.params)
    ranks = max(1, config.machine.gpus // config.replicate)
    share, itemsize = count / ranks, 2 if config.compute == "bfloat16" else 4
    alone = config.machine.gpus == 1  # autocast keeps a converted copy of every matrix until the pass is over
    return Memory(
        weights=4 * share,
        gradients=4 * share,
        moments=moment_bytes(config) / ranks,
        average=4 * share if config.ema_decay is not None else 0.0,
        gathered=itemsize * (count if alone else 2 * count / config.params.num_layers),
        activations=activations(config, stage),
        encoders=encoders,
    )


def activations(config: PretrainConfig, stage: Stage) -> float:
    """Bytes that one pass keeps for its backward pass: the costliest base decides."""
    d, m = config.params.dim, config.params.mlp_dim
    worst = 0.0
    for base in stage.bases:
        rank_batch = (
            -(-base.batch * stage.groups // config.machine.gpus) if stage.groups < config.machine.gpus else base.batch
        )
        pictures = min(config.micro_batch or rank_batch, rank_batch)
        tokens = pictures * (base.base**2 / GRID**2 + config.caption_tokens)
        # What a block keeps of a token, counted with saved_tensors_hooks and without compilation, which keeps less
        # (tests/train/test_costs/py); of the costly results alone, by adding up what `selective` names.
        whole, entry = tokens * (KEPT_WIDTHS * d + KEPT_HIDDEN * m) * 2, tokens * d * 2
        costly = tokens * (3.5 * d + m) * 2
        layers = config.params.num_layers
        kept = {
            "none": layers * whole,
            "full": layers * entry + whole,
            "selective": layers * (entry + costly) + whole,
        }
        worst = max(worst, kept[config.checkpointing])
    return worst


def peak_of(name: str) -> float | None:
    """bfloat16 operations a second of a GPU by the name its driver gives; None: not in the table."""
    plain = name.lower().replace(" ", "-")
    for key, (flops, _) in sorted(PEAKS.items(), key=lambda row: -len(row[0])):
        if key in plain:
            return flops
    return None
