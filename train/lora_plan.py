"""What a fine-tuning run will take: memory, disk, epochs, hours. From headers and arithmetic; no weights are read.

What is estimated rather than counted says so where it is printed. Light but for the pictures themselves (Pillow).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from backend.errors import UsageError
from backend.footprint import vae_parameters
from backend.model.tensor_tables import transformer_shapes
from backend.params import DiTParams
from backend.presets import Preset
from backend.quant_plan import BITS, BLOCK_LINEAR, plan_quant
from backend.sizes import GRID
from backend.types import Quant
from backend.weights import ModelFiles
from train import costs, runs
from train.data.folder import Folder
from train.lora_config import LoraConfig, as_pretraining, target_shapes


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Bytes and counts; `hours` None: no speed is known."""

    base: float  # the transformer in memory, packed or not
    scheme: str | None  # its packing; None: plain
    learned: int  # numbers that are trained
    # Their float32 weights (beside the base, or instead of it), gradients, moments, average, bfloat16 copies.
    state: float
    activations: float  # estimated: what the backward pass needs of one pass
    encoders: float  # estimated: the autoencoder, while pictures are encoded and previews drawn
    latents: float  # on the disk
    features: float  # on the disk; estimated from the captions' words
    checkpoints: float  # on the disk
    files: float  # on the disk: LoRAs or the transformer
    epochs: float
    pictures_per_s: float | None  # measured in this run's folder; None: nothing was
    hours: float | None  # of the steps that are left, without validation and previews

    @property
    def memory(self) -> float:
        """Of the device while it trains."""
        return self.base + self.state + self.activations

    @property
    def disk(self) -> float:
        return self.latents + self.features + self.checkpoints + self.files


def forecast(
    config: LoraConfig, preset: Preset, files: ModelFiles | None, folder: Folder, *, on_cpu: bool
) -> Forecast:  # fmt: skip
    """`files` None: of a model that is not on this disk. Raises UsageError for targets and ranks that cannot be."""
    params, full = preset.params, config.tune == "full"
    plan = as_pretraining(config, preset, "cpu" if on_cpu else "cuda")
    count = costs.parameters(params.dit)
    itemsize = 2 if config.compute == "bfloat16" and not on_cpu else 4
    base, scheme = _base(config, files, params.dit, itemsize, on_cpu)
    learned = count if full else sum(config.rank * sum(shape) for shape in target_shapes(config, params.dit).values())
    pictures = (*folder.training, *folder.held)
    speed, reached = _measured(config.run_dir)
    seen = config.steps * config.pictures_per_step
    average = 0.0 if config.ema_decay is None else 4.0
    lora_copies = 3 + config.steps // config.preview_every
    return Forecast(
        base=0.0 if full else base,
        scheme=None if full else scheme,
        learned=learned,
        # Weights, gradients, two moments; autocast keeps a bfloat16 copy of each weight until a pass is over.
        state=((18.0 if config.compute == "bfloat16" else 16.0) + average) * learned,
        activations=costs.activations(plan, plan.stages[0]),
        encoders=4.0 * vae_parameters(params.vae),
        latents=sum(4.0 * params.dit.in_channels * _tokens(picture.shape) for picture in pictures),
        features=_feature_bytes(params.dit, {picture.caption for picture in pictures}, on_cpu),
        checkpoints=(12.0 + average) * learned * (config.keep + 1),
        files=2.0 * count if full else 4.0 * learned * lora_copies,
        epochs=seen / len(folder.training),
        pictures_per_s=speed,
        hours=None if not speed else max(0, config.steps - reached) * config.pictures_per_step / speed / 3600,
    )


def _base(
    config: LoraConfig, files: ModelFiles | None, params: DiTParams, itemsize: int, on_cpu: bool
) -> tuple[float, str | None]:
    """Bytes of the frozen transformer and the packing of its blocks' linears."""
    shapes = transformer_shapes(params)
    count = sum(math.prod(shape) for shape in shapes.values())
    if files is not None:
        quant = plan_quant(files, config.quant, itemsize=itemsize, on_cpu=on_cpu)
        return quant.linear_bytes(itemsize) + (count - quant.values) * itemsize, quant.scheme
    packed = config.quant not in (Quant.auto, Quant.none)
    values = sum(math.prod(shape) for name, shape in shapes.items() if BLOCK_LINEAR.fullmatch(name)) if packed else 0
    held = values * BITS[config.quant] / 8 if packed else 0.0
    return held + (count - values) * itemsize, str(config.quant) if packed else None


def small_buckets(config: LoraConfig, folder: Folder) -> list[tuple[tuple[int, int], int]]:
    """((height, width), pictures) of the buckets whose every batch is smaller than `config.batch`."""
    found = ((shape, len(pictures)) for shape, pictures in folder.buckets().items())
    return [(shape, count) for shape, count in found if count < config.batch]


def _tokens(shape: tuple[int, int]) -> int:
    return shape[0] * shape[1] // GRID**2


def _feature_bytes(params: DiTParams, captions: set[str], on_cpu: bool) -> float:
    """A word of English is 1.3 tokens of gpt-oss and about as many of Nano's; 22 tokens end every conversation."""
    tokens = sum(1.3 * len(caption.split()) + 22 for caption in captions)
    return tokens * len(params.selected_layer_index) * params.enc_hidden_dim * (4 if on_cpu else 2)


def _measured(run_dir: Path) -> tuple[float | None, int]:
    """Pictures a second of an earlier part of this run, the median of its last lines, and the step it reached."""
    try:
        run = runs.find(run_dir)[0]
    except UsageError:
        return None, 0
    speeds = [value for _, value in run.series("pictures_per_s")][-9:]
    return (median(speeds) if speeds else None), run.step
