"""Pre-training with flow matching: one function, one loop, on one process or many.

The order in the loop is fixed: validate, preview, save, stop, step, log. Running the same command again resumes, and
a resumed run equals an uninterrupted one: data, order, dropout, times and noise derive from (seed, step).

`lens train pretrain --recipe NAME` and `torchrun -m train.pretrain --recipe NAME` are this `run`. Source: the Lens
paper, section 2.3; what it leaves open is a field of the config with a comment. Knows nothing of where batches come
from (`train.run.batch`) nor how weights are spread (`train.run.distributed`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from backend.errors import CancelledError, LensError, UsageError, first_line
from backend.memory.exhausted import out_of_memory_in_training
from backend.model.transformer import LensTransformer2DModel
from train import overrides
from train.batches.scenes import Frozen, SceneSource
from train.config import At, PretrainConfig, Stage, learning_rate, locate
from train.run import batch as sources
from train.run import checkpoints, folder
from train.run.batch import Batch, BatchSource, Grid, Group, Loaded
from train.run.distributed import Ranks, joined
from train.run.metrics import Metrics, on_stderr
from train.run.pace import Pace
from train.run.step import Diverged, Taken, Trained, build
from train.run.stopping import Stopper, stopped, stopped_before

if TYPE_CHECKING:
    from PIL.Image import Image

Preview = Callable[[LensTransformer2DModel, int], "Image"]
Say = Callable[[str], None]

__all__ = ["PretrainConfig", "build", "check", "run"]


def run(
    config: PretrainConfig,
    frozen: Frozen | None = None,
    *,
    initial: Mapping[str, Tensor] | None = None,
    preview: Preview | None = None,
    say: Say = on_stderr,
) -> LensTransformer2DModel:
    """Train all stages; returns the network with the averaged weights (its slices, on many ranks).

    `frozen`: autoencoder, text encoder and tokenizer that are in memory; None: those that the config names. `initial`:
    weights to start from; None: `config.start_from`, or none. `preview(network, base)` draws a sheet of fixed prompts
    and seeds; None: the usual sheet, where the frozen networks are Lens's own. `say` is given the lines of the log on
    the first rank. Raises LensError; CancelledError where it was asked to stop, with its state saved.
    """
    check(config)
    smaller = "--set micro_batch=… (smaller passes, the same step), checkpointing=full, or more GPUs; --dry-run"
    with out_of_memory_in_training(smaller), joined(config) as ranks, folder.kept(config.run_dir, ranks):
        return _run(config, ranks, frozen, initial, preview, say)


def _run(
    config: PretrainConfig,
    ranks: Ranks,
    frozen: Frozen | None,
    initial: Mapping[str, Tensor] | None,
    preview: Preview | None,
    say: Say,
) -> LensTransformer2DModel:
    # 1. The run's newest checkpoint, before anything large is loaded.
    found = checkpoints.latest(config.run_dir, ranks)
    if found is not None:
        folder.may_go_on(config, found)
    elif initial is None and config.start_from is not None:
        ranks.together(folder.start_problem(config.start_from) if ranks.first else None)
    # 2. The frozen networks and the data.
    source, preview = _source(config, frozen, preview, ranks, say)
    if found is not None:
        folder.same_source(found, source)
    # 3. What is trained.
    if initial is None and found is None and config.start_from is not None:
        initial = folder.start_weights(config.start_from, ranks)
    trained = Trained(config, ranks, initial)
    if isinstance(source, SceneSource) and config.channel_power:
        trained.channel_weights = source.channel_weights()
    if found is not None:
        trained.restore(found)
    folder.write_config(config, ranks)  # only now: a command that is refused must not replace the run's own
    # 4. The loop.
    reached = _loop(config, ranks, trained, source, 0 if found is None else found.step, preview, say)
    if reached < config.steps:
        raise stopped(reached, config.steps)
    return trained.shown


def check(config: PretrainConfig) -> None:
    """Raises UsageError for what cannot be trained."""
    try:
        device = torch.device(config.device)
    except RuntimeError as error:
        raise UsageError(f"device={config.device}: {first_line(error)}", hint="cpu, cuda, or cuda:0") from error
    if config.steps < 1:
        raise UsageError("there are no steps to train", hint="--set stages.0.steps=…")
    if config.source == "scenes" and any(stage.mix for stage in config.stages):
        raise UsageError("drawn scenes have one base a stage, not a mix", hint="--data WORK, or --random")
    if config.cache is not None and config.source != "packed":
        raise UsageError(f"cache is of packed pictures, not of source={config.source}", hint="--data WORK")
    if config.align and config.source == "packed":
        raise UsageError("align needs drawn scenes: only there is known what covers each token", hint="--set align=0")
    if config.channel_power and config.source != "scenes":
        raise UsageError("channel_power is measured on drawn scenes", hint="--set channel_power=0")
    if config.align and not 0 <= config.align_block < config.params.num_layers:
        raise UsageError(f"align_block={config.align_block}: there are {config.params.num_layers} blocks")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device={config.device}: torch sees no GPU here", hint="--set device=cpu, or --dry-run")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device={config.device}: torch sees {torch.cuda.device_count()} GPUs here, counted from 0")


def _loop(
    config: PretrainConfig,
    ranks: Ranks,
    trained: Trained,
    source: BatchSource,
    start: int,
    preview: Preview | None,
    say: Say,
) -> int:
    """Train from step `start` on; returns the step that was reached and saved."""
    metrics, about = None, overrides.as_json(config)
    if ranks.first:
        metrics = Metrics(config.run_dir, start, say=say, wandb=config.wandb, about=about)
    writer = checkpoints.Writer(config.run_dir, ranks, keep=config.keep, background=config.async_save)
    pace = Pace(config, start, ranks.world)
    watch = _Watch(config, trained, source, preview, metrics)
    taken = Taken(float("nan"), float("nan"), None, asked_to_stop=False)

    def save(step: int) -> None:
        writer.save(step, trained.tensors(), folder.state(config, trained, source))

    try:
        with Stopper() as stopper:
            for at, batches in _batches(config, ranks, source, start):
                step, later = at.step, at.step != start
                with pace.paused():
                    if later:
                        watch.look(step, at.stage, taken.loss)
                    stop = taken.asked_to_stop or (ranks.world == 1 and stopper.asked)
                    if (later and step % config.save_every == 0) or stop:
                        save(step)
                if stop:
                    writer.wait()
                    return step

                try:
                    taken = trained.step(batches, learning_rate(config, at), stop=stopper.asked)
                except Diverged as error:
                    writer.wait()  # a checkpoint may still be on its way to disk
                    rate = f"stages.{at.place}.learning_rate"
                    raise stopped_before(step, str(error), config.run_dir, rate) from error
                pace.count(batches)
                if metrics is not None and (step + 1) % config.log_every == 0:
                    metrics.log(step + 1, **_values(taken, pace, config, at))
            if start < config.steps:
                watch.look(config.steps, config.stages[-1], taken.loss)
                save(config.steps)
        writer.wait()
    finally:
        if metrics is not None:
            metrics.close()
    return config.steps


@dataclass
class _Watch:
    """Validation and previews, where it is time; on all ranks, since a sharded network needs them all."""

    config: PretrainConfig
    trained: Trained
    source: BatchSource
    preview: Preview | None
    metrics: Metrics | None  # of the first rank
    held: tuple[Stage, list[tuple[Grid, Loaded]]] | None = None  # encoded when first asked for, of one stage

    def look(self, step: int, stage: Stage, loss: float) -> None:
        if step % self.config.validate_every == 0:
            if self.held is None or self.held[0] != stage:
                self.held = stage, self.source.held(stage)
            if self.held[1]:
                validation = validate(self.config, self.trained, self.held[1])
                if self.metrics is not None:
                    self.metrics.log(step, loss=loss, validation=validation)
        if self.preview is not None and step % self.config.preview_every == 0:
            sheet = self.preview(self.trained.shown, stage.base)
            if self.metrics is not None:
                self.metrics.picture(step, sheet)


def _values(taken: Taken, pace: Pace, config: PretrainConfig, at: At) -> dict[str, float]:
    """What a line of the log holds."""
    values = {"loss": taken.loss, "grad_norm": taken.grad_norm, "learning_rate": learning_rate(config, at)}
    if taken.align is not None:
        values["align"] = taken.align
    return {**values, **pace.values(at.step + 1), "base": at.stage.base}


# -------------------------------------------------------------------------------------------------------------- data


def _source(
    config: PretrainConfig, frozen: Frozen | None, preview: Preview | None, ranks: Ranks, say: Say
) -> tuple[BatchSource, Preview | None]:
    """The config's data, with the frozen networks they need."""
    if config.source == "random":
        return sources.RandomSource(config, ranks.device), preview
    from train.batches import encoders

    opened = None
    if config.source == "packed":
        from train.batches.open_packs import open_packed

        opened = open_packed(config)
    if frozen is not None:
        ready = encoders.of_frozen(config, frozen, ranks.device)
    else:
        ready = encoders.load(config, ranks.device)
    if preview is None and ready.frozen is not None:
        preview = _usual_preview(config, ready.frozen)
    if opened is not None:
        from train.batches.packed import PackedSource

        return PackedSource(config, opened, ready, ranks.device, say), preview
    if ready.frozen is None:
        raise UsageError("drawn scenes are encoded by Lens's own networks", hint="leave out vae and text_encoder")
    networks = ready.networks() if ready.networks else None
    return SceneSource(config, ready.frozen, ranks.device, networks), preview


def _usual_preview(config: PretrainConfig, frozen: Frozen) -> Preview:
    from backend.params import ModelParams
    from backend.presets import PRESETS, get
    from train.batches.preview import sheet

    text = replace(frozen.encoder.params, template=config.template)
    params = ModelParams(dit=config.params, text=text)
    used = PRESETS.get(config.encoders or "", get("lens"))  # with whose networks it is trained
    return lambda model, base: sheet(model, frozen, params, side=base, guidance=used.guidance)


def _batches(config: PretrainConfig, ranks: Ranks, source: BatchSource, start: int) -> Iterator[tuple[At, list[Batch]]]:
    """This rank's passes of every step from `start` on, made ahead of their use where the config says so."""
    cuda = ranks.device.type == "cuda"
    side = torch.cuda.Stream(ranks.device) if cuda and config.prefetch else None

    def make(step: int) -> tuple[At, list[Batch], torch.cuda.Event | None]:
        at = locate(config.stages, step)
        mine = sources.share(
            source.groups(at),
            rank=ranks.rank,
            world=ranks.world,
            micro_batch=config.micro_batch,
            average=config.average,
        )
        if side is None:
            return at, [_ready(config, at, group, source) for group in mine], None
        with torch.cuda.stream(side):  # beside the training, not in turn with it
            batches = [_ready(config, at, group, source) for group in mine]
            done = torch.cuda.Event()
            done.record(side)
            return at, batches, done

    if not config.prefetch:
        yield from (make(step)[:2] for step in range(start, config.steps))
        return
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
        pending: list[Future[tuple[At, list[Batch], torch.cuda.Event | None]]] = []
        try:
            for step in range(start, config.steps + config.prefetch):
                if step < config.steps:
                    pending.append(thread.submit(make, step))
                if len(pending) > config.prefetch or step >= config.steps:
                    at, batches, done = pending.pop(0).result()
                    if done is not None:
                        _hand_over(batches, done)
                    yield at, batches
        finally:
            for future in pending:
                future.cancel()


def _ready(config: PretrainConfig, at: At, group: Group, source: BatchSource) -> Batch:
    return sources.noised(config, at, group, source.load(at, group))


def _hand_over(batches: Sequence[Batch], done: torch.cuda.Event) -> None:
    """Let the training's stream wait for the other, and keep the memory until both are through with it."""
    stream = torch.cuda.current_stream()
    stream.wait_event(done)
    for batch in batches:
        for value in vars(batch).values():
            if isinstance(value, Tensor):
                value.record_stream(stream)


# -------------------------------------------------------------------------------------------------------- validation


@torch.no_grad()
def validate(config: PretrainConfig, trained: Trained, held: Sequence[tuple[Grid, Loaded]]) -> float:
    """Loss on held-out pictures with fixed noise, each at one of eight fixed times in turn: comparable across steps
    and runs on the same pictures."""
    total, count, device = 0.0, 0, trained.ranks.device
    for number, (grid, loaded) in enumerate(held):
        rows = len(loaded.x0_BNC)
        generator = torch.Generator().manual_seed(rows + 1000 * number)
        batch = Batch(
            x0_BNC=loaded.x0_BNC.to(device),
            eps_BNC=torch.randn(loaded.x0_BNC.shape, generator=generator).to(device),
            t_B=(((count + torch.arange(rows)) % 8 + 0.5) / 8).to(device),
            text_BLTF=loaded.text_BLTF.to(device),
            mask_BL=loaded.mask_BL.to(device),
            grid=grid,
            weights_B=torch.ones(rows, device=device),
            names=loaded.names,
            labels_BN2=None,
        )
        total += float(trained.losses(trained.shown, batch).sum())
        count += rows
    return total / count


def main() -> None:
    """`torchrun … -m train.pretrain --recipe NAME`: the options of `lens train pretrain`, on every rank."""
    import argparse
    import os
    import sys

    from train.recipes import PRETRAIN_RECIPES, choose

    parser = argparse.ArgumentParser(prog="train.pretrain", description="Pre-train under torchrun.")
    parser.add_argument("--recipe", default="nano-smoke", choices=sorted(PRETRAIN_RECIPES))
    parser.add_argument("--run-dir", type=Path, default=None)
    parser.add_argument("--data", type=Path, default=None, help="work folder of packed pictures")
    parser.add_argument("--random", action="store_true", help="noise instead of data, to time a step")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    words = parser.parse_args()
    try:
        run(choose(words.recipe, words.run_dir, words.set, data=words.data, random=words.random))
    except LensError as error:
        rank = os.environ.get("RANK", "0")
        if rank == "0":
            print(f"error: {error}", file=sys.stderr)
            if error.hint:
                print(f"hint: {error.hint}", file=sys.stderr)
        elif not isinstance(error, (UsageError, CancelledError)):  # those are the same on every rank
            print(f"rank {rank}: error: {error}", file=sys.stderr)  # what this one met alone, nobody else would tell
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
