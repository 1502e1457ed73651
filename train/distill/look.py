"""Look at the student: draw held-out prompts as it is served, measure them, judge them where a rule can, show them.

All ranks draw everything, since sharded networks need them all; what they find is the first one's.

Legend: K pictures of a prompt, N image tokens, C packed channels; L text tokens, T text-encoder layers, F features.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from backend import pipeline, sampling
from backend.checkpoints.resolve import ModelFiles
from backend.denoising import latents
from backend.errors import NumericsError
from backend.loading import load_vae
from backend.sizes import GRID
from train.distill.config import DistillConfig
from train.distill.pictures import Shown
from train.distill.update import Asked, Learners, Passes
from train.distill.watch import compared
from train.evals.verifier.verify import verify
from train.losses import dmd
from train.losses.sums import clean, column
from train.rl.numbers import look as look_of
from train.run.batch import Grid

LEVELS = (0.25, 0.5, 0.75)  # at which the fake model's loss on fresh pictures is taken
BENEATH = 30  # pixels for the words under a row


@dataclass
class Gallery:
    """The prompts that are looked at, and the teacher's pictures of them."""

    config: DistillConfig
    files: ModelFiles
    shown: Sequence[Shown]
    texts: Sequence[Tensor]  # (L, T, F) of each
    guidance: float  # that the teacher is served with
    teacher: Sequence[Tensor] = ()  # (K, N, C) of each prompt, on the CPU; (): not drawn yet

    def noise(self, place: int) -> Tensor:
        """(K, N, C): the same at every look, for student and teacher."""
        seeds = range(self.config.watch.seeds)
        grid = self.shown[place].grid
        return torch.cat([latents.noise(1000 * place + seed, *grid) for seed in seeds])


@torch.no_grad()
def draw(
    passes: Passes, network: nn.Module, text_LTF: Tensor, noise_KNC: Tensor, grid: Grid, steps: int, guidance: float
) -> Tensor:
    """(K, N, C) on the CPU, along inference's schedule. Raises NumericsError."""
    device = passes.ranks.device
    rows: list[Tensor] = []
    size = passes.config.machine.micro_batch or 8
    for start in range(0, len(noise_KNC), size):
        x = noise_KNC[start : start + size].to(device)
        text = text_LTF.to(device)[None].expand(len(x), *text_LTF.shape)
        velocity = passes.guided(network, Asked(text, None, grid), guidance)
        rows.append(sampling.denoise(velocity, x, sampling.schedule(x.shape[1], steps)).cpu())
    x0 = torch.cat(rows)
    if not bool(torch.isfinite(x0).all()):
        raise NumericsError("a latent of a held-out prompt is not finite")
    return x0


def draw_real(
    passes: Passes, network: nn.Module, texts: Sequence[Tensor], grid: Grid, seeds: Sequence[int], steps: int,
    guidance: float,
) -> list[Tensor]:  # fmt: skip
    """Teacher-made pictures that count as real: one a text, (N, C)."""
    pairs = zip(texts, seeds, strict=True)
    return [draw(passes, network, t, latents.noise(seed, *grid), grid, steps, guidance)[0] for t, seed in pairs]


def of_teacher(passes: Passes, learners: Learners, gallery: Gallery) -> None:
    """Draw the teacher's pictures of all prompts, as it is served."""
    steps = gallery.files.preset.steps if not gallery.files.preset.distilled else 20
    with learners.roles.as_("teacher") as network:
        gallery.teacher = [
            draw(passes, network, text, gallery.noise(i), one.grid, steps, gallery.guidance)
            for i, (one, text) in enumerate(zip(gallery.shown, gallery.texts, strict=True))
        ]


def of_student(passes: Passes, learners: Learners, gallery: Gallery) -> list[Tensor]:
    """The student's pictures of all prompts: its steps, no guidance; averaged weights where there are such."""
    with learners.student.shown(), learners.roles.as_("student") as network:
        return [
            draw(passes, network, text, gallery.noise(i), one.grid, gallery.config.grid_steps, 1.0)
            for i, (one, text) in enumerate(zip(gallery.shown, gallery.texts, strict=True))
        ]


@torch.no_grad()
def measure(passes: Passes, learners: Learners, gallery: Gallery, drawn: Sequence[Tensor]) -> dict[str, float]:
    """All numbers of the student's pictures, the same on every rank. `score` decides which weights were the best."""
    numbers = compared(drawn, gallery.teacher)
    losses = {role: 0.0 for role in ("fake", "teacher")}
    gap = 0.0
    chosen = list(range(0, len(drawn), max(1, len(drawn) // 8)))
    for place in chosen:
        x0, one = drawn[place].to(passes.ranks.device), gallery.shown[place]
        text = gallery.texts[place].to(x0.device)[None].expand(len(x0), *gallery.texts[place].shape)
        generator = torch.Generator().manual_seed(place)
        for level in LEVELS:
            eps = torch.randn(x0.shape, generator=generator).to(x0.device)
            t_B = torch.full((len(x0),), level, device=x0.device)
            x, said = (1 - level) * x0 + level * eps, dict[str, Tensor]()
            for role in ("fake", "teacher"):
                with learners.roles.as_(role) as network:
                    said[role] = passes.velocity(network, x, t_B, Asked(text, None, one.grid))
                losses[role] += float(dmd.fake_losses(said[role], x0, eps).mean()) / len(LEVELS) / len(chosen)
            gap += float(dmd.relative_gap(said["teacher"], said["fake"]).mean()) / len(LEVELS) / len(chosen)
    numbers |= {"fresh_fake_loss": losses["fake"], "fresh_teacher_loss": losses["teacher"], "fresh_gap": gap}
    numbers["fake_ratio"] = losses["fake"] / max(losses["teacher"], 1e-12)
    numbers |= _judged(passes, gallery, drawn)
    numbers["score"] = numbers.get("right", -numbers["distance"])
    return passes.ranks.gathered(numbers)[0]


def _judged(passes: Passes, gallery: Gallery, drawn: Sequence[Tensor]) -> dict[str, float]:
    """Share of right pictures where rules know what they must hold, and how they look. On the first rank."""
    if not passes.ranks.first or not all(one.expectation for one in gallery.shown):
        return {}
    vae = load_vae(gallery.files, torch.float32, passes.ranks.device)  # read anew: training needs the memory more
    right, looks = list[bool](), list[tuple[float, float]]()
    for one, x0_KNC in zip(gallery.shown, drawn, strict=True):
        for x0_NC in x0_KNC:
            picture = _decoded(vae, x0_NC, one.grid, passes.ranks.device)
            assert one.expectation is not None
            right.append(verify(picture, one.expectation).right)
            looks.append(look_of(picture))
    count = len(looks)
    return {
        "right": sum(right) / count,
        "sharpness": sum(sharp for sharp, _ in looks) / count,
        "colourfulness": sum(colour for _, colour in looks) / count,
    }


def _decoded(vae: object, x0_NC: Tensor, grid: Grid, device: torch.device) -> Image.Image:
    with torch.no_grad():
        pixels = pipeline.decode(vae, x0_NC[None].to(device), grid, torch.float32)  # pyright: ignore[reportArgumentType]
    return pipeline.to_image(pixels)


@torch.no_grad()
def sheet(passes: Passes, learners: Learners, gallery: Gallery, drawn: Sequence[Tensor]) -> Image.Image | None:
    """Rows of four: the teacher's picture, the student's, and what teacher (real) and fake model make of the student's
    picture under noise. Where real and fake differ, the student is told to move. All ranks must call; the first has it.
    """
    count, level = min(passes.config.watch.preview, len(gallery.shown)), passes.config.watch.level
    rows: list[list[Tensor]] = []
    for place in range(count):
        x0, one = drawn[place][:1].to(passes.ranks.device), gallery.shown[place]
        eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(place)).to(x0.device)
        t_B = torch.full((1,), level, device=x0.device)
        x = (1 - column(t_B, x0)) * x0 + column(t_B, x0) * eps
        asked = Asked(gallery.texts[place].to(x0.device)[None], None, one.grid)
        row = [gallery.teacher[place][0], drawn[place][0]]
        for role in ("teacher", "fake"):
            with learners.roles.as_(role) as network:
                row.append(clean(x, passes.velocity(network, x, t_B, asked), t_B)[0].cpu())
        rows.append(row)
    if not rows or not passes.ranks.first:
        return None
    vae, device = load_vae(gallery.files, torch.float32, passes.ranks.device), passes.ranks.device
    pictures = [[_decoded(vae, x, gallery.shown[i].grid, device) for x in row] for i, row in enumerate(rows)]
    return _canvas(pictures, [one.prompt for one in gallery.shown[:count]], level)


def _canvas(pictures: Sequence[Sequence[Image.Image]], prompts: Sequence[str], level: float) -> Image.Image:
    side = max(GRID * 4, *(picture.height for row in pictures for picture in row))
    wide = max(picture.width for row in pictures for picture in row)
    titles = ("teacher", "student", f"real at {level:g}", f"fake at {level:g}")
    canvas = Image.new("RGB", (len(titles) * wide, BENEATH + len(pictures) * (side + BENEATH)), "white")
    pen = ImageDraw.Draw(canvas)
    for column_, title in enumerate(titles):
        pen.text((column_ * wide + 2, 8), title, fill="black")
    for number, (row, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        y = BENEATH + number * (side + BENEATH)
        for column_, picture in enumerate(row):
            canvas.paste(picture, (column_ * wide, y))
        pen.multiline_text(
            (2, y + side + 1), "\n".join(textwrap.wrap(prompt, max(16, 4 * wide // 6))[:2]), fill="black"
        )
    return canvas
