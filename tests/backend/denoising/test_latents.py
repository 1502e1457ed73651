"""Noise, packing, normalisation and pixels by explicit indices and against torch's own BatchNorm.

Why it can be trusted: every rearrangement is compared entry by entry with the written rule (token = row * w + column,
channel = c * 4 + p1 * 2 + p2), and the inverse of the normalisation is torch's forward pass, not our own.
"""

from __future__ import annotations

import hashlib

import pytest
import torch

from backend.denoising import latents


def counted(*shape: int) -> torch.Tensor:
    """Every entry another number."""
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)


@pytest.mark.parametrize(("h", "w"), [(2, 3), (3, 2), (1, 5), (1, 1)])
def test_token_and_channel_order(h: int, w: int) -> None:
    x = counted(2, h * w, 128)
    packed = latents.unpack(x, h, w)
    vae = latents.unpatchify(packed)
    assert packed.shape == (2, 128, h, w) and vae.shape == (2, 32, 2 * h, 2 * w)
    for b in range(2):
        for row in range(h):
            for column in range(w):
                for c in range(32):
                    for p1 in range(2):
                        for p2 in range(2):
                            channel = c * 4 + p1 * 2 + p2
                            value = x[b, row * w + column, channel]
                            assert packed[b, channel, row, column] == value
                            assert vae[b, c, 2 * row + p1, 2 * column + p2] == value


def test_round_trips() -> None:
    x = counted(2, 15, 128)
    assert torch.equal(latents.pack(latents.unpack(x, 3, 5)), x)
    z = counted(2, 128, 3, 5)
    assert torch.equal(latents.patchify(latents.unpatchify(z)), z)
    assert torch.equal(latents.unpack(latents.pack(z), 3, 5), z)
    whole = counted(1, 32, 6, 10)
    assert torch.equal(latents.unpatchify(latents.patchify(whole)), whole)


def test_a_grid_that_does_not_fit() -> None:
    with pytest.raises(Exception, match="15"):
        latents.unpack(counted(1, 15, 128), 4, 4)


@pytest.mark.parametrize("eps", [1e-4, 1e-2])
def test_normalisation_is_batch_norm(eps: float) -> None:
    """normalise = torch's BatchNorm2d in evaluation mode; denormalise undoes torch's, also at small variances."""
    generator = torch.Generator().manual_seed(0)
    norm = torch.nn.BatchNorm2d(128, eps=eps, affine=False).eval()
    mean, var = torch.randn(128, generator=generator), torch.rand(128, generator=generator) * 2e-3
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(var)
    z = torch.randn(2, 128, 3, 5, generator=generator) * 4
    torch.testing.assert_close(latents.normalise(z, mean, var, eps), norm(z), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(latents.denormalise(norm(z), mean, var, eps), z, rtol=1e-5, atol=1e-5)
    # 1e-5 in place of 1e-4 (a port's mistake) would show at these variances.
    assert (latents.denormalise(norm(z), mean, var, eps / 10) - z).abs().max() > 1e-3


def test_noise_is_the_seed() -> None:
    """Drawn by torch's CPU generator in the documented shape, in float32: same seed, same numbers."""
    x = latents.noise(7, 3, 5)
    assert (x.shape, x.dtype, x.device.type) == ((1, 15, 128), torch.float32, "cpu")
    assert torch.equal(x, latents.noise(7, 3, 5))
    torch.manual_seed(7)
    assert torch.equal(x, torch.randn(1, 15, 128))
    state = torch.get_rng_state()
    latents.noise(8, 2, 2)
    assert torch.equal(state, torch.get_rng_state())  # the global generator is left alone
    assert not torch.equal(x, latents.noise(8, 3, 5))
    assert torch.equal(latents.noise(2**63 - 1, 1, 1), latents.noise(2**63 - 1, 1, 1))


def test_noise_depends_on_the_number_of_tokens_alone() -> None:
    assert torch.equal(latents.noise(7, 3, 4), latents.noise(7, 6, 2))
    assert torch.equal(latents.noise(7, 16, 16)[:, :100], latents.noise(7, 16, 32)[:, :100])


def test_noise_is_normal_and_rounds_to_the_reference() -> None:
    x = latents.noise(0, 16, 16)
    assert abs(float(x.mean())) < 0.02 and abs(float(x.std()) - 1) < 0.02
    # The reference draws in bfloat16: on a CPU that is the float32 draw rounded.
    drawn = torch.randn(1, 256, 128, generator=torch.Generator("cpu").manual_seed(0), dtype=torch.bfloat16)
    assert torch.equal(drawn, x.bfloat16())


def test_noise_of_known_seed() -> None:
    """A change of torch's generator would change every picture: it must not go unnoticed."""
    rounded = (latents.noise(42, 2, 2) * 1000).round().to(torch.int32).numpy().astype("<i4")
    assert hashlib.sha256(rounded.tobytes()).hexdigest()[:16] == "494d7b664a98e226"


def test_pixels() -> None:
    """(x + 1) * 127.5, clamped, rounded, channels last."""
    levels = torch.arange(256) / 127.5 - 1
    assert latents.to_pixels(levels.view(1, 1, 1, 256)).flatten().tolist() == list(range(256))
    nearly = torch.tensor([-1e9, -1.01, -1.0, 1.0, 1.01, 1e9, float("inf"), -float("inf")])
    assert latents.to_pixels(nearly.view(1, 1, 1, -1)).flatten().tolist() == [0, 0, 0, 255, 255, 255, 255, 0]
    # Truncation, as the reference does, would give 99 and 100.
    between = torch.tensor([99.6, 100.4]) / 127.5 - 1
    assert latents.to_pixels(between.view(1, 1, 1, -1)).flatten().tolist() == [100, 100]
    image = counted(2, 3, 4, 5) / 60 - 1
    pixels = latents.to_pixels(image)
    assert (pixels.shape, pixels.dtype) == ((2, 4, 5, 3), torch.uint8)
    for c in range(3):
        assert int(pixels[1, 3, 2, c]) == round(min(max((float(image[1, c, 3, 2]) + 1) * 127.5, 0), 255))
    assert torch.equal(latents.to_pixels(image.bfloat16()), latents.to_pixels(image.bfloat16().float()))
