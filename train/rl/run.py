"""Reinforcement learning with DiffusionNFT: one function, one loop, on one process.

An epoch is *roll, judge, train*: draw groups of pictures from the old policy, have them judged, take a few gradient
steps on the current one, let the old one follow. The order around it is fixed: evaluate, save, stop, epoch, log.

Running the same command again resumes, killed in whatever phase, and equals an uninterrupted run bit for bit: finished
groups are files, verdicts are lines of a journal, and the epoch's training begins again from its checkpoint, with
pairs, times and noise that are functions of (seed, epoch, group, picture). Source: the Lens paper, section 2.4 and
Appendix D.
"""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from backend.checkpoints.identity import files_sha256
from backend.checkpoints.resolve import ModelFiles, resolve_model
from backend.errors import CheckpointError, UsageError
from backend.loading import load_vae
from backend.memory.exhausted import out_of_memory_in_training
from train import overrides
from train.batches.texts import KeptTexts
from train.evals.verifier.verify import Expectation
from train.judge.choose import open_judge
from train.judge.journal import VerdictJournal
from train.judge.judge import Judge
from train.judge.panel import Panel, PicturesAsked
from train.lora.adapters import with_adapters
from train.lora.config import target_shapes
from train.losses import flow, rewards
from train.losses.nft import OLD_DECAYS, optimality
from train.rl import evaluate, rollout, update
from train.rl.config import KIND, RLConfig, refuse_distilled
from train.rl.export import export
from train.rl.prompts import drawn, prompt_set
from train.rl.prompts.prompt_set import Prompt, PromptSet
from train.rl.views import Views
from train.run import checkpoints, network
from train.run.distributed import Ranks, joined
from train.run.folder import Fact, RunFolder
from train.run.learner import Diverged, Learner
from train.run.metrics import Metrics
from train.run.optim import muon_and_adamw
from train.run.step import transformer_losses
from train.run.stopping import Stopper, stopped, stopped_before
from train.run.validate import TIMES, Held, at_all_times, validate

Say = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    epoch: int
    path: Path  # the adapter
    prompt: str  # one that was trained on, for trying it


def run(config: RLConfig, say: Say = lambda _: None, judge: Judge | None = None) -> Result:
    """Train; `say` is told what is being done. `judge` None: that of the config. Raises LensError."""
    smaller = "--set machine.micro_batch=1, rollout.at_once=1, machine.checkpointing=full"
    with out_of_memory_in_training(smaller), joined(config.machine.device, None) as ranks:
        if not ranks.alone:
            raise UsageError("reinforcement learning runs on one process", hint="without torchrun")
        return _run(config, ranks, say, judge)


def _run(config: RLConfig, ranks: Ranks, say: Say, judge: Judge | None) -> Result:
    # 1. The model, the prompts and the run's folder; what cannot be is said before anything is made.
    files, folder = resolve_model(config.model), RunFolder(config.run_dir, KIND)
    refuse_distilled(files.preset)
    target_shapes(config, files.preset.params.dit)
    everything, expectations = read_prompts(config)
    training, held = everything.split(config.held_out, config.seed)
    shown = evaluate.chosen(config, held)
    # 2. The judge, and the texts, encoded; the encoder is gone afterwards.
    judge = judge or open_judge(config.judge, say)
    try:
        with folder.open(ranks):
            texts = KeptTexts(config.cache_dir / "texts", files, ranks.device, say)
            scenes = _scenes(config, files)
            texts.fill([*_drawn_texts(config, training), *(prompt.prompt for prompt in shown), *(w for w, _ in scenes)])
            # 3. The network with its three views, its optimiser, and the newest checkpoint.
            model: nn.Module = with_adapters(config, files, ranks.device)
            learner, views = make_learner(config, model, ranks), Views(model)
            facts = _facts(config, files, everything)
            found = _resume(config, folder, facts, learner, views, say)
            folder.write_config(config, ranks)
            vae = load_vae(files, torch.float32, ranks.device)
            journal = VerdictJournal(config.run_dir / "verdicts.jsonl", judge)
            panel = Panel(journal, config.judging, vae, ranks.device, say)
            count = sum(p.numel() for p in model.parameters() if p.requires_grad)
            say(f"training {count:,} numbers on {len(training.prompts):,} prompts, {len(held.prompts):,} held out")
            # 4. The loop, and what it leaves behind.
            held_scenes = evaluate.encoded(scenes, vae, texts.read, ranks.device)
            this = _Run(config, files, training, shown, expectations, texts, learner, views, panel, held_scenes, say)
            this.taken = int(found.state["taken"]) if found else 0
            epoch = _loop(this, folder, facts, found.step if found else 0)
            with learner.shown() as averaged:
                path = export(config, files, averaged, epoch, everything.fingerprint)
            return Result(epoch, path, training.prompts[0].prompt)
    finally:
        judge.close()


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


def make_learner(config: RLConfig, model: Any, ranks: Ranks) -> Learner[nn.Module]:
    """The adapters with their optimiser and average."""
    optim = config.optim
    optimizer = muon_and_adamw(model, betas=optim.betas, weight_decay=optim.weight_decay)
    network.finish(model.train(), config.machine)
    return Learner(model, optimizer, ranks, ema_decay=optim.ema_decay)


@dataclass
class _Run:
    """What the loop works on."""

    config: RLConfig
    files: ModelFiles
    training: PromptSet
    shown: Sequence[Prompt]
    expectations: Mapping[str, Expectation]
    texts: KeptTexts
    learner: Learner[nn.Module]
    views: Views
    panel: Panel
    scenes: Held  # whose flow-matching loss is told
    say: Say
    taken: int = 0  # gradient steps so far

    def __post_init__(self) -> None:
        self.base_sha256 = files_sha256(self.files.transformer)
        self.rule = rewards.RewardRule(**vars(self.config.reward))


def _loop(this: _Run, folder: RunFolder, facts: Sequence[Fact], start: int) -> int:
    """Train from epoch `start` on; returns the epochs that were done."""
    config, learner = this.config, this.learner
    metrics = Metrics(
        config.run_dir, start, say=this.say, wandb=config.wandb, about=overrides.as_json(config)
    )  # fmt: skip
    writer = checkpoints.Writer(config.run_dir, learner.ranks, keep=config.keep, background=False)
    try:
        with Stopper() as stopper:
            for epoch in range(start, config.epochs + 1):
                last = epoch == config.epochs
                if (epoch % config.evaluate.every == 0 or last) and (epoch != start or epoch == 0):
                    _evaluate(this, epoch, metrics)
                if epoch != start:
                    state = {**learner.state(), "taken": this.taken, **folder.state(facts)}
                    writer.save(epoch, {**learner.tensors(), **this.views.tensors()}, state)
                    shutil.rmtree(rollout.folder_of(config.run_dir, epoch - 1), ignore_errors=True)
                if last:
                    return epoch
                if stopper.asked:
                    raise stopped(epoch, config.epochs)
                metrics.log(epoch + 1, **_epoch(this, epoch, stopper))
    finally:
        metrics.close()
    raise AssertionError("the loop ends by itself")


# ------------------------------------------------------------------------------------------------------- one epoch


def _epoch(this: _Run, number: int, stopper: Stopper) -> dict[str, float]:
    """Roll, judge, train; returns the numbers of the log."""
    config = this.config
    groups = rollout.plan(config, this.files.preset, this.training, number)
    began = time.monotonic()
    rows = _roll(this, number, groups, stopper)
    rolled = time.monotonic()
    verdicts = this.panel.collect(rows)
    judged = time.monotonic()
    given = [[rewards.reward(verdict, this.rule) for verdict in row] for row in verdicts]
    found = rewards.advantages(
        torch.tensor([[0.0 if value is None else value for value in row] for row in given]),
        torch.tensor([[value is None for value in row] for row in given]),
        floor=config.nft.std_floor, clip=config.nft.advantage_clip, least_valid=config.nft.least_valid,
    )  # fmt: skip
    if not found.counted_GK.any():
        this.say(f"epoch {number}: no group has enough rewards, so nothing is learned of it")
    steps = _train(this, number, groups, rows, found, stopper)
    return {
        **_step_numbers(this, steps),
        **_reward_numbers(this, groups, verdicts, given, found),
        "seconds_roll": round(rolled - began, 1),
        "seconds_judge": round(judged - rolled, 1),
        "seconds_train": round(time.monotonic() - judged, 1),
    }


def _shelf(this: _Run, number: int) -> rollout.Shelf:
    made_by = rollout.made_by(this.config, this.views.old_sha256, this.base_sha256)
    return rollout.Shelf(this.config.run_dir, number, made_by)


def _roll(this: _Run, number: int, groups: Sequence[rollout.PromptGroup], stopper: Stopper) -> list[PicturesAsked]:
    """Draw what is not on the shelf, and ask about each group's pictures at once."""
    config, shelf = this.config, _shelf(this, number)
    how = rollout.How(
        steps=config.rollout.steps, guidance=config.rollout.guidance, at_once=config.rollout.at_once,
        compute=config.machine.compute,
    )  # fmt: skip
    rows: list[PicturesAsked] = []
    for group in groups:
        if stopper.asked:
            raise stopped(number, config.epochs)

        def make(group: rollout.PromptGroup = group) -> Tensor:
            (text,) = this.texts.read([group.prompt.prompt])
            with this.views.old():
                return rollout.draw(this.learner.model, text, group.grid, group.seeds, how)

        question = rollout.question_of(group.prompt, this.expectations)
        row = PicturesAsked(shelf.get(group, make), group.grid, question, f"epoch {number} group {group.place}")
        rows.append(this.panel.ask(row))
    return rows


def _train(
    this: _Run, number: int, groups: Sequence[rollout.PromptGroup], rows: Sequence[PicturesAsked],
    found: rewards.Advantages, stopper: Stopper,
) -> list[update.StepTaken]:  # fmt: skip
    """The epoch's gradient steps; then the old policy follows."""
    config = this.config
    counted = found.counted_GK if config.nft.train_flat else found.counted_GK & ~found.flat_G[:, None]
    names = list(dict.fromkeys(group.prompt.prompt for group in groups))
    epoch = update.EpochPictures(
        number,
        groups,
        [row.x0_KNC for row in rows],
        optimality(found.A_GK, config.nft.advantage_clip),
        counted,
        dict(zip(names, this.texts.read(names), strict=True)),
    )
    done: list[update.StepTaken] = []
    for pairs in update.pairs(config, counted, number):
        if stopper.asked:
            raise stopped(number, config.epochs)
        try:
            done.append(update.take_step(config, this.views, this.learner, epoch, pairs, _rate(this)))
        except Diverged as error:
            raise stopped_before(this.taken, str(error), config.run_dir, "learning_rate") from error
        this.taken += 1
    this.views.follow(OLD_DECAYS[config.nft.old].at(this.taken))
    if never_differed(done, this.taken):
        this.say(
            f"epoch {number}: current and old were the same policy in every gradient step, so that this is weighted "
            "regression on its own pictures; with nft.gradient_steps above 1, or another nft.old than copy, they differ"
        )
    return done


def never_differed(steps: Sequence[update.StepTaken], taken: int) -> bool:
    """Whether current and old were the same all through an epoch: a fault of the schedule or the rate.

    Not of a run's very first gradient step, nor of the first of several in an epoch: there they are by definition.
    `taken`: gradient steps of the run, this epoch's included.
    """
    return bool(steps) and all(step.deviation == 0 for step in steps) and taken > 1


def _rate(this: _Run) -> float:
    warmup = this.config.optim.warmup
    return this.config.learning_rate * (min(1.0, (this.taken + 1) / warmup) if warmup else 1.0)


# ------------------------------------------------------------------------------------------------ what is said of it


def _step_numbers(this: _Run, steps: Sequence[update.StepTaken]) -> dict[str, float]:
    """Means over the epoch's pairs. Without a pair there is no loss, and nothing was learned."""
    pairs = sum(step.pairs for step in steps)

    def mean(name: str, of: Sequence[update.StepTaken]) -> float:
        total = sum(step.pairs for step in of)
        return sum(getattr(step, name) * step.pairs for step in of) / total if total else 0.0

    off_policy = [step for step in steps if not step.same]
    return {
        "loss": mean("policy", steps),
        "kl": mean("kl", steps),
        "deviation": mean("deviation", off_policy),  # of the steps in which the two may differ
        "on_policy_steps": float(len(steps) - len(off_policy)),
        "norm_ratio": mean("norm_ratio", steps),
        "norm_excess": mean("hinge", steps),
        "grad_norm": mean("grad_norm", steps),
        "pairs": float(pairs),
        "old_decay": OLD_DECAYS[this.config.nft.old].at(this.taken),
        "gradient_steps": float(this.taken),
    }


def _reward_numbers(
    this: _Run, groups: Sequence[rollout.PromptGroup], verdicts: Sequence[Sequence[rewards.Verdict]],
    given: Sequence[Sequence[float | None]], found: rewards.Advantages,
) -> dict[str, float]:  # fmt: skip
    spread, each = found.spread, [verdict for row in verdicts for verdict in row]
    names = [this.panel.journal.judge.kinds(rollout.question_of(group.prompt, this.expectations)) for group in groups]
    kinds = [kind for kind, row in zip(names, verdicts, strict=True) for _ in row]
    by_category: dict[str, list[float]] = defaultdict(list)
    for group, row in zip(groups, given, strict=True):
        by_category[group.prompt.category] += [value for value in row if value is not None]
    counts, asked_of = rewards.tally(each).missing, rewards.means_by_kind(each, kinds)
    means = {name: sum(row) / len(row) for name, row in sorted(by_category.items()) if row}
    return {
        "reward": spread.mean,
        "reward_std": spread.std,
        "reward_within": spread.within,
        "flat_groups": float(spread.flat),
        "short_groups": float(spread.short),
        "missing": float(spread.missing),
        "clipped": spread.clipped,
        **{f"missing_{why}": float(count) for why, count in sorted(counts.items())},
        **{f"rubric_{name.replace(' ', '_')}": value for name, value in asked_of.items()},
        **{f"category_{name.replace(' ', '_')}": value for name, value in means.items()},
    }


def _evaluate(this: _Run, epoch: int, metrics: Metrics) -> None:
    """Of the averaged weights: drawn held-out prompts, and the flow-matching loss of drawn scenes."""
    config, ranks = this.config, this.learner.ranks
    values: dict[str, float] = {}
    with this.learner.shown() as averaged:
        if this.scenes:
            losses = transformer_losses(flow.losses, ranks, config.machine.compute)
            judged = at_all_times(this.scenes, ranks.device, config.machine.micro_batch or TIMES)
            values |= validate(partial(losses, averaged), judged)
        if this.shown:
            found, sheet = evaluate.evaluate(
                config, averaged, this.files.preset, this.shown, this.texts.read, this.expectations, this.panel
            )
            values |= found
            if sheet is not None:
                metrics.picture(epoch, sheet)
    if values:
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
        Fact("base_sha256", files_sha256(files.transformer), "another model's weights", hint),
        Fact("prompts", prompts.fingerprint, "other prompts than these", hint),
    ]


def _resume(
    config: RLConfig, folder: RunFolder, facts: Sequence[Fact], learner: Learner[nn.Module], views: Views, say: Say
) -> checkpoints.Found | None:
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
