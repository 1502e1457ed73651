"""What a run leaves: an adapter in ComfyUI's keys, which `lens gen --lora FILE=STRENGTH` draws with.

A strength between 0 and 1.5 is another weight of the KL, without training again: interpolated and extrapolated
velocities are those of another reward temperature (RLG, arXiv 2508.21016).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from backend.checkpoints.resolve import ModelFiles
from backend.disk import make_folder
from backend.lora.write import Factors, Family, write_lora
from train.lora.adapters import factors
from train.lora.files import DTYPES, stated
from train.rl.config import RLConfig


def export(
    config: RLConfig, files: ModelFiles, network: nn.Module, epoch: int, prompts: str, *, numbered: bool = False
) -> Path:
    """Write RUN/lora.safetensors, and with `numbered` RUN/adapters/epoch-N.safetensors as well.

    `prompts`: their fingerprint. Raises FileError, CheckpointError.
    """
    learned = factors(network)
    if config.export_rank is not None:
        learned = {name: cut(one, config.export_rank) for name, one in learned.items()}
    path = config.run_dir / "lora.safetensors"
    training = {
        "kind": "rl", "epochs": epoch, "rank": config.rank, "alpha": config.alpha, "targets": list(config.targets),
        "seed": config.seed, "rollout_guidances": list(config.rollout.guidances),
        "train_guidance": config.nft.guidance, "kl_weight": config.nft.kl_weight, "prompts": prompts,
    }  # fmt: skip
    header = stated(files, epoch, config.run_dir, training)
    paths = [path]
    if numbered:
        make_folder(config.run_dir / "adapters")
        paths.append(config.run_dir / "adapters" / f"epoch-{epoch:06d}.safetensors")
    for one in paths:
        write_lora(one, learned, family=Family.comfyui, metadata=header, dtype=DTYPES[config.export_dtype])
    return path


def cut(one: Factors, rank: int) -> Factors:
    """The nearest update of at most `rank`: the largest singular values, their roots shared out to both factors."""
    if one.rank <= rank:
        return one
    # Of the small matrix between two orthonormal ones, so that no O x I matrix is made.
    q_OR, r_RR = torch.linalg.qr(one.up_OR.double())
    p_IR, s_RR = torch.linalg.qr(one.down_RI.double().T)
    u, values, v = torch.linalg.svd(r_RR @ s_RR.T)
    root = values[:rank].sqrt()
    up_OR, down_RI = q_OR @ u[:, :rank] * root, root[:, None] * (v[:rank] @ p_IR.T)
    return Factors(down_RI.float(), up_OR.float(), one.alpha * rank / one.rank)  # alpha / rank stays
