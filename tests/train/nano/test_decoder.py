"""The decoder's own training on shapes that take seconds. Trusted because what must not change is compared bit by bit,
and because a resumed run is held against one that was never stopped."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backend.checkpoints.resolve import resolve_model
from backend.loading import load_vae
from train.nano import decoder
from train.nano.decoder import DecoderConfig
from train.world.drawing import render
from train.world.scenes import Background, sample_scene

SMALL = DecoderConfig(run_dir=Path(), steps=2, pairs=2, batch=1, workers=0, save_every=1, measure_every=100)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "measure", lambda vae, scenes: {"psnr": 0.0})
    monkeypatch.setattr(decoder, "draw_batch", _small_batch)


def _small_batch(step: int, *, config: DecoderConfig) -> np.ndarray:
    return np.random.default_rng(step).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)


@pytest.mark.nano
def test_only_the_decoder_moves_and_a_killed_run_goes_on_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_vae(resolve_model("nano"), torch.float32, "cpu").state_dict()
    whole = decoder.run(replace(SMALL, run_dir=tmp_path / "whole")).state_dict()
    with monkeypatch.context() as patched:
        made = decoder._batch  # pyright: ignore[reportPrivateUsage]

        def broken(step: int, *rest: Any) -> Any:
            if step == 1:
                raise RuntimeError("killed")
            return made(step, *rest)

        patched.setattr(decoder, "_batch", broken)
        with pytest.raises(RuntimeError, match="killed"):
            decoder.run(replace(SMALL, run_dir=tmp_path / "cut"))
    resumed = decoder.run(replace(SMALL, run_dir=tmp_path / "cut")).state_dict()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    moved = {name for name in before if not torch.equal(before[name], whole[name])}
    assert moved and all(name.startswith(("decoder.", "post_quant_conv.")) for name in moved)


def test_white_paper_is_pure_white() -> None:
    scene = replace(sample_scene(random.Random(0)), background=Background(plain="white"))
    corners = np.array(render(scene, 64, 64))[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 255).all()


def test_flat_places_are_told_and_repeated() -> None:
    """Cells with all their neighbours of one colour, in a picture whose only other colour is one column of pixels."""
    image = torch.full((1, 3, 80, 96), 0.5)
    image[..., 90] = -1.0  # in the last column of cells
    assert decoder.flat_places(image) == [(row, column) for row in (1, 2, 3) for column in (1, 2, 3)]
    # In the cell of row 2, column 2: a neighbour of all but (row, 4), which is beside the line.
    image[0, :, 40, 40] = 0.0
    assert decoder.flat_places(image) == []
    image[0, :, 40, 40] = 0.5
    z = torch.arange(30.0).reshape(1, 1, 5, 6).expand(1, 4, 5, 6)
    latent, picture = decoder._flattened(z, image, random.Random(1))  # pyright: ignore[reportPrivateUsage]
    assert (picture == 0.5).all() and (latent == latent[0, 0, 0, 0]).all() and latent[0, 0, 0, 0] in z[0, 0, 1:4, 1:4]
    image[:] = torch.rand(image.shape)
    latent, picture = decoder._flattened(z, image, random.Random(1))  # pyright: ignore[reportPrivateUsage]
    assert torch.equal(latent, z) and torch.equal(picture, image)  # nothing flat
