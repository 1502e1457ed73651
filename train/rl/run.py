"""Reinforcement learning with DiffusionNFT: one function, one loop, on one process or many.

An epoch is *roll, judge, train* (`train.rl.epoch`): draw groups of pictures from the old policy, have them judged, take
a few gradient steps on the current one, let the old one follow. The order around it is fixed: evaluate, save, stop,
epoch, log.

Running the same command again resumes, killed in whatever phase, and equals an uninterrupted run bit for bit: finished
groups are files, verdicts are lines of a journal, and the epoch's training begins again from its checkpoint, with
pairs, times and noise that are functions of (seed, epoch, group, picture). Under torchrun every rank has the whole
network, which is frozen but for its adapters. Source: the Lens paper, section 2.4 and Appendix D.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from backend.checkpoints.resolve import ModelFiles, resolve_model
from backend.errors import CheckpointError, UsageError
from backend.loading import load_vae
from backend.lora.own import transformer_sha256
from backend.memory.exhausted import out_of_memory_in_training
from backend.model.transformer import LensTransformer2DModel
from train import overrides
from train.batches.texts import KeptTexts
from train.evals.verifier.verify import Expectation
from train.judge.choose import open_judge
from train.judge.journal import VerdictJournal
from train.judge.judge import Judge
from train.judge.panel import Panel
from train.lora.adapters import make_learner, with_adapters
from train.lora.config import target_shapes
from train.losses import flow
from train.rl import evaluate, rollout
from train.rl.config import KIND, RLConfig, refuse_distilled, refuse_tuned
from train.rl.epoch import Work, run_epoch
from train.rl.export import export
from train.rl.prompts import drawn, prompt_set
from train.rl.prompts.prompt_set import PromptSet
from train.rl.views import Views
from train.run import checkpoints
from train.run.distributed import Ranks, joined
from train.run.folder import Fact, RunFolder
from train.run.learner import Learner
from train.run.metrics import Metrics
from train.run.step import transformer_losses
from train.run.stopping import Stopper, stopped
from train.run.validate import TIMES, Held, at_all_times, validate

Say = Callable[[str], None]
VERDICTS, CONTROL = "verdicts", "control"  # journals: of the judge, of the one whose scores are not the reward


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    epoch: int
    path: Path  # the adapter
    prompt: str  # one that was trained on, for trying it


def run(
    config: RLConfig, say: Say = lambda _: None, judge: Judge | None = None, control: Judge | None = None
) -> Result:  # fmt: skip
    """Train; `say` is told what is being done. Judges that are None: those of the config. Raises LensError."""
    smaller = "--set machine.micro_batch=1, rollout.at_once=1, machine.checkpointing=full"
    with out_of_memory_in_training(smaller), joined(config.machine.device, None) as ranks, ExitStack() as opened:
        return _run(config, ranks, say if ranks.first else lambda _: None, _Judges(judge, control, opened))


@dataclass
class _Judges:
    """Who judges: given, or made when the run needs them and closed with it."""

    judge: Judge | None
    control: Judge | None
    opened: ExitStack

    def open(self, config: RLConfig, say: Say) -> tuple[Judge, Judge | None]:
        judge = self.judge or open_judge(config.judge, say)
        self.opened.callback(judge.close)
        other = config.evaluate.control
        control = self.control or (open_judge(other, say) if other.model else None)
        if control is not None:
            self.opened.callback(control.close)
        return judge, control


def _run(config: RLConfig, ranks: Ranks, say: Say, judges: _Judges) -> Result:
    # 1. The model, the prompts and the run's folder; what cannot be is said before anything is made.
    files, folder = resolve_model(config.model), RunFolder(config.run_dir, KIND)
    refuse_distilled(files.preset)
    refuse_tuned(files)
    target_shapes(config, files.preset.params.dit)
    everything, expectations = read_prompts(config)
    training, held = everything.split(config.held_out, config.seed)
    training = training.part(config.share, config.without, config.seed)
    shown = evaluate.chosen(config, held)
    # 2. The judges, and the texts, encoded; the encoder is gone afterwards.
    judge, control = judges.open(config, say)
    with folder.open(ranks):
        texts = KeptTexts(config.cache_dir / "texts", files, ranks.device, say)
        scenes = _scenes(config, files)
        words = [*_drawn_texts(config, training), *(prompt.prompt for prompt in shown), *(w for w, _ in scenes)]
        for turn in (ranks.first, not ranks.first):  # the others find what the first has made
            with ranks.failing_together():
                if turn:
                    texts.fill(words)
        # 3. The network with its three views, its optimiser, and the newest checkpoint.
        model: nn.Module = with_adapters(config, files, ranks.device)
        learner, views = make_learner(config, model, ranks), Views(model)
        facts = _facts(config, files, everything)
        found = _resume(config, folder, facts, learner, views, say)
        folder.write_config(config, ranks)
        vae = load_vae(files, torch.float32, ranks.device)

        def panel(name: str, asked: Judge) -> Panel:
            return Panel(_journal(config, name, asked, ranks), config.judging, vae, ranks.device, say)

        work = Work(config, files, training, expectations, texts, learner, views, panel(VERDICTS, judge), say)
        work.taken = int(found.state["taken"]) if found else 0
        show = evaluate.Show(
            config, files.preset, shown, texts.read, expectations, work.panel,
            None if control is None else panel(CONTROL, control),
        )  # fmt: skip
        count = sum(p.numel() for p in model.parameters() if p.requires_grad)
        say(f"training {count:,} numbers on {len(training.prompts):,} prompts, {len(held.prompts):,} held out")
        # 4. The loop, and what it leaves behind.
        held_scenes = evaluate.encoded(scenes, vae, texts.read, ranks.device)
        run = _Loop(work, show, held_scenes, folder, facts, everything.fingerprint)
        epoch = run.go(found.step if found else 0)
        return Result(epoch, config.run_dir / "lora.safetensors", training.prompts[0].prompt)


def _journal(config: RLConfig, name: str, judge: Judge, ranks: Ranks) -> VerdictJournal:
    """This rank's own file; what any rank was told before is known to all."""
    own = config.run_dir / (f"{name}.jsonl" if ranks.first else f"{name}-{ranks.rank}.jsonl")
    return VerdictJournal(own, judge, others=sorted(config.run_dir.glob(f"{name}*.jsonl")))


def read_prompts(config: RLConfig) -> tuple[PromptSet, dict[str, Expectation]]:
    """All prompts, and of drawn ones what they ask for. Raises UsageError, FileError."""
    if config.prompts.source == "drawn":
        return drawn.make(config.prompts.count, config.prompts.seed)
    if config.prompts.path is None:
        raise UsageError(
            "no prompts were named", hint="lens train rl prompts write FILE, then --set prompts.path=FILE"
        )  # fmt: skip
    return prompt_set.read(config.prompts.path), {}


def _drawn_texts(config: RLConfig, training: PromptSet) -> list[str]:
    """The prompts that the run will draw, each once."""
    epochs = (training.epoch(config.seed, epoch, config.rollout.groups) for epoch in range(config.epochs))
    return list(dict.fromkeys(prompt.prompt for prompts in epochs for prompt in prompts))


@dataclass
class _Loop:
    """The run from its set-up on."""

    work: Work
    show: evaluate.Show
    scenes: Held  # whose flow-matching loss is told
    folder: RunFolder
    facts: Sequence[Fact]
    prompts: str  # their fingerprint

    def go(self, start: int) -> int:
        """Train from epoch `start` on; returns the epochs that were done."""
        config, work, learner = self.work.config, self.work, self.work.learner
        metrics = (
            Metrics(config.run_dir, start, say=work.say, wandb=config.wandb, about=overrides.as_json(config))
            if learner.ranks.first
            else None
        )
        writer = checkpoints.Writer(config.run_dir, learner.ranks, keep=config.keep, background=False)
        try:
            with Stopper() as stopper:
                for epoch in range(start, config.epochs + 1):
                    last = epoch == config.epochs
                    looked = (epoch % config.evaluate.every == 0 or last) and (epoch != start or epoch == 0)
                    if looked:
                        self._evaluate(epoch, metrics)
                    self._export(epoch, looked)
                    if epoch != start:
                        state = {**learner.state(), "taken": work.taken, **self.folder.state(self.facts)}
                        writer.save(epoch, {**learner.tensors(), **work.views.tensors()}, state)
                        if learner.ranks.first:
                            shutil.rmtree(rollout.folder_of(config.run_dir, epoch - 1), ignore_errors=True)
                    if last:
                        return epoch
                    if learner.ranks.sums([float(stopper.asked)])[0]:
                        raise stopped(epoch, config.epochs)
                    told = run_epoch(work, epoch, stopper)
                    if metrics is not None:
                        metrics.log(epoch + 1, **told)
        finally:
            if metrics is not None:
                metrics.close()
        raise AssertionError("the loop ends by itself")

    def _export(self, epoch: int, looked: bool) -> None:
        """The adapter as it is: whenever a run is stopped, the newest can be used. One for each evaluation is kept."""
        if not self.work.ranks.first:
            return
        with self.work.learner.shown() as averaged:
            export(self.work.config, self.work.files, averaged, epoch, self.prompts, numbered=looked and epoch > 0)

    def _evaluate(self, epoch: int, metrics: Metrics | None) -> None:
        """Of the averaged weights: drawn held-out prompts, and the flow-matching loss of drawn scenes."""
        config, ranks = self.work.config, self.work.ranks
        values: dict[str, float] = {}
        with self.work.learner.shown() as averaged:
            if self.scenes and metrics is not None:
                losses = transformer_losses(flow.losses, ranks, config.machine.compute)
                judged = at_all_times(self.scenes, ranks.device, config.machine.micro_batch or TIMES)
                values |= validate(partial(losses, averaged), judged)
            if self.show.prompts:
                found, sheet = evaluate.evaluate(self.show, averaged, ranks)
                values |= found
                if sheet is not None and metrics is not None:
                    metrics.picture(epoch, sheet)
        if values and metrics is not None:
            metrics.log(epoch, **values)


def _scenes(config: RLConfig, files: ModelFiles) -> list[tuple[str, Image.Image]]:
    if config.prompts.source != "drawn":
        return []
    return drawn.captioned(config.evaluate.scenes, config.rollout.base or files.preset.default_base, config.seed)


# ------------------------------------------------------------------------------------------------- the run's folder


def _facts(config: RLConfig, files: ModelFiles, prompts: PromptSet) -> list[Fact]:
    """What a run keeps for ever."""
    hint, jump = "as it began, or another --run-dir", "with which it would jump in the order of its prompts"
    return [
        Fact("rank", config.rank, hint=hint),
        Fact("alpha", config.alpha, hint=hint),
        Fact("targets", list(config.targets), hint=hint),
        Fact("quant", str(config.quant), hint=hint),
        Fact("seed", config.seed, hint=hint),
        Fact("groups", config.rollout.groups, f"another rollout.groups, {jump}", hint),
        Fact("held_out", config.held_out, "another share held out", hint),
        Fact("share", config.share, hint=hint),
        Fact("without", list(config.without), hint=hint),
        Fact("base_sha256", transformer_sha256(files), "another model's weights", hint),
        Fact("prompts", prompts.fingerprint, "other prompts than these", hint),
    ]


def _resume(
    config: RLConfig,
    folder: RunFolder,
    facts: Sequence[Fact],
    learner: Learner[LensTransformer2DModel],
    views: Views,
    say: Say,
) -> checkpoints.Found | None:  # fmt: skip
    """Take over the newest checkpoint; None: there is none. Raises CheckpointError, UsageError."""
    found = checkpoints.latest(config.run_dir, learner.ranks)
    if found is None:
        return None
    folder.check(found, facts)
    if not isinstance(found.state.get("taken"), int):
        raise CheckpointError(f"{found.folder}: it says nothing of gradient steps", hint="another --run-dir")
    folder.check_steps(found, config.epochs)
    learner.restore(found)
    checkpoints.read(found, views.tensors(), learner.ranks)
    say(f"going on from epoch {found.step:,}")
    return found
