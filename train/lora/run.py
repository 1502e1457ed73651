"""Fine-tuning on a folder of pictures, as low-rank adapters or whole: one function, one loop, on one process or many.

The order in the loop is fixed: validate, preview, save, stop, step, log. Running the same command again resumes, and a
resumed run equals an uninterrupted one: order, dropout, times and noise derive from (seed, step).

What makes it Lens's: times are drawn with the paper's mu(n) of each bucket, a dropped caption is *no text tokens* as
in inference's unconditional branch, and previews walk inference's own schedule. Source: the Lens paper, section 2.3.

`torchrun … -m train.lora` shares a step's batches out; every process has the whole network, and gradients are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from backend.checkpoints.resolve import ModelFiles, resolve_model
from backend.errors import CheckpointError
from backend.lora.keys import listed
from backend.lora.own import transformer_sha256
from backend.memory.exhausted import out_of_memory_in_training
from backend.model.transformer import LensTransformer2DModel
from train import overrides
from train.config import Stage, learning_rate, locate
from train.lora import files as lora_files
from train.lora.adapters import begin_with, make_learner, read_start, unfrozen, with_adapters
from train.lora.config import KIND, LoraConfig, target_shapes
from train.lora.pictures import read_folder
from train.lora.plan import notes
from train.lora.previews import PreviewRow, drawn_prompts, sheet
from train.lora.source import FolderSource, Kept
from train.losses import flow
from train.run import checkpoints, prefetch
from train.run.batch import Batch, passes
from train.run.distributed import Ranks, joined
from train.run.folder import Fact, RunFolder
from train.run.learner import Diverged, Learner
from train.run.metrics import Metrics
from train.run.pace import Pace
from train.run.step import NOT_TAKEN, Losses, take_step, transformer_losses
from train.run.stopping import Stopper, stopped_before
from train.run.validate import at_all_times, validate

Say = Callable[[str], None]


@dataclass(frozen=True)
class LoraResult:
    """How a run ended."""

    step: int
    finished: bool  # False: it was asked to stop, and the same command goes on
    files: tuple[Path, ...]  # written, the first is what `lens gen` is given; (): stopped before the first step
    caption: str  # one that was trained on, for trying it


def run(config: LoraConfig, say: Say = lambda _: None) -> LoraResult:
    """Fine-tune; `say` is told what is being done, by the first rank. Raises LensError."""
    smaller = "--recipe lora-8gb, --quant nf4, or --set batch=1, bases=512, machine.checkpointing=full"
    with out_of_memory_in_training(smaller), joined(config.machine.device, None) as ranks:
        return _run(config, ranks, say if ranks.first else lambda _: None)


def _run(config: LoraConfig, ranks: Ranks, say: Say) -> LoraResult:
    # 1. The model and the run's folder; what cannot be is said before anything is encoded.
    files = resolve_model(config.model)
    params, folder = files.preset.params.dit, RunFolder(config.run_dir, KIND)
    ranks.together(folder.problem() if ranks.first else None)
    for note in notes(config, files.preset, files, ranks.device.type):
        say(note)
    begin = None
    if config.tune == "lora":
        target_shapes(config, params)
        if config.start_from is not None and not checkpoints.folders(config.run_dir):
            begin = read_start(config.start_from, config, params)
    # 2. The pictures and captions, encoded; the encoders are gone afterwards.
    kept = Kept(config, files, ranks, say)
    pictures = read_folder(config, config.bases_of(files.preset), kept.has_latent)
    for key, why in pictures.left_out:
        say(f"left out: {key}: {why}")
    shown = drawn_prompts(config, pictures, files.preset)
    with folder.open(ranks):  # only now: a command that is refused leaves no folder
        with ranks.failing_together():
            kept.fill(pictures, [drawn.prompt for drawn in shown])
        source = FolderSource(config, pictures, kept)
        # 3. The network, its optimiser, and the newest checkpoint.
        model = with_adapters(config, files, ranks.device) if config.tune == "lora" else unfrozen(files, ranks.device)
        if begin is not None:
            begin_with(model, begin)
            say(f"beginning with {begin.path}: {len(begin.updates)} linears")
            if begin.unmatched:
                say(f"left aside, as this model has no such part: {listed(begin.unmatched)}")
        learner = make_learner(config, model, ranks)
        facts = _facts(config, files, source)
        found = _resume(config, folder, facts, learner, say)
        folder.write_config(config, ranks)  # only now: a command that is refused must not replace the run's own
        count = sum(p.numel() for p in model.parameters() if p.requires_grad)
        say(f"training {count:,} numbers on {len(pictures.training):,} pictures, {len(pictures.held):,} held out")
        # 4. The loop, and what it leaves behind.
        losses = transformer_losses(flow.losses, ranks, config.machine.compute)
        this = _Run(config, files, ranks, folder, facts, learner, losses, source, shown)
        step = _loop(this, found.step if found else 0, say)
        written: tuple[Path, ...] = ()
        if step and ranks.first:  # else it was stopped before anything was learned
            with learner.shown() as averaged:
                written = lora_files.export(config, files, averaged, step, say)
        return LoraResult(step, step == config.steps, written, pictures.training[0].caption)


@dataclass
class _Run:
    """What the loop works on."""

    config: LoraConfig
    files: ModelFiles
    ranks: Ranks
    folder: RunFolder
    facts: list[Fact]
    learner: Learner[LensTransformer2DModel]
    losses: Losses
    source: FolderSource
    shown: Sequence[PreviewRow]
    metrics: Metrics | None = None  # of the first rank
    judged: dict[str, float] = field(default_factory=dict[str, float])  # newest validation

    def __post_init__(self) -> None:
        self.stage: Stage = self.config.stage_of(self.files.preset)
        self.held = self.source.held(self.stage)

    def batches(self, step: int) -> list[Batch]:
        """This rank's passes."""
        config = self.config
        return passes(
            self.source, locate((self.stage,), step), self.ranks, config.noise, seed=config.seed,
            micro_batch=config.machine.micro_batch, average="sample",
        )  # fmt: skip

    def look(self, step: int, loss: float) -> None:
        """Validation and previews, where it is time; of the average, where there is one, by the first rank."""
        config, saving, last = self.config, self.config.saving, step == self.config.steps
        if self.metrics is None:
            return
        with self.learner.shown() as model:
            if self.held and (last or step % saving.validate_every == 0):
                at_once = config.machine.micro_batch or config.batch
                judged = at_all_times(self.held, self.ranks.device, at_once)
                self.judged = validate(partial(self.losses, model), judged)
                if step:
                    self.metrics.log(step, loss=loss, **self.judged)
            if self.shown and (last or step % saving.preview_every == 0):
                self.metrics.picture(step, sheet(model, self.files, self.source.kept, self.shown))
                if config.tune == "lora" and step:
                    lora_files.write_step(config, self.files, model, step)

    def state(self) -> dict[str, Any]:
        """What a checkpoint says beside its tensors."""
        params = overrides.as_json(self.files.preset.params.dit)
        return {**self.learner.state(), "params": params, **self.folder.state(self.facts)}


def _loop(this: _Run, start: int, say: Say) -> int:
    """Train from step `start` on; returns the step that was reached and saved."""
    config, saving, ranks, taken = this.config, this.config.saving, this.ranks, NOT_TAKEN
    params = this.files.preset.params.dit
    if ranks.first:
        about = overrides.as_json(config)
        this.metrics = Metrics(config.run_dir, start, say=say, wandb=saving.wandb, about=about)
    writer = checkpoints.Writer(config.run_dir, ranks, keep=saving.keep, background=saving.background)
    pace = Pace(params, ranks, config.steps, start, passes=3 if config.tune == "full" else 2)
    ahead = prefetch.steps(this.batches, start, config.steps, ahead=config.machine.prefetch, device=ranks.device)
    try:
        with Stopper() as stopper:
            for step in range(start, config.steps + 1):
                later = step != start
                with pace.paused():
                    if later or step == 0:  # what fine-tuning changes is seen beside what was there before
                        this.look(step, taken.loss)
                    # Read once: a signal between two looks must not end it unsaved.
                    asked = taken.asked_to_stop or (ranks.world == 1 and stopper.asked)
                    stop = step == config.steps or asked
                    if later and (stop or step % saving.save_every == 0):
                        writer.save(step, this.learner.tensors(), this.state())
                if stop:
                    writer.wait()
                    return step

                at, (_, batches) = locate((this.stage,), step), next(ahead)
                rate = learning_rate(at, config.optim.warmup)
                try:
                    taken = take_step(
                        this.learner, batches, this.losses, rate, config.optim.clip, stop=stopper.asked
                    )  # fmt: skip
                except Diverged as error:
                    writer.wait()  # a checkpoint may still be on its way to disk
                    raise stopped_before(step, str(error), config.run_dir, "learning_rate") from error
                pace.count(batches)
                if this.metrics is None:
                    continue
                if step == 0 and this.held:  # with the loss of the first batch, which was the untouched model's too
                    this.metrics.log(0, loss=taken.loss, **this.judged)
                if saving.logs(step + 1, config.steps):
                    values = {"loss": taken.loss, "grad_norm": taken.grad_norm, "learning_rate": rate}
                    this.metrics.log(step + 1, **values, **pace.values(step + 1))
    finally:
        ahead.close()
        if this.metrics is not None:
            this.metrics.close()
    raise AssertionError("the loop ends by itself")


# ------------------------------------------------------------------------------------------------- the run's folder


def _facts(config: LoraConfig, files: ModelFiles, source: FolderSource) -> list[Fact]:
    """What a run keeps for ever."""
    hint, jump = "as it began, or another --run-dir", "with which it would jump in the order of its pictures"
    adapters = [
        Fact("rank", config.rank, hint=hint),
        Fact("alpha", config.alpha, hint=hint),
        Fact(
            "quant", str(config.quant), "another quant: an adapter fits the weights it was trained beside", hint
        ),
    ]  # fmt: skip
    return [
        Fact("tune", config.tune, hint=hint),
        *(adapters if config.tune == "lora" else []),
        Fact("seed", config.seed, hint=hint),
        Fact("batch", config.batch, f"another batch, {jump}", hint),
        Fact("accumulate", config.accumulate, f"another accumulate, {jump}", hint),
        Fact("base_sha256", transformer_sha256(files), "another model's weights", hint),
        Fact("data", source.fingerprint, "other pictures or captions than there are now", hint),
    ]


def _resume(
    config: LoraConfig, folder: RunFolder, facts: list[Fact], learner: Learner[LensTransformer2DModel], say: Say
) -> checkpoints.Found | None:
    """Take over the newest checkpoint; None: there is none. Raises CheckpointError, UsageError."""
    found = checkpoints.latest(config.run_dir, learner.ranks)
    if found is None:
        return None
    folder.check(found, facts)
    learned = {f"model.{name}" for name, p in learner.model.named_parameters() if p.requires_grad}
    if learned != {name for name in found.names if name.startswith("model.")}:
        raise CheckpointError(
            f"{config.run_dir}: the run began with other targets", hint="as it began, or another --run-dir"
        )
    folder.check_steps(found, config.steps)
    learner.restore(found)
    say(f"going on from step {found.step:,}")
    return found
