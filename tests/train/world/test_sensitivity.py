"""Channel weights against decoders whose sensitivity can be written down."""

from __future__ import annotations

import torch
from torch import Tensor

from train.world.sensitivity import loss_weights, sensitivity


def test_of_a_linear_decoder_it_is_the_square_of_its_factors() -> None:
    """y = sum of a_c x_c per token: disturbing channel c changes y by a_c times the noise, whatever x is."""
    factors = torch.tensor([3.0, 1.0, 0.1]).repeat_interleave(4)

    def decode(x: Tensor) -> Tensor:
        return x * factors

    found = sensitivity(decode, torch.randn(2, 50, 12, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(found / found[0], (factors / 3) ** 2, rtol=1e-4, atol=0)


def test_weights_have_mean_one_and_their_power() -> None:
    of = torch.tensor([16.0, 1.0, 1.0, 4.0])
    assert torch.equal(loss_weights(of, 0.0), torch.ones(4))
    torch.testing.assert_close(loss_weights(of, 0.5), torch.tensor([4.0, 1, 1, 2]) / 2)
    torch.testing.assert_close(loss_weights(of, 1.0), of / 5.5)
