"""Fine-tuning on a GPU: QLoRA learns there, and its backward pass agrees with the CPU's. Never run by its author: no
GPU was at hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from backend.memory.linears import pack_weight
from backend.types import Quant
from tests.backend.tiny_weights import write_runnable
from tests.train.drawn_folder import draw_folder
from train.config import Machine, Optim, Saving
from train.lora import run
from train.lora.adapters import FrozenLinear
from train.lora.config import LoraConfig


@pytest.mark.parametrize("quant", [Quant.nf4, Quant.int8, Quant.gguf])
def test_gradients_agree_with_the_cpu(quant: Quant) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(192, 128, generator=generator), torch.randn(2, 9, 128, generator=generator)
    packed = pack_weight(weight, quant)
    grads: list[torch.Tensor] = []
    for device in ("cpu", "cuda"):
        given = x.to(device).requires_grad_()
        FrozenLinear(packed.to(device))(given).square().sum().backward()
        assert given.grad is not None
        grads.append(given.grad.cpu())
    assert torch.allclose(grads[1], grads[0], rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("quant", [Quant.none, Quant.nf4])
@pytest.mark.parametrize("compiled", [False, True])
def test_it_learns_there(tmp_path: Path, quant: Quant, compiled: bool) -> None:
    config = LoraConfig(
        run_dir=tmp_path / "run",
        pictures=draw_folder(tmp_path / "pictures"),
        model=str(write_runnable(tmp_path / "model")),
        rank=4,
        bases=(64,),
        steps=30,
        batch=3,
        learning_rate=1e-2,
        quant=quant,
        previews=1,
        optim=Optim(warmup=2),
        machine=Machine(device="cuda", checkpointing="full", compile=compiled),
        saving=Saving(preview_every=30, validate_every=30),
    )
    assert run.run(config).finished
    lines = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    judged = [line["validation"] for line in lines if "validation" in line]
    assert judged[-1] < 0.95 * judged[0]
