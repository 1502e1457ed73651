"""What a fine-tuning run will take: memory, disk, epochs, hours. From headers and arithmetic; no weights are read.

What is estimated rather than counted says so where it is printed. Light but for the pictures themselves (Pillow).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from backend.checkpoints.packing_plan import BLOCK_LINEAR, QuantPlan, plan_plain, plan_quant
from backend.checkpoints.resolve import ModelFiles
from backend.errors import UsageError
from backend.memory.footprint import vae_parameters
from backend.model.tensors import transformer_shapes
from backend.params import DiTParams
from backend.presets import Preset
from backend.sizes import GRID
from train.lora.config import AdapterFields, LoraConfig, target_shapes
from train.lora.pictures import Folder
from train.run import costs, status

CAPTION_TOKENS = 170  # that activations are estimated by: 109 words


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
        """Bytes of the device while it trains."""
        return self.base + self.state + self.activations

    @property
    def disk(self) -> float:
        return self.latents + self.features + self.checkpoints + self.files


def base_itemsize(config: AdapterFields, device_type: str) -> int:
    """Bytes of a frozen number. A processor has float32, where bfloat16 saves no time."""
    return 2 if config.machine.compute == "bfloat16" and device_type != "cpu" else 4


def base_plan(config: AdapterFields, files: ModelFiles, device_type: str) -> QuantPlan:
    """How the frozen linears will lie in memory."""
    return plan_quant(
        files, config.quant, itemsize=base_itemsize(config, device_type), on_cpu=device_type == "cpu"
    )  # fmt: skip


def notes(config: LoraConfig, preset: Preset, files: ModelFiles | None, device_type: str) -> list[str]:
    """One line for each thing that was asked for and has a catch. `files` None: the model is not on this disk."""
    found = [] if files is None else list(base_plan(config, files, device_type).notes)
    if preset.distilled:
        found.append(
            f"{preset.name} is distilled for few steps, which this training knows nothing of; a LoRA of the model it "
            f"was made from draws with {preset.name} too"
        )
    return found


def forecast(
    config: LoraConfig, preset: Preset, files: ModelFiles | None, folder: Folder, *, device_type: str
) -> Forecast:  # fmt: skip
    """`files` None: of a model that is not on this disk. Raises UsageError for targets and ranks that cannot be."""
    params, full = preset.params, config.tune == "full"
    count = costs.parameters(params.dit)
    base, scheme = base_bytes(config, files, params.dit, device_type)
    learned = count if full else sum(config.rank * sum(shape) for shape in target_shapes(config, params.dit).values())
    pictures = (*folder.training, *folder.held)
    speed, reached = _measured(config.run_dir)
    seen = config.steps * config.pictures_per_step
    average = 0.0 if config.optim.ema_decay is None else 4.0
    lora_copies = 3 + config.steps // config.saving.preview_every
    return Forecast(
        base=0.0 if full else base,
        scheme=None if full else scheme,
        learned=learned,
        # Weights, gradients, two moments; autocast keeps a bfloat16 copy of each weight until a pass is over.
        state=((18.0 if config.machine.compute == "bfloat16" else 16.0) + average) * learned,
        activations=costs.activations(
            params.dit, config.stage_of(preset), config.machine, caption_tokens=CAPTION_TOKENS
        ),
        encoders=4.0 * vae_parameters(params.vae),
        latents=sum(4.0 * params.dit.in_channels * _tokens(picture.shape) for picture in pictures),
        features=_feature_bytes(params.dit, {picture.caption for picture in pictures}, device_type),
        checkpoints=(12.0 + average) * learned * (config.saving.keep + 1),
        files=2.0 * count if full else 4.0 * learned * lora_copies,
        epochs=seen / len(folder.training),
        pictures_per_s=speed,
        hours=None if not speed else max(0, config.steps - reached) * config.pictures_per_step / speed / 3600,
    )


def base_bytes(
    config: AdapterFields, files: ModelFiles | None, params: DiTParams, device_type: str
) -> tuple[float, str | None]:
    """Bytes of the frozen transformer and the packing of its blocks' linears."""
    itemsize, shapes = base_itemsize(config, device_type), transformer_shapes(params)
    count = sum(math.prod(shape) for shape in shapes.values())
    if files is not None:
        quant = base_plan(config, files, device_type)
        return quant.linear_bytes(itemsize) + (count - quant.values) * itemsize, quant.scheme
    linears = [shape for name, shape in shapes.items() if BLOCK_LINEAR.fullmatch(name)]
    quant = plan_plain(config.quant, sum(map(math.prod, linears)), sum(rows for rows, _ in linears))
    return quant.linear_bytes(itemsize) + (count - quant.values) * itemsize, quant.scheme


def small_buckets(config: LoraConfig, folder: Folder) -> list[tuple[tuple[int, int], int]]:
    """((height, width), pictures) of the buckets whose every batch is smaller than `config.batch`."""
    found = ((shape, len(pictures)) for shape, pictures in folder.buckets().items())
    return [(shape, count) for shape, count in found if count < config.batch]


def _tokens(shape: tuple[int, int]) -> int:
    return shape[0] * shape[1] // GRID**2


def _feature_bytes(params: DiTParams, captions: set[str], device_type: str) -> float:
    """A word of English is 1.3 tokens of gpt-oss and about as many of Nano's; 22 tokens end every conversation."""
    tokens = sum(1.3 * len(caption.split()) + 22 for caption in captions)
    return tokens * len(params.selected_layer_index) * params.enc_hidden_dim * (4 if device_type == "cpu" else 2)


def _measured(run_dir: Path) -> tuple[float | None, int]:
    """Pictures a second of an earlier part of this run, the median of its last lines, and the step it reached."""
    try:
        run = status.find(run_dir)[0]
    except UsageError:
        return None, 0
    speeds = [value for _, value in run.series("pictures_per_s")][-9:]
    return (median(speeds) if speeds else None), run.step
