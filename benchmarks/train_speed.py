"""Pictures a second of training Lens-Nano's transformer here: the trainer's step against a plain loop.

    python -m benchmarks.train_speed [--base 256] [--batch 16] [--text N] [--steps 8] [--rounds 5]
                                     [--threads N] [--no-compile]

The plain loops are what one would write first: forward, loss, backward, AdamW, on the same network class, nothing
compiled; one in float32, one under bfloat16 autocast. They know nothing of the trainer: path, target and times stand
here once more. The trainer does what the recipe `nano` says, so more than they do: Muon, clipping, an average of the
weights, the loss of train.world.align, noise that derives from the step; and its blocks are compiled. Once more with
every matrix moved in every step (`optim.muon_every=1`), which the recipe does in turn.

One process, the same pictures, captions and threads; in every round each of them takes `--steps` steps, in an order
that turns from round to round, so that a machine that slows down slows all of them. Compiling and the first step of
each are not timed. Data are noise of the right shapes, ready in memory. Prints one line a round, then medians, and the
trainer's speed over each plain loop's as median, least and most over the rounds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from train import pretrain, recipes
from train.batches.random import RandomSource
from train.config import PretrainConfig, locate
from train.losses import flow
from train.run.batch import Group, Loaded, noised, share
from train.run.distributed import Ranks
from train.run.network import build
from train.run.step import take_step, transformer_losses

Step = Callable[[int], float]  # number of the step -> loss


def plan(base: int, batch: int, compiled: bool, text: int = PretrainConfig.caption_tokens) -> PretrainConfig:
    """The recipe `nano` at one shape."""
    config = recipes.choose("nano", Path(tempfile.gettempdir()) / "unused", [], random=True)
    stage = replace(config.stages[0], base=base, batch=batch, square_share=1.0, steps=10**6, decay_steps=0)
    machine = replace(config.machine, compile=compiled)
    return replace(config, stages=(stage,), machine=machine, caption_tokens=text)


def pictures(config: PretrainConfig) -> tuple[Group, Loaded]:
    """One batch, ready in memory."""
    source, at = RandomSource(config, torch.device("cpu")), locate(config.stages, 0)
    (group,) = share(source.groups(at), rank=0, world=1, micro_batch=None, average=config.average)
    return group, source.load(at, group)


def trainer(config: PretrainConfig, group: Group, loaded: Loaded) -> Step:
    """A step as `train.pretrain` takes it, without reading and encoding."""
    ranks = Ranks(torch.device("cpu"))
    learner, beside = pretrain.make_learners(config, ranks)
    losses, rate = transformer_losses(flow.losses, ranks, config.machine.compute), config.stages[0].learning_rate

    def step(number: int) -> float:
        batch = noised(config.noise, config.seed, locate(config.stages, number), group, loaded)
        return take_step(learner, [batch], losses, rate, config.optim.clip, beside=beside).loss

    return step


def plain(config: PretrainConfig, group: Group, loaded: Loaded, *, half: bool) -> Step:
    """Train the network in the loop that one writes first."""
    torch.manual_seed(0)
    model = build(config.params).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.stages[0].learning_rate)
    x0 = loaded.x0_BNC

    def step(_number: int) -> float:
        noise, t = torch.randn_like(x0), torch.sigmoid(torch.randn(len(x0)) + 1.0)
        x_t = (1 - t[:, None, None]) * x0 + t[:, None, None] * noise
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            v: Tensor = model(x_t, t, loaded.text_BLTF.float(), group.grid, loaded.mask_BL)
        loss = F.mse_loss(v.float(), noise - x0)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def timed(step: Step, first: int, steps: int) -> float:
    """Seconds of so many steps."""
    began = time.perf_counter()
    for number in range(first, first + steps):
        step(number)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=int, default=256, help="pixels: side of the pictures")
    parser.add_argument("--batch", type=int, default=16, help="pictures a step")
    parser.add_argument(
        "--text",
        type=int,
        default=PretrainConfig.caption_tokens,
        help="text tokens a picture; brief ones have 10 to 30",
    )
    parser.add_argument("--steps", type=int, default=8, help="of each a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None, help="of torch [default: its own choice]")
    parser.add_argument("--no-compile", action="store_true", help="the trainer too runs uncompiled")
    words = parser.parse_args()
    if words.threads is not None:
        torch.set_num_threads(words.threads)
    config = plan(words.base, words.batch, compiled=not words.no_compile, text=words.text)
    group, loaded = pictures(config)
    steps: dict[str, Step] = {
        "trainer": trainer(config, group, loaded),
        "every matrix": trainer(replace(config, optim=replace(config.optim, muon_every=1)), group, loaded),
        "plain float32": plain(config, group, loaded, half=False),
        "plain bfloat16": plain(config, group, loaded, half=True),
    }
    tokens = group.grid[0] * group.grid[1]
    print(
        f"{words.batch} pictures of {words.base}x{words.base} a step: {tokens} image and {config.caption_tokens} text "
        f"tokens each; torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    for name, step in steps.items():
        print(f"first step, {name}: {timed(step, 0, 1):.1f} s")
    speeds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for number in range(words.rounds):
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            seconds = timed(steps[name], 1 + number * words.steps, words.steps)
            speeds[name].append(words.batch * words.steps / seconds)
        said = ", ".join(f"{name} {speeds[name][-1]:.3g}" for name in names)
        print(f"round {number + 1}: {said} pictures/s", flush=True)
    for name in names:
        print(f"{name:<15} {median(speeds[name]):.3g} pictures/s")
    for name in names[1:]:
        ratios = [ours / theirs for ours, theirs in zip(speeds["trainer"], speeds[name], strict=True)]
        print(f"trainer over {name}: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
