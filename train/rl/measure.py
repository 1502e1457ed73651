"""What an adapter made of a model, on prompts that no training saw: pictures of both from the same noise, in pairs.

The prompts of `lens eval nano`, as the model is served and without guidance, and beside the verdicts numbers that are
not the verifier's: the flow-matching loss of drawn scenes, how far pictures of a prompt lie apart, how sharp they are.
Every picture is a file in the folder; a run that is killed goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from backend import pipeline
from backend.checkpoints.resolve import ModelFiles, resolve_model
from backend.disk import make_folder
from backend.errors import FileError, UsageError
from backend.loading import load_transformer, load_vae
from backend.lora.own import transformer_sha256
from backend.model.autoencoder import AutoencoderKLFlux2
from backend.types import LoraUse, Sampler
from train.batches.texts import KeptTexts
from train.evals.nano import EvalComparison, EvalFolder, EvalReport, EvalResult, evaluate, seed_of
from train.evals.nano_prompts import NanoPrompt, fingerprint, prompts
from train.evals.verifier.verify import VERSION
from train.losses import flow
from train.rl.evaluate import encoded
from train.rl.numbers import look
from train.rl.prompts.drawn import captioned
from train.rl.rollout import How, draw, grid_of
from train.run.batch import Batch
from train.run.distributed import Ranks
from train.run.network import choose_attention
from train.run.step import transformer_losses
from train.run.validate import TIMES, at_all_times

BASE = "base"


@dataclass(frozen=True, kw_only=True)
class MeasurePlan:
    """What is compared, and how it is drawn."""

    model: str
    adapters: Mapping[str, LoraUse]  # by the names that the table gives them
    out: Path
    images: int = 3  # of a prompt
    limit: int | None = None  # prompts, from the kinds in turn; None: all
    guidances: tuple[float, ...] = ()  # empty: the served one, and 1
    steps: int | None = None  # None: as the model is served
    base: int | None = None  # pixels: side of a picture; None: the model's own
    scenes: int = 64  # drawn scenes, whose flow-matching loss is told
    seed: int = 0
    compute: Literal["bfloat16", "float32"] = "bfloat16"

    def __post_init__(self) -> None:
        if BASE in self.adapters:
            raise UsageError(f"an adapter cannot be called {BASE!r}, which is the model without one")
        if not self.adapters:
            raise UsageError("no adapter to measure", hint="--adapter RUN/lora.safetensors")


@dataclass
class Measured:
    """One model at one guidance."""

    report: EvalReport
    spread: float | None  # mean distance between two pictures of a prompt, root mean square, white is 1; None: one each
    sharpness: float
    saturation: float


@dataclass
class Measurements:
    """Everything that was measured."""

    at: dict[float, dict[str, Measured]] = field(default_factory=dict[float, dict[str, Measured]])  # guidance -> name
    losses: dict[str, list[float]] = field(default_factory=dict[str, list[float]])  # name -> of each scene

    def compared(self, guidance: float, name: str) -> EvalComparison:
        """The base against an adapter."""
        return EvalComparison.of(self.at[guidance][BASE].report, self.at[guidance][name].report)

    def loss_change(self, name: str) -> tuple[float, float]:
        """(mean difference of the scenes' losses to the base's, half of its 95 % interval)."""
        return paired(self.losses[BASE], self.losses[name])


def paired(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """(mean difference, half of its normal 95 % interval) of numbers that belong together; at least two."""
    each = [b - a for a, b in zip(before, after, strict=True)]
    return mean(each), 1.96 * stdev(each) / len(each) ** 0.5


def measure(plan: MeasurePlan, say: Callable[[str], None]) -> Measurements:
    """Draw, judge and count. Raises LensError."""
    files, device = resolve_model(plan.model), torch.device("cpu")
    chosen = prompts(limit=plan.limit)
    make_folder(plan.out)
    texts = KeptTexts(plan.out / "texts", files, device, say)
    scenes = captioned(plan.scenes, plan.base or files.preset.default_base, plan.seed)
    texts.fill([*(prompt.brief for prompt in chosen), *(words for words, _ in scenes)])
    vae = load_vae(files, torch.float32, device)
    held = encoded(scenes, vae, texts.read, device)
    losses = transformer_losses(flow.losses, Ranks(device), plan.compute)
    found = Measurements()
    guidances = plan.guidances or tuple(dict.fromkeys((files.preset.guidance, 1.0)))
    for name, use in ((BASE, None), *plan.adapters.items()):
        network = load_transformer(files, torch.float32, device, () if use is None else (use,))
        choose_attention(network, device)
        if held:
            found.losses[name] = _scene_losses(partial(losses, network), at_all_times(held, device, TIMES))
        for guidance in guidances:
            say(f"{name} at guidance {guidance:g}: {len(chosen) * plan.images:,} pictures")
            found.at.setdefault(guidance, {})[name] = _at(plan, files, network, use, chosen, guidance, texts, vae)
    return found


@torch.no_grad()
def _scene_losses(losses: Callable[[Batch], Tensor], batches: Iterable[Batch]) -> list[float]:
    """One number a scene: all its times are one batch."""
    return [float(losses(batch).mean()) for batch in batches]


def _at(
    plan: MeasurePlan, files: ModelFiles, network: nn.Module, use: LoraUse | None, chosen: Sequence[NanoPrompt],
    guidance: float, texts: KeptTexts, vae: AutoencoderKLFlux2,
) -> Measured:  # fmt: skip
    """Draw what is not in the folder of this model and guidance, and count all of it."""
    name = BASE if use is None else next(key for key, value in plan.adapters.items() if value is use)
    how = How(
        steps=plan.steps or files.preset.steps, guidance=guidance, at_once=plan.images, compute=plan.compute,
        sampler=Sampler.euler,
    )  # fmt: skip
    side = plan.base or files.preset.default_base
    folder = EvalFolder(plan.out / f"{name}-guidance-{guidance:g}")
    return draw_judged(folder, files, network, use, chosen, how, texts, vae, side=side, seed=plan.seed)


def draw_judged(
    folder: EvalFolder, files: ModelFiles, network: nn.Module, use: LoraUse | None, chosen: Sequence[NanoPrompt],
    how: How, texts: KeptTexts, vae: AutoencoderKLFlux2, *, side: int, seed: int = 0,
) -> Measured:  # fmt: skip
    """Draw `how.at_once` pictures of each prompt that are not in the folder, judge them, and count all of it.

    `network` is the model's with `use` in it. Raises UsageError for a folder of other settings, and FileError.
    """
    done = folder.open(
        {
            "model": files.name, "weights": transformer_sha256(files), "fingerprint": fingerprint(),
            "verifier": VERSION, "steps": how.steps, "guidance": how.guidance, "side": side, "seed": seed,
            "compute": how.compute, "lora": None if use is None else [use.sha256, use.scale],
        }
    )  # fmt: skip
    by_brief = {prompt.brief: prompt for prompt in chosen}
    drawn: dict[int, Image.Image] = {}  # the pictures of the prompt under way, by their seed

    def generate(words: str, number: int) -> Image.Image:
        if number not in drawn:
            drawn.clear()
            seeds = [seed_of(by_brief[words], index, seed) for index in range(how.at_once)]
            x0 = draw(network, texts.read([words])[0], grid_of((side, side)), seeds, how)
            for one, latent in zip(seeds, x0.split(1), strict=True):
                with torch.no_grad():
                    pixels = pipeline.decode(vae, latent, grid_of((side, side)), torch.float32)
                drawn[one] = pipeline.to_image(pixels)
        return drawn[number]

    report = evaluate(generate, chosen, images_per_prompt=how.at_once, seed=seed, done=done, on_result=folder.add)
    return count(folder, report)


def count(folder: EvalFolder, report: EvalReport) -> Measured:
    """Numbers of the pictures on the disk, whose results are in the report. Raises FileError."""
    spreads: list[float] = []
    looks: list[tuple[float, float]] = []
    by_prompt: dict[str, list[EvalResult]] = {}
    for result in report.results:
        by_prompt.setdefault(result.id, []).append(result)
    for results in by_prompt.values():
        pictures = [_opened(folder.picture(result)) for result in results]
        looks += [look(picture) for picture in pictures]
        pixels = [np.asarray(picture, dtype=np.float64) / 255 for picture in pictures]
        spreads += [float(np.sqrt(np.square(a - b).mean())) for a, b in combinations(pixels, 2)]
    sharpness, saturation = (mean(column) for column in zip(*looks, strict=True))
    return Measured(report, mean(spreads) if spreads else None, sharpness, saturation)


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path).convert("RGB")
    except OSError as error:
        raise FileError(f"{path}: {error}", hint="delete the folder, or use another --out") from error
