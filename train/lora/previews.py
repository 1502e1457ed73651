"""Pictures of the moment: a few captions at fixed seeds, each without guidance and with the model's own."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw

from backend.checkpoints.resolve import ModelFiles
from backend.loading import load_vae
from backend.model.transformer import LensTransformer2DModel
from backend.presets import Preset
from backend.sizes import parse_ratio, size_for
from train.batches.preview import draw, networks_of
from train.lora.config import LoraConfig
from train.lora.pictures import Folder
from train.lora.source import Kept

BENEATH = 44  # pixels for the words under a picture


@dataclass(frozen=True)
class PreviewRow:
    """One row of the sheet."""

    prompt: str
    seed: int
    width: int  # pixels
    height: int


def drawn_prompts(config: LoraConfig, folder: Folder, preset: Preset) -> tuple[PreviewRow, ...]:
    """`preview_prompt`, then captions of held-out pictures, then of others, in their own buckets; seeds 0, 1, 2, …"""
    if not config.previews:
        return ()
    rows: list[tuple[str, int, int]] = []
    if config.preview_prompt is not None:
        rows.append((config.preview_prompt, *size_for(parse_ratio("1:1"), config.bases_of(preset)[-1])))
    for picture in (*folder.held, *folder.training):
        if all(picture.caption != prompt for prompt, _, _ in rows):
            rows.append((picture.caption, picture.placed.width, picture.placed.height))
    return tuple(
        PreviewRow(prompt, i, width, height) for i, (prompt, width, height) in enumerate(rows[: config.previews])
    )


def sheet(model: LensTransformer2DModel, files: ModelFiles, kept: Kept, rows: Sequence[PreviewRow]) -> Image.Image:
    """A row a prompt: at guidance 1, and at the model's where it has another. Raises NumericsError."""
    preset = files.preset
    scales = list(dict.fromkeys((1.0, preset.guidance)))
    vae = load_vae(files, torch.float32, kept.device)  # read again each time: training needs the memory more
    texts = dict(zip([row.prompt for row in rows], kept.texts([row.prompt for row in rows]), strict=True))
    networks = networks_of(model, vae, lambda prompt: texts[prompt][None], kept.device)
    model.eval()
    wide = max(row.width for row in rows)
    canvas = Image.new("RGB", (len(scales) * wide, sum(row.height + BENEATH for row in rows)), "white")
    pen, y = ImageDraw.Draw(canvas), 0
    for row in rows:
        for column, guidance in enumerate(scales):
            picture = draw(
                networks, row.prompt, seed=row.seed, width=row.width, height=row.height, steps=preset.steps,
                guidance=guidance,
            )  # fmt: skip
            canvas.paste(picture, (column * wide, y))
            words = f"guidance {guidance:g}: {row.prompt}"
            lines = textwrap.wrap(words, max(8, wide // 5))[:4]
            pen.multiline_text((column * wide + 2, y + row.height + 1), "\n".join(lines), fill="black", font_size=9)
        y += row.height + BENEATH
    model.train()
    return canvas
