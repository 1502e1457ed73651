"""Previews: the estimate that is shown, and the matrix that shows it.

Why it can be trusted: the estimates are worked out by hand for a velocity that is known, the fit is compared with
`numpy.linalg.lstsq` over all pairs at once, and the shipped table with drawn scenes that the fit did not see.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from backend import pipeline, sampling
from backend.checkpoints.resolve import resolve_model
from backend.denoising import latents
from backend.denoising.preview import (
    CELLS,
    encoder_key,
    find_projection,
    no_projection,
    read_projection,
)
from backend.errors import CheckpointError, FileError
from backend.events import Event, PreviewMade, StepDone
from backend.loading import load_vae
from backend.model.autoencoder import AutoencoderKLFlux2, build_vae, set_latent_statistics
from backend.types import GenerationRequest, Preview
from tests.backend import tiny_weights as tiny
from train.nano import projection as fitted

CPU = torch.device("cpu")
REQUEST = GenerationRequest(prompt="x", model="", seeds=(3,), width=48, height=64, steps=3, guidance=1.0)


def events_of(preview: Preview) -> tuple[list[Event], list[Tensor], bytes]:
    """What is told while one picture is drawn along v = x sigma; every latent that was shown; its pixels."""
    seen, shown = list[Event](), list[Tensor]()

    def project(x: Tensor, grid: pipeline.Grid) -> Image.Image:
        shown.append(x)
        return Image.new("RGB", (grid[1] * CELLS, grid[0] * CELLS))

    def decode(x: Tensor, grid: pipeline.Grid) -> Tensor:
        shown.append(x)
        return torch.full((1, 3, 16 * grid[0], 16 * grid[1]), 0.2)

    networks = pipeline.Networks(
        encode=lambda request: (torch.ones(1, 2, 1, 3), None),
        velocity=lambda request, texts, grid, sigmas: lambda x, sigma: x * sigma,
        decode=decode, device=CPU, arithmetic="float32", project=project,
    )  # fmt: skip
    (made,) = pipeline.draw(networks, replace(REQUEST, preview=preview), pipeline.Progress(seen.append))
    return seen, shown, made.image.tobytes()


@pytest.mark.parametrize("preview", [Preview.proj, Preview.vae])
def test_what_is_shown_is_the_estimate_of_the_end(preview: Preview) -> None:
    """x0 = x - sigma v of every step but the last, which the picture itself follows."""
    events, shown, _ = events_of(preview)
    x, wanted = torch.randn(1, 12, 128, generator=torch.Generator().manual_seed(3)), list[Tensor]()
    sigmas = sampling.schedule(12, 3)
    for sigma, following in pairwise(sigmas):
        wanted.append(x - sigma * (x * sigma))
        x = x + (following - sigma) * (x * sigma)
    for got, right in zip(shown, wanted[:2], strict=False):
        assert torch.allclose(got, right, atol=1e-6)
    told = [event for event in events if isinstance(event, StepDone | PreviewMade)]
    assert [type(event).__name__ for event in told] == ["StepDone", "PreviewMade"] * 2 + ["StepDone"]
    made = [event for event in told if isinstance(event, PreviewMade)]
    assert [(event.image, event.step, event.total) for event in made] == [(0, 1, 3), (0, 2, 3)]
    assert made[0].picture.size == ((12, 16) if preview is Preview.proj else (48, 64))


def test_a_preview_changes_no_pixel() -> None:
    assert events_of(Preview.off)[2] == events_of(Preview.proj)[2] == events_of(Preview.vae)[2]
    assert not [event for event in events_of(Preview.off)[0] if isinstance(event, PreviewMade)]


# ---------------------------------------------------------------------------------------------------------- projections


@pytest.fixture(scope="module")
def small() -> AutoencoderKLFlux2:
    torch.manual_seed(1)
    return build_vae(tiny.VAE)


def pictures(count: int, side: int = 64) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(2)
    return [rng.integers(0, 256, (1, side, side, 3), dtype=np.uint8) for _ in range(count)]


def test_the_fit_is_least_squares(small: AutoencoderKLFlux2) -> None:
    """Against numpy over all pairs at once; and the error it states is numpy's residual."""
    many = pictures(40)
    projection = fitted.fit(small, many)
    tokens, colours = (torch.cat(part).numpy() for part in zip(*(fitted.pairs(small, p) for p in many), strict=True))
    solved, *_ = np.linalg.lstsq(tokens, colours, rcond=None)
    table = torch.cat([projection.weight_CK, projection.bias_K[None]]).numpy()
    assert np.allclose(tokens @ table, tokens @ solved, atol=1e-4)
    assert fitted.error(projection, small, many) == pytest.approx(
        float(np.sqrt(np.mean((tokens @ solved - colours) ** 2)) * 127.5), rel=1e-4
    )


def test_the_cells_of_a_token_lie_where_its_pixels_do(small: AutoencoderKLFlux2) -> None:
    """Colours go through the fit's order of numbers and back through the picture's: a box-reduced picture."""
    image = pictures(1)[0]
    _, colours = fitted.pairs(small, image)
    eye = fitted.Projection(torch.eye(CELLS * CELLS * 3), torch.zeros(CELLS * CELLS * 3))
    shown = np.asarray(eye.picture(colours.float()[None], 4, 4)).astype(int)
    assert np.abs(shown - np.asarray(Image.fromarray(image[0]).reduce(4)).astype(int)).max() <= 1


def test_too_few_pictures_are_refused(small: AutoencoderKLFlux2) -> None:
    with pytest.raises(FileError, match="too few"):
        fitted.fit(small, pictures(2))


def test_lens_nano_has_one(tmp_path: Path) -> None:
    """Scenes that were not fitted: as near as the fit said (12.6 levels), where the mean colour alone is 40 away."""
    vae = load_vae(resolve_model("nano"), torch.float32, CPU)
    projection = find_projection(vae, CPU)
    assert projection is not None
    (images,) = fitted.scenes(7_000, 7_001)
    assert fitted.error(projection, vae, [images]) < 20 < float(images.std())
    exact = encoder_key(vae)
    assert encoder_key(vae.bfloat16()) == exact


def test_an_encoder_without_one(small: AutoencoderKLFlux2) -> None:
    assert find_projection(small, CPU) is None
    assert "projection" in no_projection(small) and encoder_key(small) in no_projection(small)
    before = encoder_key(small)
    set_latent_statistics(small, torch.full((latents.PACKED,), 0.5), torch.ones(latents.PACKED))
    assert encoder_key(small) != before


def test_a_damaged_table(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"weight": torch.zeros(3, 4), "bias": torch.zeros(4)}, path)
    with pytest.raises(CheckpointError, match="has the tensors"):
        read_projection(path, CPU)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match="no projection that can be read"):
        read_projection(path, CPU)
