"""A sheet of fixed prompts and seeds drawn with the weights of the moment: what to look at while training."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from backend import pipeline, sampling
from backend.model.autoencoder import AutoencoderKLFlux2
from backend.model.transformer import LensTransformer2DModel
from backend.params import ModelParams
from backend.pipeline import Grid, Networks, Progress, Sigmas, Texts
from backend.sampling import Velocity
from backend.text.harmony import encode_prompt
from backend.types import GenerationRequest
from train.batches.encoders import Frozen

STEPS = 20
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


def networks_of(
    model: LensTransformer2DModel, vae: AutoencoderKLFlux2, encode: Callable[[str], Tensor], device: torch.device
) -> Networks:
    """The networks of the moment for the pipeline's recipe: the transformer's own forward in bfloat16, the VAE in
    float32. `encode`: a prompt's features (1, L, T, F)."""

    def both(request: GenerationRequest) -> Texts:
        text = encode(request.prompt)
        return text, None if request.guidance == 1.0 else text[:, :0]

    def velocity(request: GenerationRequest, texts: Texts, grid: Grid, sigmas: Sigmas) -> Velocity:
        def guided(x: Tensor, sigma: float) -> Tensor:
            t = torch.full((1,), sigma, device=device)
            with torch.autocast(device.type, torch.bfloat16):
                conditional, *rest = [model(x, t, text, grid) for text in texts if text is not None]
                return sampling.guide(conditional, rest[0], request.guidance) if rest else conditional

        return guided

    return Networks(
        encode=both, velocity=velocity, decode=lambda x, grid: pipeline.decode(vae, x, grid, torch.float32),
        device=device, arithmetic="bfloat16",
    )  # fmt: skip


@torch.no_grad()
def draw(
    networks: Networks, prompt: str, *, seed: int, width: int, height: int, steps: int, guidance: float
) -> Image.Image:
    """One picture. Raises NumericsError."""
    request = GenerationRequest(
        prompt=prompt, model="", seeds=(seed,), width=width, height=height, steps=steps, guidance=guidance
    )
    (made,) = pipeline.draw(networks, request, Progress(device=networks.device))
    return made.image


def sheet(model: torch.nn.Module, frozen: Frozen, params: ModelParams, side: int, *, guidance: float) -> Image.Image:
    """The fixed prompts at `side` x `side`, each with its words beneath; `guidance`: what the model is used with."""
    assert isinstance(model, LensTransformer2DModel)
    device = next(model.parameters()).device

    def encode(prompt: str) -> Tensor:
        encoded = encode_prompt(frozen.tokenizer, params.text.template, prompt)
        ids = torch.tensor([encoded.ids], device=device)
        states = frozen.encoder.hidden_states(ids, params.dit.selected_layer_index)
        return torch.stack(states, 2)[:, encoded.prefix :]

    networks = networks_of(model, frozen.vae, encode, device)
    columns, caption = 6, 44
    rows = -(-len(PROMPTS) // columns)
    canvas = Image.new("RGB", (columns * side, rows * (side + caption)), "white")
    pen = ImageDraw.Draw(canvas)
    for i, prompt in enumerate(PROMPTS):
        x, y = i % columns * side, i // columns * (side + caption)
        picture = draw(networks, prompt, seed=i, width=side, height=side, steps=STEPS, guidance=guidance)
        canvas.paste(picture, (x, y))
        pen.multiline_text(
            (x + 2, y + side + 1), "\n".join(textwrap.wrap(prompt, side // 5)[:4]), fill="black", font_size=9
        )
    return canvas
