"""The moving average against its formula, weight by weight, in Python floats.

Why it can be trusted: the reference is the two-line recurrence, applied to numbers chosen at random.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from train.run.ema import EMA


@pytest.mark.parametrize("decay", [0.999, 0.5])
def test_formula(decay: float) -> None:
    """average <- d average + (1 - d) weight with d = min(decay, (1 + n) / (10 + n)) after the n-th update."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    ema = EMA(model, decay)
    wanted = [float(v) for p in model.parameters() for v in p.detach().flatten()]
    for n in range(1, 40):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        ema.update(model)
        d = min(decay, (1 + n) / (10 + n))
        weights = [float(v) for p in model.parameters() for v in p.detach().flatten()]
        wanted = [d * a + (1 - d) * w for a, w in zip(wanted, weights, strict=True)]
        assert ema.updates == n
        got = torch.cat([ema.shadow[name].flatten() for name, _ in model.named_parameters()])
        torch.testing.assert_close(got, torch.tensor(wanted), rtol=1e-5, atol=1e-6)


def test_early_averages_forget_the_start() -> None:
    """After ten updates at most 1 % of the first weights is left, whatever the decay."""
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    ema = EMA(model, 0.9999)
    model.weight.data.zero_()
    for _ in range(10):
        ema.update(model)
    assert 0 < float(ema.shadow["weight"]) < 0.01


def test_average_is_a_copy_in_float32() -> None:
    model = nn.Linear(2, 2).to(torch.bfloat16)
    first = model.weight.detach().clone()
    ema = EMA(model, 0.9)
    assert ema.shadow["weight"].dtype == torch.float32
    model.weight.data.add_(1)
    assert torch.equal(ema.shadow["weight"], first.float())
    ema.update(model)
    assert ema.shadow["weight"].dtype == torch.float32
    assert torch.equal(model.weight.detach(), first + 1)  # the model is only read


def test_shown() -> None:
    """The model has the averages meanwhile, and its own weights afterwards, whatever happens; what is frozen has no
    average."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    ema = EMA(model, 0.5)
    model.weight.data.add_(1)
    ema.update(model)
    average, trained = ema.shadow["weight"].clone(), model.weight.detach().clone()
    assert list(ema.shadow) == ["weight"] and not torch.equal(average, trained)
    with pytest.raises(KeyError), ema.shown(model):
        assert torch.equal(model.weight.detach(), average)
        raise KeyError
    assert torch.equal(model.weight.detach(), trained) and torch.equal(ema.shadow["weight"], average)
