"""Distillation for few steps without guidance: one function, one loop, on one process or many.

A step of the warm stage is one update of the student; a global step after it is `fake.updates` updates of fake model
and discriminator, then one of the student, after which the fake model nears it (IDA). The order around it is fixed:
look at held-out prompts, preview, save, stop, step, log.

Running the same command again resumes and equals an uninterrupted run bit for bit, killed in whatever phase: captions,
steps on the grid, levels and noise are functions of (seed, update, place), and a checkpoint stands between two global
steps. Source: the Lens paper, section 2.4 and Appendix D.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backend.checkpoints.resolve import ModelFiles, resolve_model
from backend.errors import NumericsError
from backend.lora.own import transformer_sha256
from backend.memory.exhausted import out_of_memory_in_training
from train import overrides
from train.distill import look, update
from train.distill.config import KIND, DistillConfig, refuse_distilled
from train.distill.export import write_adapter, write_whole
from train.distill.pictures import Pictures, open_pictures, shown_texts
from train.distill.roles import AdapterSet, check_start, make_roles, numbers, same_shape, trained
from train.distill.update import Learners, Passes
from train.distill.watch import collapsed
from train.lora.config import target_shapes
from train.losses import dmd
from train.losses.critic import Heads
from train.run import checkpoints
from train.run.distributed import Ranks, joined
from train.run.folder import Fact, RunFolder
from train.run.learner import Diverged, Learner
from train.run.metrics import Metrics
from train.run.optim import muon_and_adamw
from train.run.stopping import Stopper, stopped, stopped_before

Say = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    step: int
    best: int  # the step whose weights were written
    score: float  # of these
    path: Path  # the adapter, or the transformer
    prompt: str  # a held-out one, for trying it


def run(config: DistillConfig, say: Say = lambda _: None) -> Result:
    """Distil; `say` is told what is being done, by the first rank. Raises LensError."""
    smaller = "--recipe one-gpu-24gb, or --set machine.micro_batch=1, machine.checkpointing=full; --dry-run adds it up"
    replicate = config.machine.replicate if config.form == "full" else None  # adapters are whole on every rank
    with out_of_memory_in_training(smaller), joined(config.machine.device, replicate) as ranks:
        return _run(config, ranks, say if ranks.first else lambda _: None)


def _run(config: DistillConfig, ranks: Ranks, say: Say) -> Result:
    # 1. The models and the run's folder; what cannot be is said before anything is made.
    files, folder = resolve_model(config.model), RunFolder(config.run_dir, KIND)
    teacher = files if config.teacher is None else resolve_model(config.teacher)
    refuse_distilled(teacher.preset)
    same_shape(files, teacher)
    config.critic.taps_of(files.preset.params.dit)
    if config.form == "adapters":
        target_shapes(config, files.preset.params.dit)
    check_start(config, files)
    found = checkpoints.latest(config.run_dir, ranks)
    if found is not None:
        folder.check_steps(found, config.all_steps)
    with folder.open(ranks):
        # 2. Captions and pictures.
        pictures, shown, texts = open_pictures(config, files, ranks, say)
        facts = _facts(config, files, teacher, pictures)
        if found is not None:
            folder.check(found, facts)
        # 3. Three networks, their optimisers, and the newest checkpoint.
        learners, passes = make_learners(config, files, teacher, ranks), Passes(config, ranks, pictures)
        begun = numbers([one.model for one in learners.all])
        served = config.warm.guidance if config.warm.guidance is not None else _served(files, teacher)
        gallery = look.Gallery(config, files, shown, shown_texts(config, files, shown, texts), served)
        this = _Run(config, files, ranks, folder, facts, learners, passes, gallery, say)
        if found is not None:
            for one in learners.all:
                one.restore(found)
            this.best = (int(found.state["best"][0]), float(found.state["best"][1]))
            say(f"going on from step {found.step:,}")
        folder.write_config(config, ranks)  # only now: a command that is refused must not replace the run's own
        with learners.roles.as_("teacher") as network:
            made = config.made
            guidance = _served(files, teacher) if made.guidance is None else made.guidance
            pictures.prepare(partial(look.draw_real, passes, network, steps=made.steps, guidance=guidance))
        say(f"training {begun:,} numbers: student, fake model and discriminator")
        # 4. The loop, and what it leaves behind.
        reached = _loop(this, found.step if found else 0)
        path = _written(this)
        return Result(reached, this.best[0], this.best[1], path, shown[0].prompt)


def _served(files: ModelFiles, teacher: ModelFiles) -> float:
    """Guidance with which the teacher is served."""
    return (teacher if teacher is not files else files).preset.guidance


def make_learners(config: DistillConfig, files: ModelFiles, teacher: ModelFiles, ranks: Ranks) -> Learners:
    """Student and fake model as the teacher is, a fresh discriminator, each with its optimiser."""
    roles, optim = make_roles(config, files, teacher, ranks), config.optim
    params = files.preset.params.dit
    with torch.random.fork_rng(devices=[]):  # the same heads on every rank
        torch.manual_seed(config.seed)
        heads = Heads(params.dim, config.critic.taps_of(params))
    heads.to(ranks.device)

    def optimizer(model: nn.Module) -> Any:
        return muon_and_adamw(model, betas=optim.betas, weight_decay=optim.weight_decay)

    return Learners(
        roles,
        Learner(roles.student, optimizer(roles.student), ranks, name="student", ema_decay=optim.ema_decay),
        Learner(roles.fake, optimizer(roles.fake), ranks, name="fake"),
        Learner(heads, optimizer(heads), ranks, name="critic"),
    )


@dataclass
class _Run:
    """What the loop works on."""

    config: DistillConfig
    files: ModelFiles
    ranks: Ranks
    folder: RunFolder
    facts: Sequence[Fact]
    learners: Learners
    passes: Passes
    gallery: look.Gallery
    say: Say
    metrics: Metrics | None = None  # of the first rank
    best: tuple[int, float] = (-1, -float("inf"))  # step and score of the best weights so far
    newest: dict[str, float] = field(default_factory=dict[str, float])  # the newest look

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint holds."""
        return {name: tensor for one in self.learners.all for name, tensor in one.tensors().items()}

    def state(self) -> dict[str, Any]:
        """What a checkpoint says beside its tensors."""
        learned = {key: value for one in self.learners.all for key, value in one.state().items()}
        return {**learned, "best": list(self.best), **self.folder.state(self.facts)}


def _loop(this: _Run, start: int) -> int:
    """Train from step `start` on; returns the step that was reached and saved."""
    config, saving, ranks = this.config, this.config.saving, this.ranks
    if ranks.first:
        about = overrides.as_json(config)
        this.metrics = Metrics(config.run_dir, start, say=this.say, wandb=saving.wandb, about=about)
    writer = checkpoints.Writer(config.run_dir, ranks, keep=saving.keep, background=saving.background)
    try:
        with Stopper() as stopper:
            for step in range(start, config.all_steps + 1):
                later, last = step != start, step == config.all_steps
                problem = None
                if later or step == 0:  # what it began with is seen beside what it becomes
                    problem = _look(this, step, last)
                asked = sum(ranks.sums([float(stopper.asked)])) > 0
                if later and (last or asked or problem is not None or step % saving.save_every == 0):
                    writer.save(step, this.tensors(), this.state())
                if problem is not None:
                    writer.wait()
                    raise _collapse(this, step, problem)
                if last:
                    writer.wait()
                    return step
                if asked:
                    writer.wait()
                    raise stopped(step, config.all_steps)
                began = time.monotonic()
                try:
                    values = _step(this, step)
                except Diverged as error:
                    writer.wait()
                    raise stopped_before(step, str(error), config.run_dir, "learning_rate") from error
                if this.metrics is not None and saving.logs(step + 1, config.all_steps):
                    took = time.monotonic() - began
                    # Of the stage under way: a warm step and a global one take different times.
                    left = (config.warm.steps if step < config.warm.steps else config.all_steps) - step - 1
                    this.metrics.log(step + 1, **values, step_seconds=round(took, 2), eta_s=round(took * left, 1))
    finally:
        if this.metrics is not None:
            this.metrics.close()
    raise AssertionError("the loop ends by itself")


# -------------------------------------------------------------------------------------------------------- one step


def _step(this: _Run, step: int) -> dict[str, float]:
    """One step of the warm stage, or one global step; returns the numbers of the log."""
    config, warm = this.config, this.config.warm
    if step < warm.steps:
        _set_betas(this.learners.student, warm.betas)
        rate = warm.learning_rate * _decay(warm.steps - step, round(warm.decay * warm.steps))
        return update.learn_guidance(this.passes, this.learners, step, this.gallery.guidance, rate)
    if step == warm.steps:
        _begin_matching(this)
    place = step - warm.steps
    first = warm.steps + place * (config.fake.updates + 1)
    rise = min(1.0, (place + 1) / config.optim.warmup) if config.optim.warmup else 1.0
    told = [update.learn_to_tell(this.passes, this.learners, first + i, rise) for i in range(config.fake.updates)]
    values = {name: sum(one[name] for one in told) / len(told) for name in told[0]}
    if place >= config.fake.head_start:
        values |= update.learn_to_draw(this.passes, this.learners, first + config.fake.updates, rise)
    return values


def _begin_matching(this: _Run) -> None:
    """From the warm stage to the global steps: the fake model begins as the student is, and no moment of an optimiser
    remembers the other losses. A run that goes on from here does it again, from the same checkpoint."""
    student, fake = this.learners.student, this.learners.fake
    _set_betas(student, this.config.optim.betas)
    for part in student.optimizer.parts:
        part.state.clear()
    if this.config.warm.steps:
        dmd.ida(trained(fake.model), trained(student.model), 1.0)


def _set_betas(learner: Learner[nn.Module], betas: tuple[float, float]) -> None:
    for part in learner.optimizer.parts:
        for group in part.param_groups:
            group["betas"] = betas


def _decay(left: int, last: int) -> float:
    """Factor of a rate that falls linearly in the last `last` steps."""
    return min(1.0, left / last) if last else 1.0


# ------------------------------------------------------------------------------------------------ what is looked at


def _look(this: _Run, step: int, last: bool) -> str | None:
    """Draw the held-out prompts where it is time; returns what collapsed. All ranks must call."""
    config, saving = this.config, this.config.saving
    measuring, showing = (last or step % every == 0 for every in (saving.validate_every, saving.preview_every))
    if not (measuring or showing):
        return None
    if not this.gallery.teacher:
        look.of_teacher(this.passes, this.learners, this.gallery)
    try:
        drawn = look.of_student(this.passes, this.learners, this.gallery)
    except NumericsError as error:
        return str(error)
    if showing:
        sheet = look.sheet(this.passes, this.learners, this.gallery, drawn)
        if this.metrics is not None and sheet is not None:
            this.metrics.picture(step, sheet)
    if not measuring:
        return None
    this.newest = look.measure(this.passes, this.learners, this.gallery, drawn)
    if this.metrics is not None:
        this.metrics.log(step, **{f"held_{name}": value for name, value in this.newest.items()})
    problem = collapsed(this.newest, config.collapse)
    if problem is None and this.newest["score"] >= this.best[1]:
        this.best = (step, this.newest["score"])
        _keep_best(this, step)
    if isinstance(this.learners.student.model, AdapterSet) and this.ranks.first and step:
        with this.learners.student.shown() as averaged:
            assert isinstance(averaged, AdapterSet)
            path = config.run_dir / "steps" / f"lora-{step:08d}.safetensors"
            write_adapter(path, config, this.files, averaged.factors(), step)
    if problem is not None and not config.collapse.stop:
        this.say(f"step {step:,}: {problem}")
        return None
    return problem


def _keep_best(this: _Run, step: int) -> None:
    """Write the student of this moment as the best one."""
    params = overrides.as_json(this.files.preset.params.dit)
    with this.learners.student.shown() as averaged:
        tensors = {f"model.{name}": p.detach() for name, p in averaged.named_parameters() if p.requires_grad}
        writer = checkpoints.Writer(this.config.run_dir / "best", this.ranks, keep=1, background=False)
        writer.save(step, tensors, {"kind": KIND, "params": params, "score": this.best[1]})


def _collapse(this: _Run, step: int, problem: str) -> NumericsError:
    best, score = this.best
    if best >= 0:
        kept = f"the best weights, of step {best:,} (score {score:.3g}), are in {_written(this)}"
    else:
        kept = "no earlier weights were better"
    return NumericsError(
        f"step {step:,}: the student collapsed: {problem}; {kept}",
        hint="a new run with a higher fake.learning_rate or more fake.updates, a lower learning_rate, or a lower "
        "student.guidance; collapse.stop=false goes on all the same",
    )


def _written(this: _Run) -> Path:
    """Write the best weights for other programs; returns what `lens gen` is given. All ranks must call."""
    config, problem, path = this.config, None, config_path(this.config)
    found = checkpoints.latest(config.run_dir / "best", this.ranks)
    if found is not None and this.ranks.first:
        if config.form == "full":
            path = write_whole(config, this.files)
        else:
            student = this.learners.student.model
            assert isinstance(student, AdapterSet)
            best = checkpoints.read_whole(found, "model")
            write_adapter(path, config, this.files, student.factors_of(best), found.step)
    this.ranks.together(problem)
    return this.ranks.gathered(path)[0]


def config_path(config: DistillConfig) -> Path:
    """Where the result of a run of adapters lies."""
    return config.run_dir / "lora.safetensors"


# ------------------------------------------------------------------------------------------------- the run's folder


def _facts(config: DistillConfig, files: ModelFiles, teacher: ModelFiles, pictures: Pictures) -> list[Fact]:
    """What a run keeps for ever."""
    hint, jump = "as it began, or another --run-dir", "with which it would jump in the order of its pictures"
    adapters = [
        Fact("rank", config.rank, hint=hint),
        Fact("alpha", config.alpha, hint=hint),
        Fact("targets", list(config.targets), hint=hint),
        Fact("quant", str(config.quant), hint=hint),
    ]
    return [
        Fact("form", config.form, hint=hint),
        *(adapters if config.form == "adapters" else []),
        Fact("seed", config.seed, hint=hint),
        Fact("batch", [config.batch, config.groups], f"another batch or groups, {jump}", hint),
        Fact("updates", config.fake.updates, f"another fake.updates, {jump}", hint),
        Fact("warm_steps", config.warm.steps, hint=hint),
        Fact("grid_steps", config.grid_steps, hint=hint),
        Fact("taps", list(config.critic.taps_of(files.preset.params.dit)), hint=hint),
        Fact("start_from", None if config.start_from is None else Path(config.start_from).name, hint=hint),
        Fact("base_sha256", transformer_sha256(files), "another model's weights", hint),
        Fact("teacher_sha256", transformer_sha256(teacher), "another teacher", hint),
        Fact("pictures", pictures.fingerprint, "other captions or pictures than these", hint),
    ]
