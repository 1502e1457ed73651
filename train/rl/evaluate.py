"""What a policy draws of prompts that it is never trained on, without guidance and as it is served.

The same prompts, seeds and shapes at every evaluation. Beside the reward stand numbers that are not it, since a reward
can be hacked: what a second judge says, how far pictures of one prompt lie apart, how sharp and how colourful they are,
and a sheet to look at. Each rank looks at its share of the prompts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

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
from train.rl import numbers
from train.rl.chance import pick, shuffled
from train.rl.config import RLConfig
from train.rl.prompts.prompt_set import Prompt, PromptSet
from train.rl.rollout import How, draw, grid_of, noise_seed, question_of
from train.run.batch import Grid, Loaded, padded
from train.run.distributed import Ranks

CELL, COLUMNS = 256, 4  # pixels of a picture on the sheet


@dataclass
class Looked:
    """One prompt's pictures, and what was said of them."""

    place: int  # of the prompt among those that are looked at
    category: str
    kinds: tuple[str, ...]  # of the verdicts' answers
    spread: float | None  # None: one picture has none
    looks: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    pictures: list[Image.Image] = field(default_factory=list[Image.Image])  # those of the sheet
    verdicts: list[Verdict] = field(default_factory=list[Verdict])
    control: list[Verdict] = field(default_factory=list[Verdict])  # of the judge whose scores are not the reward


@dataclass(frozen=True)
class Show:
    """What every evaluation draws and asks."""

    config: RLConfig
    preset: Preset
    prompts: Sequence[Prompt]
    texts: Callable[[Sequence[str]], list[Tensor]]
    expectations: Mapping[str, Expectation]
    panel: Panel
    control: Panel | None  # None: no second judge

    @property
    def served(self) -> float:
        """The guidance that the model is served with."""
        return self.preset.guidance if self.config.evaluate.guidance is None else self.config.evaluate.guidance


def chosen(config: RLConfig, held: PromptSet) -> list[Prompt]:
    """The held-out prompts that are looked at; a function of the arguments."""
    by_id = {prompt.id: prompt for prompt in held.prompts}
    return [by_id[name] for name in shuffled(by_id, "evaluate", config.seed)[: config.evaluate.prompts]]


def evaluate(show: Show, network: nn.Module, ranks: Ranks) -> tuple[dict[str, float], Image.Image | None]:
    """(numbers by name, the sheet of the served guidance), on every rank. Raises what drawing and judging raise."""
    values: dict[str, float] = {}
    seen: list[Looked] = []
    for guidance in dict.fromkeys((1.0, show.served)):
        with ranks.failing_together():
            mine = _look(show, network, guidance, ranks)
        seen = sorted((one for rank in ranks.gathered(mine) for one in rank), key=lambda one: one.place)
        found = _numbers(seen, RewardRule(**vars(show.config.reward)))
        values |= {f"held_{name}_at_{guidance:g}": value for name, value in found.items()}
    pictures = [picture for one in seen for picture in one.pictures]
    return values, sheet(pictures[: show.config.evaluate.sheet])


def _look(show: Show, network: nn.Module, guidance: float, ranks: Ranks) -> list[Looked]:
    """Draw this rank's prompts and have them judged."""
    config, evaluating = show.config, show.config.evaluate
    how = How(
        steps=evaluating.steps or show.preset.steps, guidance=guidance, at_once=config.rollout.at_once,
        compute=config.machine.compute, sampler=Sampler.euler,
    )  # fmt: skip
    seen: list[Looked] = []
    rows: list[PicturesAsked] = []
    others: list[PicturesAsked] = []
    for place, prompt in list(enumerate(show.prompts))[ranks.rank :: ranks.world]:
        grid = grid_of(pick(config.rollout.shapes(show.preset), "evaluate", config.seed, prompt.id))
        seeds = [noise_seed("evaluate", config.seed, prompt.id, i) for i in range(evaluating.seeds)]
        x0 = draw(network, show.texts([prompt.prompt])[0], grid, seeds, how)
        question = question_of(prompt, show.expectations)
        about = f"held out {prompt.id} at {guidance:g}"
        kinds = show.panel.journal.judge.kinds(question)
        one = Looked(place, prompt.category, kinds, numbers.spread(x0) if len(x0) > 1 else None)
        pictures: list[Image.Image] = []
        rows.append(show.panel.ask(PicturesAsked(x0, grid, question, about), pictures.append))
        if show.control is not None:
            others.append(show.control.ask(PicturesAsked(x0, grid, question, about)))
        one.looks = [numbers.look(picture) for picture in pictures]
        one.pictures = pictures[: max(0, evaluating.sheet - place * evaluating.seeds)]
        seen.append(one)
    for one, verdicts in zip(seen, show.panel.collect(rows), strict=True):
        one.verdicts = verdicts
    if show.control is not None:
        for one, verdicts in zip(seen, show.control.collect(others), strict=True):
            one.control = verdicts
    return seen


def _numbers(seen: Sequence[Looked], rule: RewardRule) -> dict[str, float]:
    """`right`: the share of pictures of which everything holds."""
    all_of_it = RewardRule(overall_weight=rule.overall_weight, all_hold=1.0)
    out: dict[str, float] = {}
    right: dict[str, list[float]] = defaultdict(list)
    rewards: list[float] = []
    for one in seen:
        for verdict in one.verdicts:
            value, whole = reward(verdict, rule), reward(verdict, all_of_it)
            if value is not None and whole is not None:
                rewards.append(value)
                right[one.category].append(whole)
    out["missing"] = float(sum(len(one.verdicts) for one in seen) - len(rewards))
    if rewards:
        out |= {"reward": _mean(rewards), "right": _mean([value for row in right.values() for value in row])}
        out |= {f"right_{name.replace(' ', '_')}": _mean(row) for name, row in sorted(right.items())}
        out |= numbers.by_kind([one.kinds for one in seen], [one.verdicts for one in seen])
    other = [value for one in seen for verdict in one.control if (value := reward(verdict, rule)) is not None]
    if other:
        out["control"] = _mean(other)
    if spreads := [one.spread for one in seen if one.spread is not None]:
        out["spread"] = _mean(spreads)
    looks = [look for one in seen for look in one.looks]
    return out | {"sharpness": _mean([s for s, _ in looks]), "saturation": _mean([c for _, c in looks])}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


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
