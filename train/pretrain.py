"""Pre-training with flow matching: one function, one loop, on one process or many.

The order in the loop is fixed: validate, preview, save, stop, step, log. Running the same command again resumes, and
a resumed run equals an uninterrupted one: data, order, dropout, times and noise derive from (seed, step).

`lens train pretrain --recipe NAME` and `torchrun -m train.pretrain --recipe NAME` are this `run`. Source: the Lens
paper, section 2.3; what it leaves open is a field of the config with a comment. Knows nothing of where batches come
from (`train.run.batch`) nor how weights are spread (`train.run.distributed`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from backend.errors import UsageError, first_line
from backend.memory.exhausted import out_of_memory_in_training
from backend.model.transformer import LensTransformer2DModel
from train import overrides
from train.batches.encoders import Frozen
from train.batches.open_packs import check_order, order
from train.batches.scenes import SceneSource
from train.batches.sources import Preview, open_source, usual_preview
from train.config import At, PretrainConfig, Stage, learning_rate, locate
from train.losses import flow
from train.run import checkpoints, network, prefetch
from train.run.batch import Batch, BatchSource, passes
from train.run.distributed import Ranks, joined, launch, stage_options
from train.run.folder import Fact, RunFolder, start_problem, start_weights
from train.run.learner import Diverged, Learner
from train.run.metrics import Metrics, on_stderr
from train.run.optim import muon_and_adamw
from train.run.pace import Pace
from train.run.step import NOT_TAKEN, Beside, Losses, Taken, take_step, transformer_losses
from train.run.stopping import Stopper, stopped, stopped_before
from train.run.validate import Held, at_times_in_turn, validate
from train.world.align import Aligner

Say = Callable[[str], None]


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
    smaller = "--set machine.micro_batch=… (smaller passes, the same step), machine.checkpointing=full, or more GPUs; "
    folder = RunFolder(config.run_dir, "pretrain")
    with (
        out_of_memory_in_training(smaller + "--dry-run"),
        joined(config.machine.device, config.machine.replicate) as ranks,
        folder.open(ranks),
    ):
        return _run(config, ranks, folder, frozen, initial, preview, say)


def _run(
    config: PretrainConfig,
    ranks: Ranks,
    folder: RunFolder,
    frozen: Frozen | None,
    initial: Mapping[str, Tensor] | None,
    preview: Preview | None,
    say: Say,
) -> LensTransformer2DModel:
    # 1. The run's newest checkpoint, before anything large is loaded.
    found = checkpoints.latest(config.run_dir, ranks)
    if found is not None:
        folder.check(found, _facts(config))
        check_order(config, found.state.get("order"), found.step, str(found.folder))
        folder.check_steps(found, config.steps)
    elif initial is None and config.start_from is not None:
        ranks.together(start_problem(config.start_from) if ranks.first else None)
    # 2. The frozen networks and the data.
    source, networks = open_source(config, frozen, ranks.device, say)
    if preview is None and networks is not None:
        preview = usual_preview(config, networks)
    if found is not None:
        folder.check(found, _source_facts(source))
    # 3. What is trained.
    if initial is None and found is None and config.start_from is not None:
        initial = start_weights(config.start_from, ranks)
    learner, beside = make_learners(config, ranks, initial)
    if found is not None:
        learner.restore(found)
        for other in beside:
            if other.learner.known(found):
                other.learner.restore(found)
    folder.write_config(config, ranks)  # only now: a command that is refused must not replace the run's own
    # 4. The loop.
    weights_C = source.channel_weights(config.stages[0]) if isinstance(source, SceneSource) else None
    formula = partial(flow.losses, channel_weights_C=weights_C)
    losses = transformer_losses(formula, ranks, config.machine.compute)
    start = 0 if found is None else found.step
    reached = _loop(_Run(config, ranks, folder, learner, beside, losses, source, preview), start, say)
    if reached < config.steps:
        raise stopped(reached, config.steps)
    with learner.shown() as shown:
        return shown


def check(config: PretrainConfig) -> None:
    """Raises UsageError for what cannot be trained."""
    if config.steps < 1:
        raise UsageError("there are no steps to train", hint="--set stages.0.steps=…")
    if config.align.weight and not config.align.block < config.params.num_layers:
        raise UsageError(f"align.block={config.align.block}: there are {config.params.num_layers} blocks")
    name = config.machine.device
    if name == "auto":
        return
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device={name}: {first_line(error)}", hint="auto, cpu, cuda, or cuda:0") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device={name}: torch sees no GPU here", hint="--set machine.device=cpu, or --dry-run")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device={name}: torch sees {torch.cuda.device_count()} GPUs here, counted from 0")


def _facts(config: PretrainConfig) -> list[Fact]:
    """What a run keeps for ever, in a stage begun or not: where its pictures come from, the seed of their order, and
    what it started from, by its folder's name: a run and its start may be moved to another machine.

    Not all that decides which pictures a step has. Of packed pictures that is also what `order` notes; of drawn
    scenes shares, batches and rounds may change under way, on purpose: the next step then has other scenes than it
    would have had, none of which is lost, since new ones are drawn for ever.
    """
    start = "none" if config.start_from is None else config.start_from.resolve().name
    return [Fact("source", config.data.source), Fact("seed", config.seed), Fact("start_from", start)]


def _source_facts(source: BatchSource) -> list[Fact]:
    """Data and frozen networks: with others the transformer would go on with latents that mean something else."""
    data, networks = (getattr(source, name, None) for name in ("fingerprint", "networks"))
    again = "or start a new run: --set start_from=… --run-dir …"
    return [
        Fact("data", data, "other packed pictures than --data holds now", f"give the folder it began with, {again}"),
        Fact(
            "networks",
            networks,
            "another autoencoder or text encoder than these",
            f"frozen.encoders, frozen.vae, frozen.text_encoder as before, {again}",
        ),
    ]


def make_learners(
    config: PretrainConfig, ranks: Ranks, initial: Mapping[str, Tensor] | None = None
) -> tuple[Learner[LensTransformer2DModel], list[Beside]]:
    """The transformer with its optimiser and average, and what learns beside it. `initial` None: weights from nothing.

    The averaged weights live in a network of their own, which is shown and validated: never compiled, since every new
    shape and every change of gradient mode would compile anew.
    """
    optim, machine = config.optim, config.machine
    place = partial(network.placed, config.params, ranks, machine, float8=machine.float8)
    model = place().train()
    if initial is None:
        network.init_weights(model, config.params, torch.Generator().manual_seed(config.seed))
    else:
        network.adopt(model, initial)
    average = None
    if optim.ema_decay is not None:
        average = place().eval().requires_grad_(False)
        network.adopt(average, dict(model.named_parameters()))
    optimizer = muon_and_adamw(
        model,
        muon=network.muon_matrices if optim.muon else None,
        betas=optim.betas,
        weight_decay=optim.weight_decay,
        muon_every=optim.muon_every,
    )
    learner = Learner(model, optimizer, ranks, ema_decay=optim.ema_decay, average=average)
    beside = [_alignment(config, ranks, model)] if config.align.weight else []
    network.finish(model, machine)  # after what watches a block has put its hook there
    return learner, beside


def _alignment(config: PretrainConfig, ranks: Ranks, model: LensTransformer2DModel) -> Beside:
    aligner = Aligner(model.transformer_blocks[config.align.block], config.params.dim).to(ranks.device)
    optimizer = muon_and_adamw(aligner, betas=config.optim.betas, weight_decay=0.0)

    def loss(batch: Batch) -> Tensor | None:
        return None if batch.labels_BN2 is None else aligner(batch.labels_BN2)

    return Beside("align", Learner(aligner, optimizer, ranks, name="align"), config.align.weight, loss)


@dataclass
class _Run:
    """What the loop works on."""

    config: PretrainConfig
    ranks: Ranks
    folder: RunFolder
    learner: Learner[LensTransformer2DModel]
    beside: list[Beside]
    losses: Losses
    source: BatchSource
    preview: Preview | None
    metrics: Metrics | None = None  # of the first rank
    held: tuple[Stage, Held] | None = None  # encoded when first asked for, of one stage

    def batches(self, step: int) -> list[Batch]:
        """This rank's passes."""
        config = self.config
        return passes(
            self.source, locate(config.stages, step), self.ranks, config.noise, seed=config.seed,
            micro_batch=config.machine.micro_batch, average=config.average,
        )  # fmt: skip

    def look(self, step: int, stage: Stage, loss: float) -> None:
        """Validation and previews, where it is time; on all ranks, since a sharded network needs them all."""
        if step % self.config.saving.validate_every == 0:
            if self.held is None or self.held[0] != stage:
                self.held = stage, self.source.held(stage)
            if self.held[1]:
                with self.learner.shown() as model:
                    judged = at_times_in_turn(self.held[1], self.ranks.device)
                    found = validate(partial(self.losses, model), judged)
                if self.metrics is not None:
                    self.metrics.log(step, loss=loss, validation=found["validation"])
        if self.preview is not None and step % self.config.saving.preview_every == 0:
            with self.learner.shown() as model:
                sheet = self.preview(model, stage.base)
            if self.metrics is not None:
                self.metrics.picture(step, sheet)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds."""
        learners = (self.learner, *(other.learner for other in self.beside))
        return {name: tensor for one in learners for name, tensor in one.tensors().items()}

    def state(self) -> dict[str, object]:
        """What a checkpoint says beside its tensors."""
        facts = [*_facts(self.config), *_source_facts(self.source), Fact("order", order(self.config))]
        params = overrides.as_json(self.config.params)
        return {**self.learner.state(), "params": params, **self.folder.state(facts)}


def _loop(this: _Run, start: int, say: Say) -> int:
    """Train from step `start` on; returns the step that was reached and saved."""
    config, saving, ranks, taken = this.config, this.config.saving, this.ranks, NOT_TAKEN
    if ranks.first:
        about = overrides.as_json(config)
        this.metrics = Metrics(config.run_dir, start, say=say, wandb=saving.wandb, about=about)
    writer = checkpoints.Writer(config.run_dir, ranks, keep=saving.keep, background=saving.background)
    pace = Pace(config.params, ranks, config.steps, start)
    ahead = prefetch.steps(this.batches, start, config.steps, ahead=config.machine.prefetch, device=ranks.device)
    try:
        with Stopper() as stopper:
            for step, batches in ahead:
                at, later = locate(config.stages, step), step != start
                with pace.paused():
                    if later:
                        this.look(step, at.stage, taken.loss)
                    stop = taken.asked_to_stop or (ranks.world == 1 and stopper.asked)
                    if (later and step % saving.save_every == 0) or stop:
                        writer.save(step, this.tensors(), this.state())
                if stop:
                    writer.wait()
                    return step

                rate = learning_rate(at, config.optim.warmup)
                try:
                    taken = take_step(
                        this.learner, batches, this.losses, rate, config.optim.clip, beside=this.beside,
                        stop=stopper.asked,
                    )  # fmt: skip
                except Diverged as error:
                    writer.wait()  # a checkpoint may still be on its way to disk
                    raise stopped_before(
                        step, str(error), config.run_dir, f"stages.{at.place}.learning_rate"
                    ) from error
                pace.count(batches)
                if this.metrics is not None and saving.logs(step + 1, config.steps):
                    this.metrics.log(step + 1, **_values(taken, rate, pace, at))
            if start < config.steps:
                this.look(config.steps, config.stages[-1], taken.loss)
                writer.save(config.steps, this.tensors(), this.state())
        writer.wait()
    finally:
        if this.metrics is not None:
            this.metrics.close()
    return config.steps


def _values(taken: Taken, rate: float, pace: Pace, at: At) -> dict[str, float]:
    """What a line of the log holds."""
    values = {"loss": taken.loss, "grad_norm": taken.grad_norm, "learning_rate": rate, **taken.beside}
    return {**values, **pace.values(at.step + 1), "base": at.stage.base}


def main() -> None:
    """`torchrun … -m train.pretrain --recipe NAME`: the options of `lens train pretrain`, on every rank."""
    from train.recipes import PRETRAIN_RECIPES, choose

    options = stage_options("train.pretrain", "Pre-train", PRETRAIN_RECIPES, default="nano-smoke", data=True)
    words = options.parse_args()
    launch(lambda: run(choose(words.recipe, words.run_dir, words.set, data=words.data, random=words.random)))


if __name__ == "__main__":
    main()
