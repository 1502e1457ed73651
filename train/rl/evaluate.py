"""What a policy draws of prompts that it is never trained on, without guidance and as it is served.

The same prompts, seeds and shapes at every evaluation. Beside the reward stand numbers that are not it, since a reward
can be hacked: how far pictures of one prompt lie apart, how sharp and how colourful they are, and a sheet to look at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from backend.model.autoencoder import AutoencoderKLFlux2
from backend.presets import Preset
from backend.types import Sampler
from train.batches.encoders import encode_images
from train.evals.verifier.verify import Expectation
from train.judge.panel import Panel, PicturesAsked
from train.losses.rewards import RewardRule, Verdict, reward
from train.rl.chance import pick, shuffled
from train.rl.config import RLConfig
from train.rl.prompts.prompt_set import Prompt, PromptSet
from train.rl.rollout import How, draw, grid_of, noise_seed, question_of
from train.run.batch import Grid, Loaded, padded

CELL, COLUMNS = 256, 4  # pixels of a picture on the sheet


def chosen(config: RLConfig, held: PromptSet) -> list[Prompt]:
    """The held-out prompts that are looked at; a function of the arguments."""
    by_id = {prompt.id: prompt for prompt in held.prompts}
    return [by_id[name] for name in shuffled(by_id, "evaluate", config.seed)[: config.evaluate.prompts]]


def evaluate(
    config: RLConfig,
    network: nn.Module,
    preset: Preset,
    prompts: Sequence[Prompt],
    texts: Callable[[Sequence[str]], list[Tensor]],
    expectations: Mapping[str, Expectation],
    panel: Panel,
) -> tuple[dict[str, float], Image.Image | None]:
    """(numbers by name, the sheet of the served guidance). Raises what drawing and judging raise."""
    served = config.evaluate.guidance if config.evaluate.guidance is not None else preset.guidance
    values: dict[str, float] = {}
    pictures: list[Image.Image] = []
    for guidance in dict.fromkeys((1.0, served)):
        how = How(
            steps=config.evaluate.steps or preset.steps, guidance=guidance, at_once=config.rollout.at_once,
            compute=config.machine.compute, sampler=Sampler.euler,
        )  # fmt: skip
        rows: list[PicturesAsked] = []
        pictures = []
        for prompt in prompts:
            grid = grid_of(pick(config.rollout.shapes(preset), "evaluate", config.seed, prompt.id))
            seeds = [noise_seed("evaluate", config.seed, prompt.id, i) for i in range(config.evaluate.seeds)]
            x0 = draw(network, texts([prompt.prompt])[0], grid, seeds, how)
            row = PicturesAsked(x0, grid, question_of(prompt, expectations), f"held out {prompt.id} at {guidance:g}")
            rows.append(panel.ask(row, pictures.append))
        found = _numbers(rows, panel.collect(rows), pictures, RewardRule(**vars(config.reward)))
        values |= {f"held_{name}_at_{guidance:g}": value for name, value in found.items()}
    return values, sheet(pictures[: config.evaluate.sheet])


def encoded(
    scenes: Sequence[tuple[str, Image.Image]],
    vae: AutoencoderKLFlux2,
    texts: Callable[[Sequence[str]], list[Tensor]],
    device: torch.device,
) -> list[tuple[Grid, Loaded]]:
    """Captioned pictures as the network sees them, each by itself."""
    out: list[tuple[Grid, Loaded]] = []
    for number, (words, picture) in enumerate(scenes):
        x0_1NC = encode_images(vae, np.array(picture.convert("RGB"))[None], device)
        text, mask = padded(texts([words]))
        out.append((grid_of(picture.size), Loaded(x0_1NC, text, mask, (f"scene {number}",))))
    return out


def _numbers(
    rows: Sequence[PicturesAsked],
    verdicts: Sequence[Sequence[Verdict]],
    pictures: Sequence[Image.Image],
    rule: RewardRule,
) -> dict[str, float]:
    each = [verdict for row in verdicts for verdict in row]
    rewards = [value for verdict in each if (value := reward(verdict, rule)) is not None]
    right = [reward(verdict, RewardRule(overall_weight=rule.overall_weight, all_hold=1.0)) for verdict in each]
    known = [value for value in right if value is not None]
    out = {"missing": float(len(each) - len(rewards))}
    if rewards:
        out |= {"reward": sum(rewards) / len(rewards), "right": sum(known) / len(known)}
    if spreads := [spread(row.x0_KNC) for row in rows if len(row.x0_KNC) > 1]:
        out["spread"] = sum(spreads) / len(spreads)
    looks = [look(picture) for picture in pictures]
    return out | {
        "sharpness": sum(s for s, _ in looks) / len(looks),
        "saturation": sum(c for _, c in looks) / len(looks),
    }


def spread(x0_KNC: Tensor) -> float:
    """Mean distance between two of a prompt's latents: root mean square over their elements. K is at least 2."""
    flat = x0_KNC.flatten(1).double()
    return float(torch.pdist(flat).mean()) / flat.shape[1] ** 0.5


def look(picture: Image.Image) -> tuple[float, float]:
    """(sharpness, saturation): mean step of the brightness between neighbours, mean of max - min of a pixel's colours;
    white is 1."""
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float64) / 255
    grey = pixels.mean(2)
    steps = np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()
    return float(steps) / 2, float((pixels.max(2) - pixels.min(2)).mean())


def sheet(pictures: Sequence[Image.Image]) -> Image.Image | None:
    """The pictures side by side, each within a square; None: there is none."""
    if not pictures:
        return None
    columns = min(COLUMNS, len(pictures))
    canvas = Image.new("RGB", (columns * CELL, -(-len(pictures) // columns) * CELL), "white")
    for place, picture in enumerate(pictures):
        small = picture.copy()
        small.thumbnail((CELL, CELL))
        canvas.paste(small, (place % columns * CELL, place // columns * CELL))
    return canvas
