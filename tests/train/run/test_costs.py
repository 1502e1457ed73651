"""The plan's arithmetic against counted things: parameters of built networks, multiplications that torch counts, bytes
that autograd keeps. Only hours and money cannot be counted before a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from backend.model.transformer import JointAttention
from backend.params import DiTParams, ModelParams
from backend.presets import NANO
from tests.train import ranks
from tests.train.changed import changed
from train import pretrain, recipes
from train.config import PretrainConfig
from train.run import checkpoints, costs
from train.run.distributed import Ranks
from train.run.network import build

SMALL = DiTParams(
    num_layers=2,
    num_attention_heads=4,
    attention_head_dim=32,
    axes_dims_rope=(8, 12, 12),
    enc_hidden_dim=48,
    selected_layer_index=(0, 1, 2),
    mlp_hidden_dim=352,
)


@pytest.mark.parametrize("params", [ModelParams().dit, NANO.dit, recipes.TOY, recipes.SMALL, SMALL])
def test_parameters_are_counted(params: DiTParams) -> None:
    with torch.device("meta"):
        network = build(params)
    assert costs.parameters(params) == sum(p.numel() for p in network.parameters())


def test_recipes_have_the_sizes_that_they_are_called_by() -> None:
    assert costs.parameters(ModelParams().dit) == pytest.approx(4.1e9, rel=0.01)
    assert costs.parameters(recipes.TOY) == pytest.approx(1.2e9, rel=0.02)


@pytest.mark.parametrize(("h", "w", "text"), [(4, 6, 9), (12, 12, 40)])
def test_operations_are_counted(h: int, w: int, text: int) -> None:
    """torch's own counter over a forward pass of one picture; time embedding and norms are the small rest."""
    model = build(SMALL).eval()
    for module in model.modules():
        if isinstance(module, JointAttention):
            module.explicit = True  # two products that the counter knows; it does not know the CPU's fused kernel
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.randn(1, h * w, 128), torch.rand(1), torch.randn(1, text, 3, 48), (h, w))
    assert costs.forward_flops(SMALL, h * w, text) == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize(("width", "hidden"), [(4, 256), (4, 512), (8, 512)])
def test_kept_activations_are_counted(width: int, hidden: int) -> None:
    """Bytes of distinct storages that autograd keeps for two blocks more, per token; without copies of weights."""
    pictures, grid, text = 3, (8, 9), 17
    tokens = pictures * (grid[0] * grid[1] + text)
    rows = {pictures * grid[0] * grid[1], pictures * text, tokens, pictures}

    def kept(layers: int) -> int:
        model = build(replace(SMALL, num_layers=layers, num_attention_heads=width, mlp_hidden_dim=hidden)).train()
        own = {p.data_ptr() for p in model.parameters()}
        seen: dict[int, int] = {}
        alive: list[Tensor] = []

        def pack(tensor: Tensor) -> Tensor:
            is_weight = tensor.data_ptr() in own or (tensor.dim() == 2 and tensor.shape[0] not in rows)
            if not is_weight and tensor.numel() > 500:
                seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            alive.append(tensor)  # or a freed storage's address would be taken twice
            return tensor

        x, features = torch.randn(pictures, grid[0] * grid[1], 128), torch.randn(pictures, text, 3, 48)
        mask = torch.ones(pictures, text, dtype=torch.bool)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16):
            model(x, torch.rand(pictures), features, grid, mask)
        return sum(seen.values())

    counted = (kept(4) - kept(2)) / 2 / tokens
    stated = 2 * (costs.KEPT_WIDTHS * 32 * width + costs.KEPT_HIDDEN * hidden)
    assert counted == pytest.approx(stated, rel=0.05)


@pytest.mark.parametrize("muon", [True, False])
@pytest.mark.parametrize("average", [0.99, None])
def test_a_checkpoints_size_is_counted(tmp_path: Path, muon: bool, average: float | None) -> None:
    config: PretrainConfig = changed(
        ranks.config(tmp_path), {"optim.muon": muon, "optim.ema_decay": average, "data.align.weight": 0.0}, params=SMALL
    )
    learner, _ = pretrain.make_learners(config, Ranks(torch.device("cpu")))
    for parameter in learner.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    learner.optimizer.step(0.0)
    checkpoints.Writer(tmp_path, Ranks(torch.device("cpu")), keep=1, background=False).save(1, learner.tensors(), {})
    written = sum(path.stat().st_size for path in checkpoints.folders(tmp_path)[0].glob("*.safetensors"))
    assert costs.checkpoint_bytes(config) == pytest.approx(written, rel=0.05)  # headers are the rest


def test_peaks_are_found_by_the_drivers_names() -> None:
    assert costs.peak_of("NVIDIA H100 80GB HBM3") == costs.PEAKS["h100"][0]
    assert costs.peak_of("NVIDIA A100-SXM4-80GB") == costs.PEAKS["a100"][0]
    assert costs.peak_of("NVIDIA GeForce RTX 4090") == costs.PEAKS["rtx-4090"][0]
    assert costs.peak_of("Some Card 9000") is None
