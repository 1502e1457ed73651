"""Runs of a few steps on one, two and three gloo processes, all in three processes that start once.

A helper of test_ranks.py: a process spawned by torch imports this module, so it is no test module.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from backend.errors import FileError
from backend.params import DiTParams, TemplateParams
from train import pretrain
from train.config import Base, PretrainConfig, Stage
from train.run.distributed import Ranks

TINY = DiTParams(
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=16,
    axes_dims_rope=(4, 6, 6),
    enc_hidden_dim=24,
    selected_layer_index=(0, 1),
    mlp_hidden_dim=48,
)


def config(run_dir: Path, steps: int = 4) -> PretrainConfig:
    """Three groups a step, of any of nine shapes and two batch sizes; a whole state: moments, average, aligner."""
    mix = (Base(base=64, batch=4), Base(base=96, batch=3))
    return PretrainConfig(
        run_dir=run_dir,
        params=TINY,
        template=TemplateParams(),
        stages=(Stage(base=64, batch=4, steps=steps, groups=3, mix=mix, learning_rate=1e-2, square_share=0.2),),
        source="random",
        encoders=None,
        caption_tokens=7,
        align=0.1,
        align_block=1,
        warmup=0,
        dropout=0.3,
        compute="float32",
        compile=False,
        log_every=1,
        save_every=2,
    )


@dataclass(frozen=True)
class Job:
    """One run on so many processes."""

    world: int
    config: PretrainConfig


def jobs(folder: Path) -> list[Job]:
    """Every claim of test_ranks.py, each in a folder of its own."""
    plain = config(folder / "two")
    every = replace(plain, run_dir=folder / "two-other-ways", replicate=2, micro_batch=1, prefetch=1, async_save=True)
    return [
        Job(2, plain),
        Job(2, every),  # a copy of the state on each, passes of one picture, encoded ahead, saved in the background
        Job(3, config(folder / "two-then-three", steps=6)),  # begins where the first one ended
    ]


def child(rank: int, folder: Path) -> None:
    """One of three processes; takes part in the jobs of more processes than its number."""
    for number, job in enumerate(jobs(folder)):
        if rank >= job.world:
            continue
        store = f"file://{folder}/store-{number}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=job.world)
        if rank == 0 and job.world == 3:
            shutil.copytree(folder / "two", job.config.run_dir)
        dist.barrier()
        pretrain.run(job.config)
        if number == 0:
            _fail_on_one(rank, job.world, folder)
        dist.destroy_process_group()


def _fail_on_one(rank: int, world: int, folder: Path) -> None:
    """The last rank alone has an error; every rank writes down what it met."""
    mesh = init_device_mesh("cpu", (world,))
    error = FileError("no space", hint="free some") if rank == world - 1 else None
    try:
        Ranks(torch.device("cpu"), rank, world, mesh).together(error)
    except FileError as met:
        (folder / f"met-{rank}").write_text(f"{met} {met.hint}")
