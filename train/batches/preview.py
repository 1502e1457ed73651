"""A sheet of fixed prompts and seeds drawn with the weights of the moment: what to look at while training."""

from __future__ import annotations

import textwrap

import torch
from PIL import Image, ImageDraw

from backend import latents, sampling
from backend.model.autoencoder import AutoencoderKLFlux2
from backend.model.transformer import LensTransformer2DModel
from backend.params import ModelParams
from backend.pipeline import decode
from backend.sizes import GRID
from backend.text.harmony import encode_prompt
from train.batches.scenes import Frozen

PROMPTS = (
    "three red balloons over a green hill",
    "a blue car",
    "a yellow star to the left of a purple house",
    'a red sign that says "OPEN"',
    "a pink cat on a snowy field at night",
    "a green apple above a brown book",
    "four orange fish in the sea",
    "a white ghost inside a blue ring",
    "A cartoon with bold dark outlines of a large red rocket. The rocket is large and red, with a round window "
    "and a small flame, and it sits in the middle of the picture. Behind, there is a starry night sky above a "
    "sandy desert with dunes. Nothing else is in the picture.",
    "A flat illustration showing a turquoise umbrella left of a small yellow duck. Everything is set on a plain "
    "pale pink background. The umbrella is medium-sized and turquoise, with a curved wooden handle, placed on the "
    "left side. The duck is small and yellow, swimming with a yellow beak, and it is on the right side.",
    "A softly shaded drawing of two purple mushrooms. The two mushrooms are medium-sized and purple, each with "
    "white dots on its cap, standing side by side in a row. There are exactly two mushrooms. The background shows "
    "a clear blue sky over a green meadow with tufts of grass.",
    "A paper cut-out picture of a black crown on top of a gray robot. The background is plain cream. The crown is "
    "medium-sized and black, with three points. The robot is medium-sized and gray, with a square head and an "
    "antenna.",
)


@torch.no_grad()
def draw(
    model: torch.nn.Module, frozen: Frozen, params: ModelParams, prompt: str, *, seed: int, width: int, height: int,
    steps: int = 20, guidance: float,
) -> Image.Image:  # fmt: skip
    """One picture with the networks in memory; the pipeline's recipe without its files."""
    assert isinstance(model, LensTransformer2DModel)
    device = next(model.parameters()).device
    encoded = encode_prompt(frozen.tokenizer, params.text.template, prompt)
    ids = torch.tensor([encoded.ids], device=device)
    text = torch.stack(frozen.encoder.hidden_states(ids, params.dit.selected_layer_index), 2)[:, encoded.prefix :]
    return draw_encoded(
        model, frozen.vae, text, seed=seed, width=width, height=height, steps=steps, guidance=guidance
    )  # fmt: skip


@torch.no_grad()
def draw_encoded(
    model: LensTransformer2DModel, vae: AutoencoderKLFlux2, text_1LTF: torch.Tensor, *, seed: int, width: int,
    height: int, steps: int, guidance: float,
) -> Image.Image:  # fmt: skip
    """One picture of features."""
    device = text_1LTF.device
    h, w = height // GRID, width // GRID

    def velocity(x: torch.Tensor, sigma: float) -> torch.Tensor:
        t = torch.full((1,), sigma, device=device)
        with torch.autocast(device.type, torch.bfloat16):
            c = model(x, t, text_1LTF, (h, w))
            if guidance == 1.0:
                return c
            return sampling.guide(c, model(x, t, text_1LTF[:, :0], (h, w)), guidance)

    x = sampling.denoise(velocity, latents.noise(seed, h, w).to(device), sampling.schedule(h * w, steps))
    return decode(vae, x, h, w, torch.float32)


def sheet(model: torch.nn.Module, frozen: Frozen, params: ModelParams, side: int, *, guidance: float) -> Image.Image:
    """The fixed prompts at `side` x `side`, each with its words beneath; `guidance`: what the model is used with."""
    columns, caption = 6, 44
    rows = -(-len(PROMPTS) // columns)
    canvas = Image.new("RGB", (columns * side, rows * (side + caption)), "white")
    pen = ImageDraw.Draw(canvas)
    for i, prompt in enumerate(PROMPTS):
        x, y = i % columns * side, i // columns * (side + caption)
        canvas.paste(draw(model, frozen, params, prompt, seed=i, width=side, height=side, guidance=guidance), (x, y))
        pen.multiline_text(
            (x + 2, y + side + 1), "\n".join(textwrap.wrap(prompt, side // 5)[:4]), fill="black", font_size=9
        )
    return canvas
