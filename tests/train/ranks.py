"""Runs of a few steps on one, two and three gloo processes, all in three processes that start once.

A helper of test_ranks.py: a process spawned by torch imports this module, so it is no test module.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from backend.errors import FileError
from backend.params import DiTParams, TemplateParams
from tests.train.changed import changed
from tests.train.distill import small_run as small_distillation
from tests.train.fine_tuning import plan
from tests.train.rl import small_run
from train import pretrain
from train.config import Align, Base, Cluster, MuonOptim, Noise, PretrainConfig, RandomData, Saving, Stage
from train.distill import run as distill
from train.distill.config import DistillConfig
from train.lora import run as lora
from train.lora.config import LoraConfig
from train.rl import run as rl
from train.rl.config import RLConfig
from train.run.distributed import Ranks, joined

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
        caption_tokens=7,
        data=RandomData(align=Align(weight=0.1, block=1)),
        noise=Noise(dropout=0.3),
        optim=MuonOptim(betas=(0.9, 0.99), warmup=0, ema_decay=0.999),
        machine=Cluster(compute="float32", compile=False),
        saving=Saving(log_every=1, save_every=2),
    )


@dataclass(frozen=True)
class Job:
    """One run on so many processes."""

    world: int
    config: PretrainConfig


def jobs(folder: Path) -> list[Job]:
    """Every claim of test_ranks.py, each in a folder of its own."""
    plain = config(folder / "two")
    other = {"machine.replicate": 2, "machine.micro_batch": 1, "machine.prefetch": 1, "saving.background": True}
    every = changed(plain, other, run_dir=folder / "two-other-ways")
    return [
        Job(2, plain),
        Job(2, every),  # a copy of the state on each, passes of one picture, encoded ahead, saved in the background
        Job(3, config(folder / "two-then-three", steps=6)),  # begins where the first one ended
    ]


def child(rank: int, folder: Path) -> None:
    """One of three processes; takes part in the jobs of more processes than its number."""
    _tune_on_two(rank, folder)
    _reward_on_two(rank, folder)
    _distil_on_two(rank, folder)
    _leave_on_one(rank, folder)
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


def fine_tuning(folder: Path, name: str) -> LoraConfig:
    """Three batches a step of a folder's pictures, each with a cache of its own that is empty; an average."""
    where = folder / name
    return plan(
        where / "run", folder / "photos", folder / "model", where / "cache", accumulate=3, batch=2, steps=4,
        optim__ema_decay=0.5, held_out=0.2,
    )  # fmt: skip


def _tune_on_two(rank: int, folder: Path) -> None:
    if rank < 2:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store-lora", rank=rank, world_size=2)
        lora.run(fine_tuning(folder, "lora-two"))
        dist.destroy_process_group()


def reinforcement(folder: Path, name: str, epochs: int = 2) -> RLConfig:
    """Three groups an epoch, two of them on one of two ranks, and five pictures in two gradient steps."""
    return small_run.plan(
        folder / name, folder / "model", epochs=epochs, rollout__size=2, evaluate__every=2, evaluate__sheet=2,
        learning_rate=1e-3, nft__kl_weight=0.1, nft__norm_hinge=0.1,
    )  # fmt: skip


def _reward_on_two(rank: int, folder: Path) -> None:
    """A run of two epochs, and one that ends after the first and goes on."""
    if rank < 2:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store-rl", rank=rank, world_size=2)
        for name, epochs in (("rl-two", 2), ("rl-cut", 1), ("rl-cut", 2)):
            rl.run(reinforcement(folder, name, epochs), judge=small_run.Brightness())
        dist.destroy_process_group()


def distilling(folder: Path, form: str, name: str) -> DistillConfig:
    """A warm and a global step of three groups of any of nine shapes; student, fake model and teacher of one form."""
    return small_distillation.plan(
        folder / f"distil-{form}-{name}", folder / "model", form=form, groups=3, steps=1, warm__steps=1,
        saving__validate_every=2, saving__preview_every=2,
    )  # fmt: skip


def _distil_on_two(rank: int, folder: Path) -> None:
    if rank < 2:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store-distil", rank=rank, world_size=2)
        for form in ("full", "adapters"):
            distill.run(distilling(folder, form, "two"))
        dist.destroy_process_group()


def _leave_on_one(rank: int, folder: Path) -> None:
    """The last of two has an error that it tells nobody; the other waits for it in a sum, and writes down its end."""
    if rank > 1:
        return
    port = (folder / "port").read_text()
    named = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update(named)
    began = time.monotonic()
    try:
        with joined("cpu", None) as both:
            both.barrier()
            if rank == 1:
                raise MemoryError
            both.sums([1.0])
    except (MemoryError, RuntimeError) as error:
        (folder / f"left-{rank}").write_text(f"{type(error).__name__} {time.monotonic() - began < 60}")
    for name in named:
        del os.environ[name]


def _fail_on_one(rank: int, world: int, folder: Path) -> None:
    """The last rank alone has an error; every rank writes down what it met."""
    mesh = init_device_mesh("cpu", (world,))
    error = FileError("no space", hint="free some") if rank == world - 1 else None
    try:
        Ranks(torch.device("cpu"), rank, world, mesh).together(error)
    except FileError as met:
        (folder / f"met-{rank}").write_text(f"{met} {met.hint}")
