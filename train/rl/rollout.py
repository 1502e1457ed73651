"""Draw the groups of an epoch from the old policy; a group that is finished is a file.

A group is a function of (seed, epoch, its place, the old policy): what is on the disk and says that it was made from
these is taken, everything else is drawn. So a run that is killed here draws only what is missing.

Legend: K pictures of a group, N image tokens, C packed channels; L text tokens, T text-encoder layers, F features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from backend import sampling
from backend.denoising import latents
from backend.disk import make_folder, write_atomic
from backend.errors import NumericsError
from backend.presets import Preset
from backend.sizes import GRID
from backend.types import Sampler
from train.evals.verifier.verify import Expectation
from train.judge.judge import Question
from train.rl.chance import pick, unit
from train.rl.config import RLConfig
from train.rl.prompts.prompt_set import Prompt, PromptSet
from train.run.batch import Grid

VERSION = 1  # one more whenever the same policy draws other pictures


@dataclass(frozen=True)
class PromptGroup:
    """One prompt's pictures of an epoch, before they are drawn."""

    place: int  # among the epoch's groups
    prompt: Prompt
    grid: Grid
    seeds: tuple[int, ...]  # of the noise, a picture each
    guidance: float


def plan(config: RLConfig, preset: Preset, prompts: PromptSet, epoch: int) -> list[PromptGroup]:
    """The groups of epoch `epoch` (from 0); a function of the arguments."""
    shapes, rollout = config.rollout.shapes(preset), config.rollout
    chosen = prompts.epoch(config.seed, epoch, rollout.groups)
    return [
        PromptGroup(
            place,
            prompt,
            grid_of(pick(shapes, "shape", config.seed, epoch, place)),
            tuple(noise_seed("rollout", config.seed, epoch, place, index) for index in range(rollout.size)),
            # From epoch to epoch shifted by one, for categories lie in the groups at distances of their own.
            rollout.guidances[(place + epoch) % len(rollout.guidances)],
        )
        for place, prompt in enumerate(chosen)
    ]


def question_of(prompt: Prompt, expectations: Mapping[str, Expectation]) -> Question:
    """What is asked about a prompt's pictures."""
    own = [rubric for rubric in prompt.rubrics if rubric.kind != "global"]
    overall = next((rubric.text for rubric in prompt.rubrics if rubric.kind == "global"), None)
    return Question(
        prompt=prompt.prompt,
        rubrics=tuple(rubric.text for rubric in own),
        kinds=tuple(rubric.kind for rubric in own),
        overall=overall,
        expectation=expectations.get(prompt.id),
    )


def grid_of(size: tuple[int, int]) -> Grid:
    """(width, height) in pixels -> height and width in tokens."""
    width, height = size
    return height // GRID, width // GRID


def noise_seed(*names: object) -> int:
    """A seed of 56 bits that is a function of what it is for."""
    return int(unit(*names) * 2**56)


@dataclass(frozen=True)
class How:
    """How pictures are drawn: the field `sampler` is the second-order solver of the rollout."""

    steps: int
    guidance: float
    at_once: int  # pictures of one pass
    compute: str  # bfloat16 or float32
    sampler: Sampler = Sampler.dpmpp_2m


def sigmas_of(grid: Grid, steps: int) -> tuple[float, ...]:
    """The schedule that inference draws this shape with."""
    return sampling.schedule(grid[0] * grid[1], steps)


@torch.no_grad()
def draw(network: nn.Module, text_LTF: Tensor, grid: Grid, seeds: Sequence[int], how: How) -> Tensor:
    """(K, N, C) latents in float32 on the CPU, by whatever policy the network is. Raises NumericsError."""
    device, sigmas = text_LTF.device, sigmas_of(grid, how.steps)
    rows: list[Tensor] = []
    for start in range(0, len(seeds), how.at_once):
        noise = torch.cat([latents.noise(seed, *grid) for seed in seeds[start : start + how.at_once]]).to(device)
        text = text_LTF[None].expand(len(noise), *text_LTF.shape)

        def velocity(x: Tensor, sigma: float, text: Tensor = text) -> Tensor:
            t_B = torch.full((len(x),), sigma, device=x.device)
            return guided(network, x, t_B, text, None, grid, how.guidance, how.compute)

        rows.append(sampling.denoise(velocity, noise, sigmas, sampler=how.sampler).cpu())
    x0 = torch.cat(rows)
    if not bool(torch.isfinite(x0).all()):
        raise NumericsError("a rollout drew a latent that is not finite")
    return x0


def guided(
    network: nn.Module,
    x_BNC: Tensor,
    t_B: Tensor,
    text_BLTF: Tensor,
    mask_BL: Tensor | None,
    grid: Grid,
    guidance: float,
    compute: str,
) -> Tensor:
    """(B, N, C) velocity; guided as inference does it, against the branch without text, where `guidance` is not 1."""
    # Each pass has an autocast of its own: the weights it has cast are forgotten with it, as they may be exchanged.
    with torch.autocast(x_BNC.device.type, torch.bfloat16, enabled=compute == "bfloat16"):
        conditional = network(x_BNC, t_B, text_BLTF, grid, mask_BL)
    if guidance == 1.0:
        return conditional
    with torch.autocast(x_BNC.device.type, torch.bfloat16, enabled=compute == "bfloat16"):
        unconditional = network(x_BNC, t_B, text_BLTF[:, :0], grid)
    return sampling.guide(conditional, unconditional, guidance)


def folder_of(run_dir: Path, epoch: int) -> Path:
    """Where the groups of an epoch lie until it is over."""
    return run_dir / "rollouts" / f"epoch-{epoch:06d}"


class Shelf:
    """The finished groups of one epoch on the disk."""

    def __init__(self, run_dir: Path, epoch: int, made_by: object) -> None:
        """`made_by`: what all groups of the epoch are made from, as JSON holds it."""
        self.folder, self.made_by = folder_of(run_dir, epoch), made_by

    def get(self, group: PromptGroup, make: Callable[[], Tensor]) -> Tensor:
        """(K, N, C): as it lies there, or made and put there. Raises FileError and what `make` raises."""
        path, made_from = self.folder / f"group-{group.place:04d}.safetensors", self._made_from(group)
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("made_from") == made_from:
                    return file.get_tensor("x0")
        except (OSError, SafetensorError):  # not there, or cut short by a full disk: it is drawn
            pass
        x0 = make()
        make_folder(self.folder)
        write_atomic(path, save({"x0": x0}, metadata={"made_from": made_from, "prompt": group.prompt.id}))
        return x0

    def _made_from(self, group: PromptGroup) -> str:
        said = [VERSION, self.made_by, group.prompt.prompt, group.grid, group.seeds, group.guidance]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def made_by(config: RLConfig, old_sha256: str, base_sha256: str) -> dict[str, object]:
    """What decides the pictures of an epoch, beside its prompts and seeds."""
    rollout = {key: value for key, value in asdict(config.rollout).items() if key in ("steps", "at_once")}
    return {"policy": old_sha256, "base": base_sha256, "compute": config.machine.compute, **rollout}
